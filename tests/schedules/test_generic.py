"""The generic kernels: any size, any taps, told at run time; and when a layer is given to them."""

from __future__ import annotations

import itertools
import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tvm_orient as to
from tests.support.cases import CPU_CASES, CUDA_CASES
from tests.support.helpers import EIGHT, OPS, assert_close, call, check_generic, generic_function, line, nvrtc_missing, operands, spec_of
from tests.support.sampling import sampled
from tvm_orient import env
from tvm_orient.compiler import library, lower
from tvm_orient.kernels import build, build_key, cache, compile_process, manifest, resolve
from tvm_orient.problem import cpus, generic_args
from tvm_orient.problem.device import arch_device, cpu_device, own_cpu
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import serving
from tvm_orient.schedules import choices

CPU, GPU = cpu_device(), arch_device("sm_90a")
LONG: tuple[Any, ...] = (3, 40, 37, line(0, 22.5, 90, k=511))
FAR = Taps.from_offsets([[[32768, 0], [0, -32768], [1, 1]]])
MORE = {
    "K=511": LONG,
    "K=511, circular": (*LONG, 1, "circular"),
    "two bands and a rest": (2, 71, 9, line(67.5, k=31)),
    "bands, stride 3": (2, 200, 10, line(112.5, k=31), (3, 2)),
    "a row longer than what is read of it": (1, 2, 9, Taps.from_offsets([[[0, -8]]]), 1, "zeros", "float64"),
    "eight angles, 13 channels": (13, 20, 33, Taps.oriented(EIGHT, 15)),
    "taps as far as they go": (2, 5, 6, FAR),
    "taps as far as they go, circular": (2, 5, 6, FAR, 1, "circular"),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", [*CPU_CASES, *MORE])
def test_cpu(op: str, case: str) -> None:
    check_generic(spec_of(op, *{**CPU_CASES, **MORE}[case]), "cpu")


# one row or column more than each path takes at a time: whole vectors and what is left of them, pairs of vectors, patches, halves of a stride
@pytest.mark.parametrize("stride", [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("op", OPS)
def test_every_size_on_a_cpu(op: str, mode: str, stride: tuple[int, int]) -> None:
    taps = line(22.5, 112.5, k=9)
    for size in range(1, 41):
        check_generic(spec_of(op, 2, 3, size, taps, stride, mode), "cpu", (1,))
        check_generic(spec_of(op, 2, size, 5, taps, stride, mode), "cpu", (1,))


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "float32"])
@pytest.mark.parametrize("stride", [(1, 1), (1, 2)])
@pytest.mark.parametrize("op", OPS)
def test_every_width_of_a_dtype_on_a_cpu(op: str, stride: tuple[int, int], dtype: str) -> None:
    for width in range(1, 41):
        check_generic(spec_of(op, 2, 3, width, line(22.5, 112.5, k=9), stride, "zeros", dtype), "cpu", (1,))


@pytest.mark.parametrize("height", [63, 64, 65, 72, 73, 129])
@pytest.mark.parametrize("op", OPS)
def test_bands_on_a_cpu(op: str, height: int) -> None:
    """As many rows as are staged at once, a row more, and a few; near bands and, with a wide halo, far ones."""
    for k, width in ((5, 9), (31, 150)):
        check_generic(spec_of(op, 1, height, width, line(67.5, k=k)), "cpu", (1,))


@pytest.mark.parametrize("batch", range(1, 10))
def test_every_batch_of_a_weight_gradient_on_a_cpu(batch: int) -> None:
    """A task sums several images, and the last task what is left of them."""
    check_generic(spec_of("conv_dw", 3, 6, 7, line(0, 45, k=7)), "cpu", (batch,))


@pytest.mark.parametrize(
    ("op", "mode", "stride"),
    sampled(
        itertools.product(OPS, ("zeros", "circular"), ((1, 1), (2, 1), (1, 2), (2, 2), (3, 3))),
        pairs=lambda op, mode, stride: (op, stride),
        once=lambda op, mode, stride: (mode,),
    ),
)
def test_nothing_of_an_earlier_call_is_read_on_a_cpu(op: str, mode: str, stride: tuple[int, int]) -> None:
    """A call of NaN, on a larger plane, leaves NaN in the memory that the next call stages in."""
    function = generic_function("cpu", op, mode, "float32")

    def result(spec: ConvSpec, given: list[torch.Tensor]) -> torch.Tensor:
        plan = generic_args.generic_args(spec, "cpu", generic_args.vector_lanes(CPU, spec.sums))
        return call(spec, function, given, plan.workspace, plan)

    for size in (3, 8, 16):  # whole patches too, whose last row reads the last row of the stage
        for taps in (line(45, k=31), line(135, k=31), line(22.5, 67.5, k=31)):
            larger, spec = spec_of(op, 4, 40, 40, taps, 1, mode), spec_of(op, 4, size, size, taps, stride, mode)
            result(larger, [torch.full_like(tensor, math.nan) for tensor in operands(larger, 4)])
            given = list(operands(spec, 4))
            assert_close(result(spec, given), spec, given)


@pytest.mark.parametrize(("op", "level"), sampled(itertools.product(OPS, cpus.LEVELS), pairs=lambda *_: (), once=lambda op, level: (op, level)))
def test_levels_of_a_cpu(op: str, level: str) -> None:
    """Vectors of 16 and of 32 bytes, with 16 registers for them and with 32."""
    if not cpus.is_x86() or set(cpus.LEVELS[level]).difference(own_cpu().features):
        pytest.skip(f"this CPU does not run {level}")
    for stride, mode in ((1, "zeros"), (2, "zeros"), (1, "circular")):
        for size in (1, 4, 7, 9, 17, 40):
            check_generic(spec_of(op, 2, size, size + 1, line(22.5, 90, k=9), stride, mode), "cpu", (1,), level)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", [*CUDA_CASES, *MORE])
def test_cuda(op: str, case: str) -> None:
    check_generic(spec_of(op, *{**CUDA_CASES, **MORE}[case]), "cuda", (2,))


@pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
@pytest.mark.parametrize(
    "arch",
    [
        "sm_75",
        "sm_90a",
        "sm_120",
        *(pytest.param(arch, marks=pytest.mark.long) for arch in ("sm_80", "sm_88", "sm_89", "sm_100a", "sm_103a", "sm_110a", "sm_121a")),
    ],
)
def test_cuda_compiles_without_spills(arch: str) -> None:
    from tvm_orient.compiler.predict import together
    from tvm_orient.sass import cubin
    from tvm_orient.toolchain import nvrtc

    device, specs = arch_device(arch), {op: spec_of(op, 1, 1, 1, line(0, k=1)) for op in OPS}
    sources = {op: library.cuda_source(lower.scheduled(spec, device, choices.generic_choices(spec, device)), device) for op, spec in specs.items()}
    kernels = cubin.kernels(nvrtc.compile_cubin(together(sources), arch))
    assert sorted(kernel.name for kernel in kernels) == ["conv_dw_kernel", "conv_dw_kernel_1", "conv_dx_kernel", "conv_kernel"]
    assert all(kernel.spills == 0 for kernel in kernels)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("op", OPS)
def test_a_cuda_kernel_takes_operands_alone(op: str, dtype: str) -> None:
    """What a thread sums in is its own. TVM hands a buffer that is made outside the loop over threads to all of them, as one more operand."""
    spec, device = spec_of(op, 1, 1, 1, line(0, k=1), dtype=dtype), arch_device("sm_90a")
    source = library.cuda_source(lower.scheduled(spec, device, choices.generic_choices(spec, device)), device)
    wanted = {"x", "dy", "table", "part", "dw"} if op == "conv_dw" else {"source", "w", "table", "out"}
    assert set(re.findall(r"\* __restrict__ (\w+)_ptr", source)) == wanted


def test_one_kernel_serves_every_size() -> None:
    specs = [spec_of("conv", c, h, w, line(45, k=k)) for c, h, w, k in ((3, 8, 9, 5), (5, 40, 7, 9))]
    kernels = [serving.load(spec, CPU, choices.generic_choices(spec, CPU)) for spec in specs]
    assert kernels[0].path == kernels[1].path
    for kernel, spec in zip(kernels, specs, strict=True):
        for batch in (0, 1, 3):
            given = operands(spec, batch)
            assert_close(kernel(*given), spec, given)


def test_a_layer_that_no_template_serves_runs_on_it(caplog: pytest.LogCaptureFixture) -> None:
    """K=301 at four angles, forward and backward, through the public function."""
    taps = line(0, 45, 90, 135, k=301)
    x, w = torch.randn(2, 6, 20, 21, requires_grad=True), torch.randn(6, 301, requires_grad=True)
    with caplog.at_level(logging.INFO, "tvm_orient"):
        y = to.tap_conv2d(x, w, taps)
        y.backward(dy := torch.randn_like(y))
        to.tap_conv2d(x, w, taps)
    assert caplog.text.count("conv-c6h20w21-s1-zeros-float32-nchw-k301a0_45_90_135 runs on the generic kernel") == 1
    for op, result, given in (("conv", y, (x, w)), ("conv_dx", x.grad, (dy, w)), ("conv_dw", w.grad, (x, dy))):
        assert result is not None
        assert_close(result.detach(), spec_of(op, 6, 20, 21, taps), [t.detach() for t in given])


def test_one_angle_that_needs_it_takes_the_layer_with_it() -> None:
    """Each line of a long kernel is alone too long on a GPU only where it lies inside the plane."""
    spec = spec_of("conv", 64, 224, 224, line(0, 90, k=301))
    parts = resolve.explain(spec, GPU)
    assert {part.choice.template for part in parts} == {"generic"}
    assert all("unrolls at most" in dict(part.tried)["default"] for part in parts)
    key = build_key.build_key(spec, GPU, [part.choice for part in parts])
    assert key.spec == "conv-generic-zeros-float32-nchw"
    assert len(key.choices) == 1


def test_where_compiling_is_off_it_stands_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path))
    spec = spec_of("conv", 3, 11, 12, line(45, k=5))
    given = operands(spec, 2)
    serving.forget()
    monkeypatch.setenv("TVM_ORIENT_BUILD", "0")
    with pytest.raises(to.EnvironmentProblem, match=r"no kernel for conv-c3h11w12"):
        to.tap_conv2d(*given, spec.taps)
    path = build.build(spec, CPU, choices.generic_choices(spec, CPU))
    assert json.loads((path.parent / manifest.HOW).read_text())["key"]["spec"] == generic_args.key(spec)
    assert env.building_call() == 0
    assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    monkeypatch.setenv("TVM_ORIENT_BUILD", "1")
    build.build(spec, CPU)
    monkeypatch.setenv("TVM_ORIENT_BUILD", "0")
    serving.forget()
    assert serving.kernel(spec, CPU).path != path, "its own kernel comes first"
    serving.forget()


