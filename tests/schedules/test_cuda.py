"""Every CUDA template in its serial form on the CPU against the oracle, and the source that it becomes."""

from __future__ import annotations

import dataclasses
import functools
import random
import re
from typing import Any

import pytest
import torch

from tests.support.blocks import Blocks, divergent, launches
from tests.support.helpers import (
    EIGHT,
    OPS,
    PARAMETERS,
    call,
    check_blocks,
    check_serial,
    covering,
    fitted,
    line,
    of_kind,
    operands,
    spec_of,
    variations,
    with_template,
)
from tvm_orient.compiler import library, lower
from tvm_orient.perf_model import block_cost, gpu_specs
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import choices as schedules_choices
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import ONE_TILE, Template
from tvm_orient.schedules.choices import Choice
from tvm_orient.schedules.default import CLOSE

GPU = arch_device("sm_90a")
SMALL_GPU = arch_device("sm_89")  # 99 KiB of shared memory a block
TEMPLATES = of_kind("cuda")
GRID = [[[h, w] for h in range(-7, 8) for w in range(-7, 8)]]
FREE = Taps.from_offsets([[[0, 1], [0, 1], [-2, 0], [1, -3], [9, -8]]])
# name: channels, height, width, taps, stride, padding; small, thin and odd planes first, then those of the networks, then the
# sizes where the published kernels fail (reference/oriented1d.md 3.6)
CASES: dict[str, tuple[Any, ...]] = {
    "one pixel": (3, 1, 1, line(0, 45, k=3)),
    "one pixel, circular": (2, 1, 1, line(45, k=7), 1, "circular"),
    "one row": (3, 1, 20, line(0, 90, k=7)),
    "one column": (3, 13, 1, line(22.5, 90, k=7)),
    "K=1": (2, 5, 6, line(0, k=1)),
    "thin": (2, 3, 57, line(22.5, k=15)),
    "tall": (2, 57, 3, line(112.5, k=15)),
    "uneven groups": (5, 9, 10, line(0, 45, 135, k=5)),
    "fewer channels than groups": (3, 8, 9, Taps.oriented(EIGHT, 7)),
    "odd": (3, 9, 13, line(22.5, 112.5, k=9)),
    "stride 2": (3, 14, 14, line(45, 90, k=7), 2),
    "stride 2x1": (3, 9, 12, line(22.5, 90, k=7), (2, 1)),
    "stride 3x2": (3, 11, 10, line(0, 67.5, k=7), (3, 2)),
    "stride over the plane": (2, 4, 3, line(45, k=5), (5, 4)),
    "circular": (3, 9, 10, line(22.5, 90, k=15), 1, "circular"),
    "circular, stride 2": (2, 8, 10, line(45, k=7), 2, "circular"),
    "circular, ragged stride": (2, 9, 7, line(22.5, k=7), (3, 2), "circular"),
    "free taps": (2, 6, 7, FREE),
    "no live tap": (2, 3, 4, Taps.from_offsets([[[3, 0], [0, 4]]])),
    "anchor start, dilated": (2, 10, 11, Taps.oriented([0.4], 4, dilation=2, anchor="start")),
    "7x7": (16, 7, 7, line(22.5, k=31)),
    "14x14": (8, 14, 14, line(45, k=31)),
    "28x28": (4, 28, 28, line(67.5, k=7)),
    "28x28, K=31": (4, 28, 28, line(135, k=31)),
    "56x56": (2, 56, 56, line(157.5, k=31)),
    "B3: 66x66, K=7": (1, 66, 66, line(22.5, k=7)),
    "B3: 46x46, K=31": (1, 46, 46, line(45, k=31)),
    "B3: 45x45, K=31": (1, 45, 45, line(67.5, k=31)),
    "B4: 112x112, stride 2, 90 degrees, K=31": (1, 112, 112, line(90, k=31), 2),
    "B4: 112x112, stride 2, 90 degrees, K=15": (1, 112, 112, line(90, k=15), 2),
    "B4: 152x152, stride 2": (1, 152, 152, line(112.5, k=15), 2),
    "B5: K=63 on 7x7": (2, 7, 7, line(67.5, k=63)),
    "B6: 13x13": (2, 13, 13, line(45, k=7)),
}
# each is built once for every value of every knob
RAGGED: tuple[Any, ...] = (4, 9, 12, line(22.5, k=5))
WRAPPED: tuple[Any, ...] = (4, 8, 10, line(67.5, k=5), 2, "circular")
SWEEPS = [(t, fitted(t, spec_of(op, *(WRAPPED if op == "conv_dx" else RAGGED)))) for t in TEMPLATES for op in t.ops]
FIRST = ["odd", "stride 3x2", "circular, ragged stride", "fewer channels than groups", "7x7", "B5: K=63 on 7x7", "one pixel"]
NETWORKS = [
    spec_of(op, channels, size, size, Taps.oriented([EIGHT[i] for i in (0, 1, 3, 6)], k), stride)
    for op in OPS
    for channels, size in [(64, 224), (96, 56), (384, 14), (768, 7), (10, 115)]
    for k in ((7, 31, 63) if size == 14 else (7, 31))
    for stride in (1, 2)
]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", CASES)
def test_default(op: str, case: str) -> None:
    check_serial(spec_of(op, *CASES[case]), batches=(1, 3) if CASES[case][1] < 20 else (2,))


