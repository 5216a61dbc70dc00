"""Every peer against the oracle; compiled ones run eagerly on many specs, traced on some, and compiled in full on a few: seconds each."""

from __future__ import annotations

import functools
import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tvm_orient.bench.peers import base, dense, floors, gather, registry, shift_add
from tvm_orient.evaluate import reference, tolerance
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps

PEERS = {peer.name: peer for peer in registry.PEERS}
COMPILED = [name for name in PEERS if name.startswith("compiled")]
OPS = ["conv", "conv_dx", "conv_dw"]
TAPS = {
    "three": Taps.oriented(angles_between(3), 5),
    "long": Taps.oriented(angles_between(2), 31),
    "flat": Taps.oriented(0.0, 7),
    "dilated": Taps.oriented(0.0, 5, dilation=2),
    "start": Taps.oriented(math.pi / 4, 6, anchor="start"),
    "free": Taps.from_offsets([[[40, 3], [0, -1], [0, -1], [-2, 2]]]),
}
CASES = [("zeros", (1, 1), (6, 9)), ("zeros", (3, 2), (7, 4)), ("circular", (1, 1), (5, 8)), ("circular", (2, 1), (1, 7))]
needs_a_compiler = pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="torch.compile needs a C++ compiler for the CPU")


def operands(spec: ConvSpec, batch: int = 2, device: str = "cpu") -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, spec.channels, spec.height, spec.width, device=device)
    dy = torch.randn(batch, spec.channels, spec.out_height, spec.out_width, device=device)
    w = torch.randn(spec.channels, spec.kernel_size, device=device)
    return {"conv": (x, w), "conv_dx": (dy, w), "conv_dw": (x, dy)}[spec.op]


def check(peer: base.Peer, spec: ConvSpec, device: str = "cpu") -> None:
    inputs = operands(spec, device=device)
    with base.settings():
        result = peer.make(spec, device)(*inputs)
    expected = reference.run(spec, *inputs)
    assert result.shape == expected.shape
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() <= tolerance.tolerance(spec, 2, *inputs)


def specs(op: str, taps: Taps) -> list[ConvSpec]:
    return [ConvSpec(op, 5, *size, taps, stride=stride, padding_mode=padding_mode) for padding_mode, stride, size in CASES]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile without code generation: the graph is captured whole, and run as it is."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("taps", TAPS)
@pytest.mark.parametrize("name", PEERS)
def test_same_function(name: str, taps: str, op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gather, shift_add):
        monkeypatch.setattr(module, "compiled_peer", lambda function: function)
    for spec in specs(op, TAPS[taps]):
        if PEERS[name].applies(spec) is None:
            check(PEERS[name], spec)


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", COMPILED)
def test_traced(name: str, op: str) -> None:
    check(PEERS[name], ConvSpec(op, 5, 6, 9, Taps.oriented(angles_between(2), 3), padding_mode="circular"))


@needs_a_compiler
@pytest.mark.parametrize(("name", "op"), [pytest.param("compiled_gather", "conv_dx", marks=pytest.mark.long), ("compiled_shift_padded", "conv_dw")])
def test_compiled(name: str, op: str) -> None:
    check(PEERS[name], ConvSpec(op, 3, 6, 9, Taps.oriented(angles_between(2), 3)))


@pytest.mark.usefixtures("traced")
def test_a_ninth_spec_compiles() -> None:
    limit = torch._dynamo.config.recompile_limit
    for channels in range(1, limit + 3):
        check(PEERS["compiled_shift"], ConvSpec("conv", channels, 3, 4, Taps.oriented(0.0, 1)))


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", PEERS)
def test_on_a_gpu(name: str, op: str) -> None:
    spec = ConvSpec(op, 16, 14, 14, TAPS["flat" if name.startswith("native") else "three"])
    if PEERS[name].applies(spec) is not None:
        pytest.skip(f"{PEERS[name].applies(spec)}")
    check(PEERS[name], spec, "cuda")