def test_a_band_too_large_for_32_bits() -> None:
    spec = ConvSpec("conv", 1, 2**20, 2**20, line(90, k=4095))
    with pytest.raises(to.Unsupported, match=r"a band of conv-c1h1048576w1048576.*cut the plane into tiles"):
        generic_args.generic_args(spec, "cpu", 16)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_plans_are_int32_and_complete(kind: str, mode: str) -> None:
    for op in OPS:
        plan = generic_args.generic_args(spec_of(op, 2, 5, 6, FAR, 2, mode), kind, 8)
        assert all(table.dtype == np.int32 and table.flags.c_contiguous for table in plan.tables)
        assert all(type(number) is int and abs(number) < 2**31 for number in plan.numbers)
        assert (plan.workspace[1] > 0) == (op == "conv_dw")


# ---- the first calls of a problem ---------------------------------------------------------------


@pytest.fixture
def fourth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """An empty cache, and kernels of their own from the fourth call on."""
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TVM_ORIENT_BUILD", "4")
    monkeypatch.setattr(compile_process, "_LOWEST", 0)  # beside other tests the lowest priority is none
    serving.forget()
    yield tmp_path
    serving.forget()


def built(folder: Path) -> list[str]:
    return sorted(entry.key["spec"] for entry in cache.KernelCache(folder).entries())