@pytest.mark.parametrize("case", FIRST)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_default_of_each_template(template: Template, case: str) -> None:
    """Those that are not the first choice work as well."""
    for op in template.ops:
        spec = fitted(template, spec_of(op, *CASES[case]))
        choices = with_template(template, spec, GPU)
        if choices is not None and choices != schedules_choices.default_choices(spec, GPU):  # test_default has the first choice
            check_serial(spec, choices, batches=(2,))


@pytest.mark.parametrize(("template", "spec"), SWEEPS, ids=lambda v: v.name if isinstance(v, Template) else v.key)
def test_every_knob(template: Template, spec: ConvSpec) -> None:
    """Each value of each knob, several at once; and a reason for every step from the default that is none."""
    tried, default = covering(template, spec, GPU), template.default(spec, GPU)
    for decisions in tried:
        check_serial(spec, [Choice.of(template, decisions)], batches=(2,))
    for decisions, reason in variations(template, spec, GPU):
        changed = next(name for name in decisions if decisions[name] != default[name])
        assert reason is None or reason.strip()
        assert reason is not None or any(one[changed] == decisions[changed] for one in tried)
    assert tried or not any(len(values) > 1 for values in template.knobs(spec, GPU).values())


@pytest.mark.parametrize(("template", "op"), [(t, op) for t in TEMPLATES for op in t.ops], ids=lambda v: v if isinstance(v, str) else v.name)
def test_decisions_drawn_at_random(template: Template, op: str) -> None:
    """What tuning may propose: all knobs away from the default at once."""
    spec, rng = fitted(template, spec_of(op, 8, 14, 18, line(45, k=9), 1 if op == "conv" else 2)), random.Random(0)
    drawn = 0
    while drawn < 2:
        decisions = {name: rng.choice(values) for name, values in template.knobs(spec, GPU).items()}
        if template.invalid(spec, GPU, decisions) is None:
            check_serial(spec, [Choice.of(template, decisions)], batches=(2,))
            drawn += 1


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_the_default_is_always_valid(template: Template) -> None:
    device, served = SMALL_GPU, 0
    for spec in [spec_of(op, *case) for op in OPS for case in CASES.values()] + NETWORKS:
        for _, _, part in fitted(template, spec).parts():
            if template.declines(part, device) is None:
                served += 1
                default = template.default(part, device)
                assert template.invalid(part, device, default) is None, (part, default)
                assert all(type(value) is int for value in default.values())
    assert served > 60


