"""A layer that is put together of parts is the layer: the results on a CPU, and the machine code on a GPU, of its parts merged and compiled as one."""

from __future__ import annotations

import dataclasses
import itertools
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm_ffi

from tests.support.helpers import EIGHT, OPS, call, compiled, line, nvrtc_missing, operands, space_of, spec_of
from tests.support.machine_code import check_machine, machines
from tests.support.sampling import sampled
from tvm_orient.codegen.cuda import ptx
from tvm_orient.codegen.cuda.cuda_text import definitions
from tvm_orient.codegen.names import kernel_names
from tvm_orient.compiler import layer_plan, lower
from tvm_orient.compiler.assemble import assembled, layer_kernels, layer_source
from tvm_orient.compiler.layer import compile_layer
from tvm_orient.compiler.layer_plan import LayerPlan, compiled_parts, planned
from tvm_orient.compiler.library import cuda_source
from tvm_orient.compiler.parts import CompiledPart, placed_parts
from tvm_orient.errors import BuildFailed
from tvm_orient.kernels import layer_build
from tvm_orient.problem.device import Device, arch_device, cpu_device
from tvm_orient.problem.spec import DTYPES, LAYOUTS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.sass import cubin
from tvm_orient.schedules.choices import default_choices
from tvm_orient.toolchain import nvrtc
from tvm_orient.toolchain.tvm import target

compiles = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
CPU, GPU = cpu_device(), arch_device("sm_90a")
GELU = {"bias": True, "activation": "gelu"}
LAYERS = {  # channels, height, width, taps, stride, padding mode
    "one angle": (3, 6, 7, line(22.5, k=5)),
    "even groups": (8, 6, 8, line(0, 45, k=5)),
    "13 channels in 8 angles": (13, 6, 7, Taps.oriented(EIGHT, 5)),
    "fewer channels than angles": (3, 5, 7, Taps.oriented(EIGHT, 5)),
    "repeated angles": (9, 6, 7, line(90, 0, 90, 45, 0, k=5)),
    "stride 2": (7, 9, 7, line(22.5, 90, 135, k=5), 2),
    "circular": (5, 6, 7, line(45, 112.5, k=5), 1, "circular"),
    "circular, stride 2x1": (4, 7, 6, line(0, 67.5, 90, k=3), (2, 1), "circular"),
}
CASES = sampled(
    itertools.product(LAYERS, OPS, LAYOUTS, DTYPES),
    pairs=lambda name, op, layout, dtype: (op, layout),
    once=lambda name, op, layout, dtype: (name, dtype),
)


def layer(name: str, op: str, layout: str = "nchw", dtype: str = "float32", **epilogue: Any) -> ConvSpec:
    channels, height, width, taps, *rest = LAYERS[name]
    stride, padding = [*rest, *(1, "zeros")[len(rest) :]]
    return dataclasses.replace(spec_of(op, channels, height, width, taps, stride, padding, dtype, layout), **epilogue)


def put_together(spec: ConvSpec, given: Any, parts: Any = None) -> torch.Tensor:
    """What a layer's library computes here."""
    with tempfile.TemporaryDirectory() as folder:
        made = compile_layer(spec, CPU, default_choices(spec, CPU), Path(folder) / "kernel.so", parts)
        function: Callable[..., None] = tvm_ffi.load_module(str(Path(folder) / "kernel.so")).get_function("main")
        return call(spec, function, given, made.workspace)


# ---- on a CPU -----------------------------------------------------------------------------------


def check(spec: ConvSpec) -> None:
    """Bit by bit the results of the parts merged into one module, for a batch of 1 and of 3."""
    module = lower.scheduled(spec, CPU, default_choices(spec, CPU))
    merged, space = compiled(module, target(CPU)), space_of(spec, module)
    parts = compiled_parts(spec, CPU, default_choices(spec, CPU))
    for batch in (1, 3):
        given = operands(spec, batch, seed=batch)
        assert torch.equal(put_together(spec, given, parts), call(spec, merged, given, space)), f"{spec} N={batch}"


@pytest.mark.parametrize(("name", "op", "layout", "dtype"), CASES)
def test_results_are_those_of_the_layer_compiled_as_one(name: str, op: str, layout: str, dtype: str) -> None:
    check(layer(name, op, layout, dtype))


@pytest.mark.parametrize(
    ("name", "layout", "dtype"),
    [("13 channels in 8 angles", "nchw", "float32"), pytest.param("repeated angles", "nhwc", "bfloat16", marks=pytest.mark.long)],
)
def test_an_epilogue_is_part_of_every_part(name: str, layout: str, dtype: str) -> None:
    check(layer(name, "conv", layout, dtype, **GELU))


def test_a_batch_of_none() -> None:
    spec = layer("even groups", "conv_dw")
    assert not put_together(spec, operands(spec, 0)).any()


# ---- parts are shared ---------------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "cuda"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_layer_whose_angles_are_turned_has_the_same_parts(op: str, layout: str, device: Device) -> None:
    """Where its groups are even: 32 channels each are whole vectors in every layout."""
    angles = [180 * i / 8 for i in range(8)]
    layers = [spec_of(op, 256, 7, 7, line(*angles[turn:], *angles[:turn], k=5), 1, "zeros", "float32", layout) for turn in range(8)]
    parts = [{one.part for one in placed_parts(spec, default_choices(spec, device), device)} for spec in layers]
    assert all(one == parts[0] for one in parts)
    assert len(parts[0]) == len({part for _, _, part in layers[0].parts()}), "each once"


