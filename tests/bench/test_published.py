"""The adapter of the published kernel, against a stand-in of its extension that computes with our reference."""

from __future__ import annotations

import itertools
import math
import sys
import time
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.sampling import sampled
from tvm_orient.bench.bench import bench
from tvm_orient.bench.peers import published
from tvm_orient.errors import Unsupported
from tvm_orient.evaluate import reference
from tvm_orient.evaluate.machine import time_limit
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps

OPS = ("conv", "conv_dx", "conv_dw")
EIGHT = Taps.oriented(angles_between(8), 7)


def extension(wrong: float = 1.0) -> types.ModuleType:
    """A module with the published one's function: sizes in, three functions out; theta in radians, one for each channel."""

    def get(kind: str, taps: int, stride: int, padding: int, height: int, width: int) -> Any:
        assert (kind, padding) == ("float", taps // 2)

        def spec(op: str, theta: Tensor) -> ConvSpec:
            assert theta.dtype == torch.float32
            return ConvSpec(op, theta.numel(), height, width, Taps.oriented(theta.tolist(), taps), stride=stride)

        def fprop(x: Tensor, w: Tensor, theta: Tensor) -> Tensor:
            return wrong * reference.run(spec("conv", theta), x, w.view(-1, taps)).float()

        def dgrad(dy: Tensor, w: Tensor, theta: Tensor) -> Tensor:
            return wrong * reference.run(spec("conv_dx", theta), dy, w.view(-1, taps)).float()

        def wgrad(dy: Tensor, x: Tensor, theta: Tensor) -> Tensor:
            return wrong * reference.run(spec("conv_dw", theta), x, dy).float().view(-1, 1, 1, taps)

        return types.SimpleNamespace(fprop=fprop, dgrad=dgrad, wgrad=wgrad)

    module = types.ModuleType(published.MODULE)
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]  # what find_spec asks for
    module.get_dwoconv1d_kernel = get  # type: ignore[attr-defined]
    return module


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def put(**how: Any) -> None:
        monkeypatch.setitem(sys.modules, published.MODULE, extension(**how))
        monkeypatch.setattr(published, "_DEVICES", ("cuda", "cpu"))

    return put


def spec(op: str = "conv", side: int = 12, taps: Taps = EIGHT, stride: int = 1, channels: int = 20, **more: Any) -> ConvSpec:
    return ConvSpec(op, channels, side, side, taps, stride=stride, **more)


def test_absent_it_says_so() -> None:
    assert not published.installed()
    assert published.applies(spec()) == "not installed: there is no module dwoconv1d_specialized_kernel"
    (row,) = [row for row in bench([spec()], cpu_device(), batch=1, peers=[published.NAME], repeats=1) if row.method == published.NAME]
    assert row.note.startswith("does not apply: not installed")
    assert row.median_ms is None


@pytest.mark.parametrize(("op", "stride"), sampled(itertools.product(OPS, (1, 2)), pairs=lambda *_: (), once=lambda op, stride: (op, stride)))
def test_the_same_function(op: str, stride: int, install: Callable[..., None]) -> None:
    install()
    problem = spec(op, 16, stride=stride, channels=10)  # ten channels: groups of one and two
    assert published.applies(problem) is None
    rows = bench([problem], cpu_device(), batch=2, peers=[published.NAME], repeats=1, states=["warm"])
    (row,) = [row for row in rows if row.method == published.NAME]
    assert row.checked, row.note
    assert row.median_ms
    assert row.vs_ours


def test_a_wrong_one_gets_no_time(install: Callable[..., None]) -> None:
    install(wrong=1.01)
    (row,) = [row for row in bench([spec()], cpu_device(), batch=1, peers=[published.NAME], repeats=1) if row.method == published.NAME]
    assert row.note.startswith("wrong: off by")
    assert row.median_ms is None


def test_it_runs_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, published.MODULE, extension())
    with pytest.raises(Unsupported, match="cuda only, got cpu"):
        published.make(spec(), "cpu")
    rows = bench([spec()], cpu_device(), batch=1, peers=[published.NAME], repeats=1)
    (row,) = [row for row in rows if row.method == published.NAME]
    assert row.note.startswith("failed: the published kernel runs on cuda only")


def test_a_build_that_fails_is_said(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setattr(sys.modules[published.MODULE], "get_dwoconv1d_kernel", lambda *size: (_ for _ in ()).throw(RuntimeError("no nvcc")))
    with pytest.raises(Unsupported, match=r"does not build .*RuntimeError: no nvcc"):
        published.make(spec(), "cpu")


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (spec(dtype="float16"), "float32 only"),
        (spec(padding_mode="circular"), "zeros only"),
        (spec(taps=Taps.from_offsets([[[0, 0], [0, 1]]])), "odd number"),
        (ConvSpec("conv", 20, 12, 12, EIGHT, stride=(1, 2)), "one stride"),
        (spec(stride=3), "one stride"),
        (spec(side=13, stride=2), "divides"),
        (spec(taps=Taps.oriented(0.3, 7, dilation=2)), "centred lines"),
        (spec(taps=Taps.oriented(0.3, 7, anchor="start")), "centred lines"),
        (spec(taps=Taps.from_offsets([[[0, 1], [2, 0], [0, 0]]])), "centred lines"),
        (spec(side=8, taps=Taps.oriented(0.0, 65)), "loads 64 of the 65 weights"),
        # sizes at which it was found to be wrong, or to fault
        (spec("conv", 45, Taps.oriented(0.3, 31)), "known to be wrong"),
        (spec("conv_dx", 45, Taps.oriented(0.3, 31)), "known to be wrong"),
        (spec("conv_dw", 13), "known to be wrong"),
        (spec("conv_dw", 66), "known to be wrong"),
        (spec("conv_dw", 74), "known to be wrong"),
    ],
)
def test_what_it_cannot_compute_is_said(problem: ConvSpec, reason: str, install: Callable[..., None]) -> None:
    install()
    assert reason in (published.applies(problem) or "it applies")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("taps", [7, 31])
def test_the_sizes_of_its_own_table_are_right(op: str, taps: int, install: Callable[..., None]) -> None:
    install()
    for side in (14, 28, 56):
        assert published.applies(spec(op, side, Taps.oriented(angles_between(8), taps), channels=512)) is None


def test_angles_have_the_taps() -> None:
    for degrees in (0, 22.5, 90, 135, 209.16, 325.78, -30):
        for size in (3, 7, 31):
            taps = Taps.oriented([math.radians(degrees)], size)
            found = published.angles(taps)
            assert found is not None
            assert Taps.oriented(found, size) == taps


def _slow(*operands: Tensor) -> None:
    for _ in range(500):
        time.sleep(0.01)


def test_a_time_limit() -> None:
    with pytest.raises(TimeoutError, match=r"no result within 0\.05 s"), time_limit(0.05):
        _slow()
    with time_limit(None), time_limit(30.0):
        pass
    time.sleep(0.06)


def test_a_peer_that_takes_too_long_gets_no_time(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    slow = types.SimpleNamespace(fprop=_slow)
    monkeypatch.setattr(sys.modules[published.MODULE], "get_dwoconv1d_kernel", lambda *size: slow)
    rows = bench([spec()], cpu_device(), batch=1, peers=[published.NAME], repeats=1, patience=0.1)
    assert [row.note for row in rows if row.method == published.NAME] == ["failed: TimeoutError: no result within 0.1 s"]