def test_the_reasons_of_shared_patch() -> None:
    template = registry.find("shared_patch")
    spec = spec_of("conv", 64, 56, 56, line(45, k=31))
    default = {**template.default(spec, GPU), "collect": 0}
    assert "threads, at most 1024" in str(template.invalid(spec, GPU, {**default, "planes": 16, "row_patches": 14, "patch_w": 1}))
    assert "multiply-adds, at most" in str(
        template.invalid(spec_of("conv", 64, 56, 56, line(0, k=101)), GPU, {**default, "patch_h": 28, "patch_w": 2, "row_patches": 2})
    )
    assert "vector must be one of" in str(template.invalid(spec_of("conv", 64, 56, 57, line(45, k=31)), GPU, {**default, "vector": 4}))
    assert "unrolls at most" in str(template.declines(spec_of("conv", 1, 400, 400, line(0, k=301)), GPU))
    assert "shared memory" in str(template.declines(spec_of("conv", 1, 10, 100_000, line(0, k=7)), GPU))


@pytest.mark.parametrize("op", OPS)
def test_tiles_of_columns(op: str) -> None:
    """Tiles that do not part the plane, in bands that do not either; with vectors and without. Whole rows of a strided plane cannot be loaded by vectors."""
    spec = spec_of(op, 4, 22, 60 if op != "conv_dx" else 72, line(22.5, k=9), 2)
    template = registry.find("two_pass_dw" if op == "conv_dw" else "shared_patch")
    rows = {"row_lanes": 2, "turns": 1, "dy_shared": 0, "lanes": 7} if op == "conv_dw" else {"row_patches": 2, "collect": 0}
    common = {**template.default(spec, GPU), "patch_h": 4, "patch_w": 2, "planes": 1, "pad": 0, **rows}
    for tile, vector in ((16 if op == "conv_dx" else 14, 4), (28, 1)):
        decisions = {**common, "tile": tile, "vector": vector}
        assert template.invalid(spec, GPU, decisions) is None
        check_serial(spec, [Choice.of(template, decisions)], batches=(2,))
    check_blocks(spec, [Choice.of(template, decisions)])
    if op == "conv_dx":
        assert "do not part into groups of 4" in str(template.invalid(spec, GPU, {**common, "tile": 28, "vector": 4}))
    else:
        assert "parted by the stride" in str(template.invalid(spec, GPU, {**common, "tile": 0, "vector": 4}))


def test_the_reasons_of_whole_plane() -> None:
    template = registry.find("whole_plane")
    assert "at most 64 outputs" in str(template.declines(spec_of("conv", 64, 14, 14, line(45, k=7)), GPU))
    assert "float32" in str(template.declines(spec_of("conv", 64, 7, 7, line(45, k=7), dtype="float64"), GPU))
    assert "multiply-adds, at most" in str(template.declines(spec_of("conv", 64, 15, 15, Taps.from_offsets(GRID), 2, "circular"), GPU))
    spec = spec_of("conv", 256, 15, 15, line(45, k=7), 2)
    assert "shared memory" in str(template.invalid(spec, GPU, {**template.default(spec, GPU), "planes": 128}))


def test_the_reasons_of_plane_lanes() -> None:
    template = registry.find("plane_lanes")
    assert "at most 256 inputs" in str(template.declines(spec_of("conv", 64, 28, 28, line(45, k=7)), GPU))
    assert "no number of warps" in str(template.declines(spec_of("conv", 64, 40, 1, line(90, k=7)), GPU))
    assert "multiply-adds, at most" in str(template.declines(spec_of("conv", 64, 14, 14, Taps.from_offsets(GRID)), GPU))
    spec = spec_of("conv", 64, 14, 14, line(45, k=31))
    default = template.default(spec, GPU)
    assert "shared memory" in str(template.invalid(spec, GPU, {**default, "planes": 64}))
    small = spec_of("conv", 64, 16, 2, line(0, k=3))
    assert "threads, at most 1024" in str(
        template.invalid(spec_of("conv", 64, 4, 32, line(90, k=3)), GPU, {**template.default(small, GPU), "planes": 64, "parts": 32})
    )