def test_a_new_problem_runs_at_once_and_is_built_when_it_stays(fourth: Path, caplog: pytest.LogCaptureFixture) -> None:
    specs = [spec_of("conv", 3, 5, width, line(45, k=5)) for width in (7, 8, 9)]
    with caplog.at_level("INFO", logger="tvm_orient.runtime.serving"):
        for spec in specs:
            given = operands(spec, 2)
            assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert built(fourth) == [generic_args.key(specs[0])], "one kernel for all of them"
    assert [record.message.partition(" ")[0] for record in caplog.records] == [spec.key for spec in specs], "each says so once"
    assert all("at call 4 or by" in record.message and "tvm-orient tune" in record.message for record in caplog.records)
    caplog.clear()
    results = [to.tap_conv2d(*given, specs[-1].taps) for _ in range(2)]  # calls 2 and 3
    assert to.compiling().pending == 0
    to.tap_conv2d(*given, specs[-1].taps)  # the fourth has it begun
    assert to.compiling().wait(60)
    results += [to.tap_conv2d(*given, specs[-1].taps) for _ in range(2)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[2], results[3])
    assert built(fourth) == [specs[-1].key, generic_args.key(specs[0])]
    assert_close(results[-1], specs[-1], given)
    assert serving.kernel(specs[-1], CPU).path == build.build(specs[-1], CPU)