@pytest.mark.parametrize("device", [CPU, GPU], ids=["cpu", "cuda"])
def test_a_repeated_angle_is_compiled_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, made = spec_of("conv", 64, 4, 4, line(0, 90, 0, 90, k=3)), []

    def counted(part: Any, device: Device) -> CompiledPart:
        made.append(part)
        return CompiledPart((), None, b"", "")

    monkeypatch.setattr(layer_plan, "compile_part", counted)
    plan = planned(spec, device, default_choices(spec, device))
    assert len(plan.compiled) == 4
    assert len(made) == len(set(made)) == 2


def test_a_part_serves_another_layer() -> None:
    """A layer of parts that were all compiled for other layers computes what its own would."""
    spec = layer("even groups", "conv")
    spec = dataclasses.replace(spec, channels=64)
    others = [dataclasses.replace(spec, taps=taps) for taps in (line(45, 0, k=5), line(90, 45, k=5))]
    parts = {part: one for other in others for part, one in compiled_parts(other, CPU, default_choices(other, CPU)).items()}
    given = operands(spec, 2)
    assert torch.equal(put_together(spec, given, parts), put_together(spec, given))


# ---- on a GPU -----------------------------------------------------------------------------------


def plan_of(spec: ConvSpec) -> LayerPlan:
    return planned(spec, GPU, default_choices(spec, GPU))


@compiles
@pytest.mark.parametrize(
    ("op", "layout", "dtype"),
    [("conv", "nchw", "float32"), ("conv_dx", "nhwc", "float16"), ("conv_dw", "nchw", "float32"), ("conv_dw", "nhwc", "bfloat16")],
)
def test_machine_code_of_one_angle_is_that_of_its_source(op: str, layout: str, dtype: str) -> None:
    spec = layer("one angle", op, layout, dtype)
    plan = plan_of(spec)
    source = cuda_source(lower.scheduled(spec, GPU, default_choices(spec, GPU)), GPU)
    facts = {one.name: one for one in cubin.kernels(assembled(plan))}
    whole = {one.name: one for one in cubin.kernels(nvrtc.compile_cubin(source, GPU.arch))}
    assert {name: one.code for name, one in facts.items()} == {name: one.code for name, one in whole.items()}
    for one in ("registers", "shared", "parameters"):
        assert [getattr(facts[name], one) for name in whole] == [getattr(found, one) for found in whole.values()]


@compiles
@pytest.mark.parametrize("op", OPS)
def test_launches_of_a_layer_are_those_of_its_parts(op: str) -> None:
    spec = layer("13 channels in 8 angles", op)
    plan = plan_of(spec)
    kernels = layer_kernels(plan)
    assert len(kernels) == len(plan.compiled[0].launches)
    assert [one.name for one in definitions(layer_source(plan))] == [kernel.name for kernel in kernels]
    for index, kernel in enumerate(kernels):
        parts = [part.launches[index] for part in plan.compiled]
        assert kernel.threads == max(part.threads for part in parts)
        assert set(kernel.names) == {name for part in parts for name in part.names}
        for n in (0, 1, 5):
            assert kernel.blocks(n) == sum(part.each * n + part.more for part in parts)


@compiles
@pytest.mark.parametrize(("op", "epilogue"), [*((op, {}) for op in OPS), ("conv", GELU)])
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.long)])
def test_the_host_passes_what_the_kernels_take(op: str, epilogue: dict[str, Any], dtype: str, tmp_path: Path) -> None:
    """A layer's library is made only if TVM's order is theirs."""
    spec = layer("repeated angles", op, dtype=dtype, **epilogue)
    layer_build.compiled(spec, GPU, default_choices(spec, GPU), tmp_path, sources=True)
    assert (tmp_path / "kernel.so").stat().st_size
    plan = plan_of(spec)
    assert [(one.name, one.names, one.bound) for one in definitions(layer_source(plan))] == [
        (kernel.name, kernel.names, kernel.threads) for kernel in layer_kernels(plan)
    ]
    assert {one.name for one in cubin.kernels((tmp_path / "kernel.cubin").read_bytes())} == {kernel.name for kernel in layer_kernels(plan)}
    assert (tmp_path / "kernel.cu").read_text().count("// channels ") == 5
    known = kernel_names(op, bias=spec.bias)
    assert all(set(kernel.names) <= {*known, "n"} for kernel in layer_kernels(plan))


@compiles
def test_parameters_in_another_order_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = layer("even groups", "conv")
    real = layer_kernels(plan_of(spec))
    turned = [dataclasses.replace(kernel, names=kernel.names[::-1]) for kernel in real]
    monkeypatch.setattr("tvm_orient.compiler.assemble.layer_kernels", lambda _: turned)
    with pytest.raises(BuildFailed, match="the host's code must pass what the kernels take"):
        compile_layer(spec, GPU, default_choices(spec, GPU), tmp_path / "kernel.so")


@compiles
def test_machine_code_of_layers_computes_them() -> None:
    """Groups that are uneven, that share a block's shared memory, that have fewer threads than others, and workspaces side by side."""
    names = [("13 channels in 8 angles", "conv"), ("repeated angles", "conv_dw"), ("stride 2", "conv_dx")]
    specs = {f"case{i}": layer(name, op) for i, (name, op) in enumerate(names)}
    for machine in machines({name: (spec, default_choices(spec, GPU)) for name, spec in specs.items()}, GPU.arch).values():
        check_machine(machine, ("ascending", "random"))


@compiles
def test_ptx_that_is_not_understood_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is not found in its PTX would be one launch too few."""
    monkeypatch.setattr(ptx, "_ENTRY", re.compile("()()()no kernel begins so"))
    spec = layer("one angle", "conv")
    with pytest.raises(BuildFailed, match="each of 1 nests must become a kernel, got 1 in CUDA source and 0 in PTX"):
        plan_of(spec)