def test_the_reasons_of_direct() -> None:
    template = registry.find("direct")
    assert "unrolls at most 64 taps" in str(template.declines(spec_of("conv", 1, 200, 200, line(0, k=101)), GPU))
    spec = spec_of("conv", 64, 56, 56, line(45, k=31))
    default = template.default(spec, GPU)
    assert "multiply-adds, at most" in str(template.invalid(spec, GPU, {**default, "patch_h": 8, "patch_w": 8}))
    assert "pixels, at most" in str(template.invalid(spec_of("conv", 64, 56, 56, line(45, k=45)), GPU, {**default, "patch_h": 4, "patch_w": 8}))
    assert "threads, at most 1024" in str(template.invalid(spec, GPU, {"patch_h": 1, "patch_w": 1, "row_patches": 56, "planes": 16}))


def estimated(spec: ConvSpec, template: Any, decisions: Any) -> float:
    """Clocks of an SM for 32 outputs: the slowest resource's, and those for which it waits for code."""
    clocks = template.estimate(spec, GPU, decisions)
    units = spec.outputs * gpu_specs.BATCH / 32 / gpu_specs.gpu_spec("sm_90a").sms
    return block_cost.soft_maximum(clocks.among(block_cost.ALONE)) + block_cost.FETCH * clocks.code / units


@pytest.mark.parametrize("size", [56, 28, 14, 7])
@pytest.mark.parametrize("op", ["conv", "conv_dw"])
def test_the_default_is_of_the_least_estimate(op: str, size: int) -> None:
    """Or of one that is close to it and compiles much sooner."""
    spec = spec_of(op, 512, size, size, line(45, k=7))
    chosen = estimated(spec, *registry.default(spec, GPU))
    every = [(t, trial) for t in registry.candidates(spec, GPU)[0] for trial in t.worth_estimating(spec, GPU) or [t.default(spec, GPU)]]
    least = min(estimated(spec, *choice) for choice in every)
    assert len(every) > 5
    assert least <= chosen <= CLOSE * least


def test_blocks_of_one_thread_are_no_default() -> None:
    assert registry.default(spec_of("conv", 67, 7, 7, line(0, k=3)), GPU)[0].name != "whole_plane"  # 67 is prime


def test_long_code_is_for_no_launch() -> None:
    """A thread that owns a plane of 14x14 unrolls thousands of multiply-adds, which are fetched in each launch; strips of it do with fewer."""
    spec, (whole, strips) = spec_of("conv_dw", 512, 14, 14, line(22.5, k=31)), map(registry.find, ("two_pass_dw", "strips_dw"))
    template, decisions = registry.default(spec, GPU)
    assert template is strips
    assert 0 < strips.unrolled(spec, decisions) < 2048 < whole.unrolled(spec, {**whole.default(spec, GPU), "whole": 1})


@pytest.mark.parametrize("size", [56, 28, 14])
def test_a_layer_keeps_its_code_in_the_instruction_cache(size: int) -> None:
    """Eight angles of K=31 by the choices of each alone would not fit: a launch would fetch all of it anew."""
    spec = spec_of("conv", 512, size, size, Taps.oriented(EIGHT, 31))
    parts = [part for _, _, part in spec.parts()]

    def code(choices: Any) -> float:
        return sum(template.estimate(part, GPU, decisions).code for part, (template, decisions) in zip(parts, choices, strict=True))

    together = code(registry.together(parts, GPU))
    assert together <= block_cost.CODE_CACHE
    if size > 14:
        assert code([registry.default(part, GPU) for part in parts]) > block_cost.CODE_CACHE
    assert schedules_choices.default_choices(spec, GPU) == tuple(Choice.of(*choice) for choice in registry.together(parts, GPU))