def test_warmup_makes_one_at_once(fourth: Path) -> None:
    spec = spec_of("conv", 3, 5, 7, line(45, k=5))
    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)
    to.warmup(spec)
    assert spec.key in built(fourth)
    own = serving.kernel(spec, CPU)(*given)
    assert torch.equal(to.tap_conv2d(*given, spec.taps), own)


def test_deterministic_torch_never_changes_kernels(fourth: Path) -> None:
    spec = spec_of("conv", 3, 5, 7, line(45, k=5))
    torch.use_deterministic_algorithms(True)
    try:
        to.tap_conv2d(*operands(spec, 2), spec.taps)
    finally:
        torch.use_deterministic_algorithms(False)
    assert built(fourth) == [spec.key]


def test_deterministic_torch_waits_for_the_kernel_of_a_problem_that_was_called_before(fourth: Path) -> None:
    """Swapped in at some time or other, it would change the bits of one call or another from run to run."""
    spec = spec_of("conv", 3, 5, 7, line(45, k=5))
    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)
    assert spec.key not in built(fourth)
    torch.use_deterministic_algorithms(True)
    try:
        results = [to.tap_conv2d(*given, spec.taps) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert spec.key in built(fourth)
    own = serving.kernel(spec, CPU)(*given)
    assert all(torch.equal(result, own) for result in results)


def test_a_kernel_that_cannot_be_built_leaves_the_generic_one(fourth: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_of("conv", 3, 5, 7, line(45, k=5))
    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)

    def refuse(*_: object) -> None:
        raise to.BuildFailed("no")

    monkeypatch.setattr(serving, "acquire", refuse)
    for _ in range(8):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
        assert to.compiling().wait(60)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [f"{spec} stays on the generic kernel: no"]


@pytest.mark.parametrize("text", ["", "two", "-1", "1.5"])
def test_what_the_variable_may_hold(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TVM_ORIENT_BUILD", text)
    with pytest.raises(to.InvalidArgument, match="TVM_ORIENT_BUILD must be a whole number >= 0"):
        env.building_call()


def test_warmup_of_a_model(fourth: Path) -> None:
    """Forward and backward once, every kernel built, and nothing of the model changed."""
    model = torch.nn.Sequential(
        to.nn.OrientedConv2d(4, 3, directions=2), torch.nn.BatchNorm2d(4), torch.nn.Dropout(), to.nn.OrientedConv2d(4, 3, directions=2, stride=2)
    )
    x, before = torch.randn(2, 4, 5, 6), {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    to.warmup(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    made = [key.partition("-c4h5w6-")[0] for key in built(fourth) if "-c4h5w6-" in key]
    assert made == ["conv+bias", "conv+bias", "conv_dw", "conv_dw", "conv_dx"], "no gradient of the input was asked for"
    assert env.building_call() == 4
    with torch.no_grad():
        to.warmup(model.eval(), torch.randn(2, 4, 9, 9))
    assert sum("-c4h9w9-" in key for key in built(fourth)) == 2


def test_warmup_of_a_function_and_of_something_else(fourth: Path) -> None:
    weight = torch.randn(4, 3)
    to.warmup(lambda x: to.oriented_conv2d(x, weight, 0.5), torch.randn(1, 4, 5, 5, requires_grad=True))
    assert [ConvSpec.op_of_key(key) for key in built(fourth) if "-c4h5w5-" in key] == ["conv", "conv_dx"]
    with pytest.raises(to.InvalidArgument, match="warmup takes a ConvSpec, a list of them, or a function or module with its inputs, got 'conv'"):
        to.warmup("conv")