@pytest.mark.parametrize("op", OPS)
def test_who_applies(op: str) -> None:
    def who(taps: Taps, stride: tuple[int, int] = (1, 1), padding_mode: str = "zeros") -> set[str]:
        return {name for name, peer in PEERS.items() if peer.applies(ConvSpec(op, 8, 9, 9, taps, stride=stride, padding_mode=padding_mode)) is None}

    always, native, shifts = {"compiled_gather", "raster"}, {"native", "native_channels_last"}, {"compiled_shift", "compiled_shift_padded"}
    assert who(TAPS["three"]) == always | shifts | {"grouped_raster"}
    assert who(TAPS["flat"]) == who(TAPS["dilated"]) == always | shifts | native
    assert who(TAPS["flat"], padding_mode="circular") == always | shifts | native
    assert who(Taps.oriented(0.0, 21), padding_mode="circular") == always | shifts
    assert who(Taps.oriented(math.pi, 7)) == who(Taps.oriented(math.pi / 2, 7)) == who(Taps.oriented(0.0, 7, anchor="start")) == always | shifts
    assert who(TAPS["three"], stride=(2, 2)) == always | {"grouped_raster"} | (set() if op == "conv_dx" else shifts)
    assert who(TAPS["flat"], (2, 2), "circular") == ({"compiled_gather"} if op == "conv_dx" else always | shifts | native)


@pytest.mark.parametrize("op", ["conv", "conv_dx"])
def test_cudnn_by_name(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(x: Tensor, w: Tensor, padding: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], groups: int, *how: bool) -> Tensor:
        assert how == (True, False, False)  # by timing, not deterministic, no TF32
        return F.conv2d(x, w, None, stride, padding, dilation, groups)

    monkeypatch.setattr(torch.ops.aten, "cudnn_convolution", stand_in, raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "is_available", lambda: True)
    applied = [spec for taps in TAPS.values() for spec in specs(op, taps) if PEERS["native_cudnn"].applies(spec) is None]
    assert len(applied) >= 4
    for spec in applied:
        check(PEERS["native_cudnn"], spec)
    assert PEERS["native_cudnn"].applies(ConvSpec("conv_dw", 5, 6, 9, TAPS["flat"])) is not None


def test_names_are_unique_and_described() -> None:
    everyone = registry.PEERS + floors.FLOORS
    assert len({peer.name for peer in everyone}) == len(everyone)
    assert all(peer.describe and "\n" not in peer.describe for peer in everyone)


def test_channels_last_is_asked_for_and_kept() -> None:
    peer, spec = PEERS["native_channels_last"], ConvSpec("conv", 4, 5, 6, TAPS["flat"])
    x, w = operands(spec)
    result = peer.make(spec, "cpu")(x.contiguous(memory_format=peer.memory_format), w)
    assert peer.memory_format is torch.channels_last
    assert result.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_floors(op: str, stride: tuple[int, int]) -> None:
    spec = ConvSpec(op, 3, 7, 8, TAPS["flat"], stride=stride)
    (floor,) = (floor for floor in floors.FLOORS if floor.applies(spec) is None)
    inputs = operands(spec)
    call = floor.make(spec, "cpu")
    result = call(*inputs)
    if op == "conv_dw":
        assert stride != (1, 1) or torch.allclose(result, (inputs[0] * inputs[1]).sum(), atol=1e-4)
    else:
        assert result.numel() == 2 * 3 * (7 * 8 + spec.out_height * spec.out_width) // 2
        assert stride != (1, 1) or torch.equal(result, inputs[0].flatten())
        assert call(*inputs).data_ptr() == result.data_ptr()  # the target is made once: its page faults are no part of the floor


def test_onednn_is_off_only_inside() -> None:
    before = torch.backends.mkldnn.enabled
    with dense._without_onednn():
        assert not torch.backends.mkldnn.enabled
    assert torch.backends.mkldnn.enabled == before