@pytest.mark.parametrize("op", ["conv", "conv_dx"])
def test_angles_of_which_one_has_a_single_offset_lower_together(op: str) -> None:
    """On a plane of one column the first of these lines has one tap that lands. Its group has fewer threads than the other, so that none may hold a barrier."""
    spec = spec_of(op, 3, 13, 1, line(22.5, 90, k=7))
    parts = [part for _, _, part in spec.parts()]
    serving = [template for template in registry.TEMPLATES if all(template.declines(part, GPU) is None for part in parts)]
    assert serving
    for template in serving:
        choices = [Choice.of(template, template.default(part, GPU)) for part in parts]
        assert "main_kernel" in library.cuda_source(lower.scheduled(spec, GPU, choices), GPU), template.name


@pytest.mark.parametrize(("name", "chosen"), [("two_pass_dw", {"whole": 1}), ("strips_dw", {})])
def test_long_sums_gain_nothing_by_the_pass_that_is_left_out(name: str, chosen: dict[str, int]) -> None:
    spec, template = spec_of("conv_dw", 32, 7, 7, line(67.5, k=7)), registry.find(name)
    module = lower.scheduled(spec, GPU, [Choice.of(template, {**template.default(spec, GPU), **chosen})])
    assert "tvm_orient.settled" in module["main"].attrs
    with_it = type(module)({"main": module["main"].without_attr("tvm_orient.settled")})
    assert library.cuda_source(module, GPU) == library.cuda_source(with_it, GPU)


# ---- one launch a layer -------------------------------------------------------------------------


def source_of(spec: ConvSpec, choices: Any = None) -> str:
    return library.cuda_source(lower.scheduled(spec, GPU, choices or schedules_choices.default_choices(spec, GPU)), GPU)


def kernel_of(source: str) -> str:
    """The source of its kernels, without the helpers."""
    return source[source.index('extern "C"') :]


def test_the_barrier_check_sees_what_it_should() -> None:
    kernel = 'extern "C" __global__ void __launch_bounds__(32) main_kernel(int n) {{\n{}\n}}'
    assert divergent(kernel.format("  for (int i = 0; i < n; ++i) {\n    __syncthreads();\n  }")) == []
    assert divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    n = 1;\n  }\n  __syncthreads();")) == []
    assert len(divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    __syncthreads();\n  }"))) == 1
    assert len(divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    n = 1;\n  } else {\n    __syncthreads();\n  }"))) == 1
    indirect = "  int lane = (int)threadIdx.x;\n  int few = 0;\n  if (lane < 4) {\n    few = 1;\n  }\n  if (few == 0) {\n    __syncthreads();\n  }"
    assert len(divergent(kernel.format(indirect))) == 1
    assert len(divergent(kernel.format("  int c = (((int)threadIdx.x) & 1);\n  for (int i = 0; i < c; ++i) {\n    __syncthreads();\n  }"))) == 1
    assert len(divergent(kernel.format("  if (((int)threadIdx.x) < 4) {\n    return;\n  }\n  __syncthreads();"))) == 1


def uneven(op: str) -> tuple[ConvSpec, list[Choice], list[int]]:
    """Three angles whose blocks have different numbers of threads, and those numbers."""
    spec = spec_of(op, 12, 14, 16, line(0, 45, 90, k=3))
    template, choices = registry.find("two_pass_dw" if op == "conv_dw" else "shared_patch"), []
    default = template.default(next(iter(spec.parts()))[2], GPU)
    for (_, _, part), planes in zip(spec.parts(), (4, 1, 2), strict=True):
        decisions = {**default, "planes": planes}
        assert template.invalid(part, GPU, decisions) is None
        choices.append(Choice.of(template, decisions))
    alone = [launches(source_of(part, [choice]))[0][1] for (_, _, part), choice in zip(spec.parts(), choices, strict=True)]
    assert len(set(alone)) == 3, alone
    return spec, choices, alone


@pytest.mark.parametrize("op", OPS)
def test_groups_of_different_thread_counts_share_a_launch(op: str) -> None:
    spec, choices, alone = uneven(op)
    source = source_of(spec, choices)
    kernels = launches(source)
    assert len(kernels) == (2 if op == "conv_dw" else 1)
    assert source.count("__global__") == 2 * len(kernels)  # each is declared, then defined
    assert kernels[0][1] == max(alone)
    assert divergent(source) == []


# ---- blocks run with their barriers -------------------------------------------------------------

BLOCKS = ["uneven groups", "stride 3x2", "circular, ragged stride", "7x7", "odd"]


@pytest.mark.parametrize("case", BLOCKS)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_blocks_with_barriers(template: Template, case: str) -> None:
    for op in template.ops:
        spec = fitted(template, spec_of(op, *CASES[case]))
        choices = with_template(template, spec, GPU)
        if choices is not None:
            check_blocks(spec, choices)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_blocks_of_half_precision(template: Template, dtype: str) -> None:
    """Copies by batches, with every vector that a width allows and with none; results by vectors, collected and one by one."""
    for op in template.ops:
        for case in ("uneven groups", "7x7", "odd") if dtype == "float16" else ("7x7",):
            spec = fitted(template, dataclasses.replace(spec_of(op, *CASES[case]), dtype=dtype))
            choices = with_template(template, spec, GPU)
            if choices is not None:
                check_blocks(spec, choices)


def test_blocks_of_half_precision_that_keep_weights_and_part_planes() -> None:
    """Weights are staged in one turn without a loop, planes stand apart, and results are collected."""
    spec, template = spec_of("conv", 8, 28, 28, line(22.5, k=7), dtype="float16"), registry.find("shared_patch")
    decisions = {"patch_h": 7, "patch_w": 7, "row_patches": 4, "planes": 4, "vector": 4, "weights_shared": 1, "collect": 1, "pad": 4, "tile": 0, "skew": 4}
    decisions |= {"raw": 0, **ONE_TILE}
    assert template.invalid(spec, GPU, decisions) is None
    check_blocks(spec, [Choice.of(template, decisions)])


# ---- tiles in turn, copied ahead ----------------------------------------------------------------


def in_turn(spec: ConvSpec, name: str, **decisions: int) -> tuple[Choice, ...]:
    """The template's default for every part, with blocks of two tiles in two stages, and other decisions where given."""
    template, choices = registry.find(name), []
    for _, _, part in spec.parts():
        chosen = {**template.default(part, GPU), "planes": 2, "turns": 2, "stages": 2, **decisions}
        assert template.invalid(part, GPU, chosen) is None
        choices.append(Choice.of(template, chosen))
    return tuple(choices)


@pytest.mark.parametrize("collect", [0, 1])
@pytest.mark.parametrize("name", ["shared_patch", "strips"])
def test_tiles_that_are_copied_ahead(name: str, collect: int) -> None:
    """Ragged patches, strides and wrapped planes; weights in the ring and not; more turns than stages, in any part of the ring."""
    for case, decisions in [
        (("conv", 12, 13, 17, line(22.5, k=15)), {"weights_shared": 1}),
        (("conv", 6, 11, 10, line(67.5, k=7), (3, 2)), {"planes": 1, "turns": 4, "weights_shared": 1}),  # three turns, since 6 channels part so
        (("conv_dx", 16, 9, 7, line(22.5, k=7), (3, 2), "circular"), {"turns": 4, "weights_shared": 0}),
    ]:
        spec = spec_of(*case)
        choices = in_turn(spec, name, collect=collect, **decisions)
        check_serial(spec, choices, batches=(1, 3))
        check_blocks(spec, choices)


@pytest.mark.parametrize("weights_shared", [0, 1])
@pytest.mark.parametrize("turns", [2, 4])
def test_lines_of_tiles_that_are_copied_ahead(turns: int, weights_shared: int) -> None:
    for spec in (spec_of("conv", 16, 9, 12, line(135, k=5)), spec_of("conv_dx", 6, 10, 10, line(90, k=7))):
        choices = in_turn(spec, "lines", turns=turns, staged=1, weights_shared=weights_shared)
        check_serial(spec, choices, batches=(2,))
        check_blocks(spec, choices)
    assert "planes that are staged" in str(registry.find("lines").invalid(spec, GPU, {**dict(choices[0].decisions), "staged": 0}))


def test_what_is_left_of_turns_where_channels_do_not_part() -> None:
    spec = spec_of("conv", 5, 9, 12, line(22.5, k=5))
    for choices in (in_turn(spec, "shared_patch"), in_turn(spec, "shared_patch", turns=4, stages=1)):
        assert "tvm_orient_ahead" not in kernel_of(source_of(spec, choices))
        check_serial(spec, choices, batches=(2,))
    reason = registry.find("shared_patch").invalid(spec, GPU, {**dict(choices[0].decisions), "turns": 1, "stages": 2})
    assert "turns must be at least as many" in str(reason)
    half = dataclasses.replace(spec, dtype="float16")
    assert "stages must be one of 1, got 2" in str(registry.find("shared_patch").invalid(half, GPU, {**dict(choices[0].decisions), "stages": 2}))


def test_angles_of_unlike_stages_share_a_launch() -> None:
    spec = spec_of("conv", 48, 10, 12, line(0, 45, 67.5, 135, k=7))
    ahead, one, turns, strips = (
        in_turn(spec, "shared_patch", collect=1, weights_shared=1)[0],
        schedules_choices.default_choices(spec, GPU)[1],
        in_turn(spec, "shared_patch", turns=4, stages=1, planes=1)[2],
        in_turn(spec, "strips", turns=4, planes=2)[3],
    )
    choices = (ahead, one, turns, strips)
    check_serial(spec, choices, batches=(2,))
    check_blocks(spec, choices)
    assert len(re.findall(r"tvm_orient_arrived_but_last\(\);", kernel_of(source_of(spec, choices)))) == 2


def test_half_precision_in_turn() -> None:
    """Copies that convert cannot be sent ahead; a block may pass over its tiles all the same."""
    spec = spec_of("conv", 8, 9, 12, line(22.5, k=5), dtype="float16")
    choices = in_turn(spec, "shared_patch", turns=4, stages=1, weights_shared=1)
    check_serial(spec, choices, batches=(2,))
    check_blocks(spec, choices)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"(tvm_orient_ahead \+?= .*\{\n(?:.*\n)*?) *__syncthreads\(\);\n", r"\1"),  # a tile is overwritten while others still read it
        (r"tvm_orient_arrived_but_last\(\); ", ""),
        (r" *tvm_orient_sent\(\);\n", ""),  # the first tile's copies are then of the same group as the second's
        (r"tvm_orient_arrived_but_last\(\); __syncthreads\(\);", "tvm_orient_arrived_but_last();"),
    ],
    ids=["no barrier before the copies", "no wait", "one group", "no barrier after the wait"],
)
def test_copies_that_come_too_early_or_late_are_seen(pattern: str, replacement: str) -> None:
    spec = spec_of("conv", 8, 9, 12, line(22.5, k=5))
    choices = in_turn(spec, "shared_patch", turns=4, collect=0)
    module = lower.scheduled(spec, GPU, choices, 2)
    source, given = library.cuda_source(module, GPU), operands(spec, 2)
    changed, count = re.subn(pattern, replacement, source)
    assert count == 1
    broken = Blocks(module, GPU, changed)
    results = [call(spec, functools.partial(broken, names=PARAMETERS["conv"], backwards=backwards), given, None) for backwards in (False, True)]
    assert not torch.equal(*results)


def test_no_room_for_rows_that_do_not_exist() -> None:
    """14 rows by 4 at once: TVM would stage 16, and planes would begin in other banks than the template chose."""
    spec, template = spec_of("conv_dw", 4, 28, 28, line(45, k=7), dtype="float16"), registry.find("two_pass_dw")
    decisions = {
        "patch_h": 7, "patch_w": 7, "lanes": 4, "row_lanes": 2, "turns": 1, "planes": 4, "vector": 4, "dy_shared": 1, "pad": 0, "whole": 0,
        "tile": 0,
    }  # fmt: skip
    assert template.invalid(spec, GPU, decisions) is None
    source = library.cuda_source(lower.scheduled(spec, GPU, [Choice.of(template, decisions)]), GPU)
    assert f"float dys_shared_ptr[{4 * 14 * 28}]" in source


def test_loads_go_by_batches() -> None:
    """A loop that converts half precision loads first and stores then; copies of float32 are asynchronous and no batches."""
    sources, template = {}, registry.find("shared_patch")
    for dtype in ("float16", "float32"):
        spec = spec_of("conv", 8, 28, 28, line(22.5, k=7), dtype=dtype)
        sources[dtype] = source_of(spec, [Choice.of(template, {**template.default(spec, GPU), "raw": 0})])
    first, then = sources["float16"].split("tvm_orient_held[", 1)[1].split("#pragma unroll\n")[1:3]
    assert "tvm_orient_load<" in first
    assert "stage_shared_ptr" not in first
    assert "stage_shared_ptr" in then
    assert "x_ptr" not in then.split("__syncthreads", maxsplit=1)[0]
    assert "tvm_orient_load<" not in kernel_of(sources["float32"])
    assert "tvm_orient_copy<" in sources["float32"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_staged_as_it_lies(dtype: str) -> None:
    """Copies of whole words are asynchronous, values are read four at a time; in whole rows, in tiles and by planes that stand apart."""
    template = registry.find("shared_patch")
    for case, decisions in [
        (("conv", 4, 12, 16, line(22.5, 90, k=7)), {"patch_h": 4, "patch_w": 4, "row_patches": 4, "planes": 2, "skew": 4, "tile": 0}),
        (("conv_dx", 2, 9, 112, line(135, k=9)), {"patch_h": 2, "patch_w": 4, "row_patches": 2, "planes": 1, "skew": 0, "tile": 28}),
    ]:
        spec, choices = dataclasses.replace(spec_of(*case), dtype=dtype), []
        for _, _, part in spec.parts():
            chosen = {"vector": 4, "weights_shared": 1, "collect": 0, "pad": 4, "raw": 1, **ONE_TILE, **decisions}
            assert template.invalid(part, GPU, chosen) is None
            choices.append(Choice.of(template, chosen))
        check_serial(spec, choices, batches=(2,))
        check_blocks(spec, choices)
        kernel = kernel_of(source_of(spec, choices))
        assert "tvm_orient_copy<8>(stage_shared_ptr" in kernel
        assert "tvm_orient_value<" in kernel
        assert "(float)stage_shared" not in kernel
    assert "begin at multiples" in str(template.invalid(spec, GPU, {**chosen, "patch_w": 2}))


@pytest.mark.parametrize("op", OPS)
def test_blocks_of_different_thread_counts(op: str) -> None:
    spec, choices, _ = uneven(op)
    check_blocks(spec, choices)


def test_a_missing_barrier_is_seen() -> None:
    """The emulation would notice: the same source with its barriers taken out."""
    spec = spec_of("conv", *CASES["odd"])
    choices = with_template(registry.find("shared_patch"), spec, GPU)
    assert choices is not None
    module = lower.scheduled(spec, GPU, choices, 2)
    given = operands(spec, 2)
    without = Blocks(module, GPU, library.cuda_source(module, GPU).replace("__syncthreads();", ""))
    results = [call(spec, functools.partial(without, names=PARAMETERS["conv"], backwards=backwards), given, None) for backwards in (False, True)]
    assert not torch.equal(*results)


@pytest.mark.parametrize("template", [t for t in TEMPLATES if "conv" in t.ops], ids=lambda t: t.name)
def test_no_weight_is_read_where_no_tap_lands(template: Template) -> None:
    """A schedule that stages weights must not look for them there."""
    spec = fitted(template, spec_of("conv", *CASES["no live tap"]))
    decisions = dict(template.default(spec, GPU))
    check_serial(spec, [Choice.of(template, {**decisions, **({"weights_shared": 1} if "weights_shared" in decisions else {})})], batches=(2,))
