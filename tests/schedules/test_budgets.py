"""What ptxas makes of the CUDA templates: as fast as memory allows by the static model, no spills, registers and shared memory within budgets."""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence

import pytest

from tests.support.cuda import ANGLES, default_source, kernels_of
from tests.support.helpers import line, nvrtc_missing, spec_of
from tests.support.sampling import sampled, sampled_together
from tvm_orient.compiler import library, lower
from tvm_orient.compiler.predict import Predicted, predict, together
from tvm_orient.perf_model import gpu_specs
from tvm_orient.problem.device import Device, arch_device, archs, capability
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.sass import decode
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, default_choices

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
LEANING = [line(angle, k=k) for angle in ANGLES[1:4] for k in (7, 31)]


Case = tuple[str, str, int, int, float]  # op, dtype, K, height and width, degrees


def rows(op: str, dtype: str, *sizes: tuple[int, int], angles: Sequence[float]) -> list[Case]:
    """Cases of every (K, height) at every angle."""
    return [(op, dtype, *size, angle) for size in sizes for angle in angles]


def defaults(cases: Sequence[Case], device: Device) -> list[tuple[ConvSpec, Choice]]:
    """Single-angle problems of 512 channels with the choice that an untuned machine makes."""
    specs = [spec_of(op, 512, height, height, line(angle, k=k), dtype=dtype) for op, dtype, k, height, angle in cases]
    return [(spec, default_choices(spec, device)[0]) for spec in specs]


def agrees(spec: ConvSpec, choice: Choice, found: Predicted, device: Device) -> None:
    """What ranks the choices, before anything is compiled, against what is compiled: within 20 % for the pipe of memory."""
    estimate = registry.find(choice.template).estimate(spec, device, choice.config)
    assert estimate["memory"] == pytest.approx(found.bounds[0].clocks["memory"], rel=0.2), spec
    assert estimate["dram"] == pytest.approx(found.bounds[0].clocks["dram"], rel=0.01), spec


# compiled together, since half of NVRTC's time is headers
DEFAULTS = rows("conv", "float32", (31, 56), angles=ANGLES)
DEFAULTS += rows("conv", "float32", (31, 28), (31, 14), (7, 56), (7, 28), (7, 14), (7, 7), angles=ANGLES[:5])


@pytest.mark.parametrize("rows", sampled_together(DEFAULTS, once=lambda *row: row))
def test_the_defaults_run_at_the_speed_of_dram(rows: Sequence[Case]) -> None:
    """K=31 at 56x56 at all eight angles, and K=7 at every size, on an H200: by what warps execute, nothing needs much longer than DRAM.

    A twentieth more, and at 28x28 and 14x14 K=31 a fifth: the line is longer than the plane, and code that an SM fetches counts too.
    """
    device = arch_device("sm_90a")
    cases = defaults(rows, device)
    for (spec, choice), found in zip(cases, predict(cases, device), strict=True):
        (one,) = found.bounds
        assert found.spills == 0, spec
        allowed = 1.2 if spec.kernel_size == 31 and spec.height < 56 else 1.06
        assert one.limiter_clocks <= allowed * one.clocks["dram"], (str(spec), choice.decisions, one.clocks)
        if (spec.kernel_size, spec.height) in ((31, 56), (7, 14)) and spec.taps in LEANING:
            agrees(spec, choice, found, device)


GRADIENTS = rows("conv_dw", "float32", (31, 56), (7, 14), angles=ANGLES[1:4]) + rows("conv_dw", "float32", (31, 28), angles=(45, 90))
GRADIENTS += rows("conv_dw", "float32", (31, 14), angles=(22.5,)) + rows("conv_dw", "float32", (7, 56), (7, 28), (7, 7), angles=(0, 22.5))


@pytest.mark.parametrize("rows", sampled_together(GRADIENTS, once=lambda *row: row))
def test_weight_gradients_run_at_the_speed_of_dram(rows: Sequence[Case]) -> None:
    """First pass of conv_dw: as `test_the_defaults_run_at_the_speed_of_dram`. K=31 may need a fifth more for the pipe of memory.

    The second pass takes a tenth of the first at most, on small planes a third: there it is one wait for memory after the other.
    """
    device = arch_device("sm_90a")
    cases = defaults(rows, device)
    for (spec, choice), found in zip(cases, predict(cases, device), strict=True):
        first, second = found.bounds
        assert found.spills == 0, spec
        allowed = 1.22 if spec.kernel_size == 31 else 1.0
        assert first.limiter_clocks <= allowed * first.clocks["dram"], (str(spec), choice.decisions, first.clocks)
        assert second.limiter_clocks <= (0.1 if spec.height > 14 else 0.33) * first.limiter_clocks, (str(spec), second.clocks)
        if (spec.kernel_size, spec.height) in ((31, 56), (7, 14)):
            agrees(spec, choice, found, device)


HALF = [
    *(
        row
        for dtype in ("float16", "bfloat16")
        for row in rows("conv", dtype, (7, 14), angles=(0, 22.5)) + rows("conv", dtype, (31, 14), (31, 56), angles=(45,))
    ),
    *(row for op in ("conv", "conv_dw") for row in rows(op, "float16", (7, 28), (7, 7), angles=(45,)) + rows(op, "float16", (7, 56), angles=(90,))),
    *rows("conv_dw", "float16", (7, 14), angles=(0, 22.5)),
    *rows("conv_dw", "float16", (31, 56), angles=(45,)),
]


@pytest.mark.parametrize("rows", sampled_together(HALF, once=lambda op, dtype, k, height, angle: ((op, dtype), (op, k), height, angle)))
def test_half_precision_runs_near_the_speed_of_dram(rows: Sequence[Case]) -> None:
    """Half the bytes, and as many multiply-adds: K=7 is at 0.7 of what DRAM allows (conv_dw at 0.6), K=31 at 0.7 at 56x56 and 0.5 at 14x14 (conv_dw at 0.45).

    These are bounds; small planes are chosen for little code and many blocks, which no bound shows.
    """
    device = arch_device("sm_90a")
    cases = defaults(rows, device)
    for (spec, choice), found in zip(cases, predict(cases, device), strict=True):
        first = found.bounds[0]
        assert found.spills == 0, spec
        share = (
            {"conv": 0.7, "conv_dw": 0.6}[spec.op] if spec.kernel_size == 7 else {"conv56": 0.7, "conv14": 0.5, "conv_dw56": 0.45}[f"{spec.op}{spec.height}"]
        )
        assert first.clocks["dram"] >= share * first.limiter_clocks, (str(spec), choice.decisions, first.clocks)
        assert first.exposed_waits <= 8, (str(spec), "loads go by batches, not one by one")
        if spec.op == "conv" and spec.dtype == "float16" and spec.taps == line(22.5, k=7):
            agrees(spec, choice, found, device)


@pytest.mark.parametrize(
    ("size", "angles", "most"),
    [pytest.param(56, (45, 112.5), 168, id="bands", marks=pytest.mark.long), pytest.param(28, (90, 135), 216, id="strips", marks=pytest.mark.long)],
)
def test_weight_gradients_of_several_angles_in_one_kernel(size: int, angles: Sequence[float], most: int) -> None:
    for kernel in kernels_of(default_source(spec_of("conv_dw", 512, size, size, line(*angles, k=31)), "sm_90a")).values():
        assert kernel.spills == 0
        assert kernel.registers <= most, "the angles take registers in turn, not together"
        assert kernel.shared <= 49152 + 1024, "the angles share one allocation"


@pytest.mark.parametrize("height", [pytest.param(56, marks=pytest.mark.long), 14])
def test_eight_angles_in_one_kernel(height: int) -> None:
    source = default_source(spec_of("conv", 512, height, height, line(*ANGLES, k=31)), "sm_90a")
    (kernel,) = kernels_of(source).values()
    threads = int(re.findall(r"__launch_bounds__\((\d+)\)", source)[0])
    assert kernel.spills == 0
    assert kernel.registers <= 168, "the angles take registers in turn, not together"
    assert kernel.shared <= 49152 + 1024, "the angles share one allocation"
    assert gpu_specs.resident_blocks(gpu_specs.gpu_spec("sm_90a"), threads, kernel.registers, kernel.shared - 1024) >= 3


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_the_next_tile_is_on_its_way_while_one_is_computed(arch: str) -> None:
    """Two stages: no wait between the copies of a tile and the multiply-adds of the one before it; and the prediction knows that they overlap."""
    device, spec = arch_device(arch), spec_of("conv", 512, 28, 28, line(22.5, k=7))
    template = registry.find("shared_patch")
    block = dataclasses.replace(
        template.default(spec, device), patch_h=7, patch_w=2, patches_h=4, channels_per_block=2, weights_shared=1, store_via_smem=0, tiles_per_block=4
    )
    choices = [Choice.of(template, dataclasses.replace(block, stages=stages)) for stages in (1, 2)]
    waiting, ahead = predict([(spec, choice) for choice in choices], device)
    (kernel,) = ahead.kernels
    code = [step for step in decode.steps(kernel.code) if step.opcode[0] in ("LDGSTS", "LDGDEPBAR", "DEPBAR", "FFMA")]
    order = [name for name, _ in itertools.groupby(" ".join([step.opcode[0], *step.operands[1:]][: 2 if step.opcode[0] == "DEPBAR" else 1]) for step in code)]
    assert order == ["LDGSTS", "LDGDEPBAR", "LDGSTS", "LDGDEPBAR", "DEPBAR 0x1", "FFMA"]
    assert ahead.spills == 0
    assert kernel.shared > 1.8 * waiting.kernels[0].shared - 1024
    before, after = waiting.bounds[0], ahead.bounds[0]
    assert before.exposed_waits == after.exposed_waits == 4, "each tile is waited for"
    assert after.clocks["latency"] * after.blocks < 0.8 * before.clocks["latency"] * before.blocks, "but not for as long"
    for choice, found in zip(choices, (before, after), strict=True):
        estimate = template.estimate(spec, device, choice.config)
        assert estimate["memory"] == pytest.approx(found.clocks["memory"], rel=0.2)


def test_small_planes_in_one_kernel() -> None:
    """Eight angles of 7x7 planes, a plane a thread; and the template that stages nothing."""
    device = arch_device("sm_90a")
    spec = spec_of("conv", 512, 7, 7, line(*ANGLES, k=7))
    choice, part = registry.find("direct"), spec_of("conv", 512, 56, 56, line(45, k=3))
    direct = library.cuda_source(lower.scheduled(part, device, [Choice.of(choice, choice.default(part, device))]), device)
    kernels = kernels_of(together({"planes": default_source(spec, "sm_90a"), "direct": direct}))
    assert all(kernel.spills == 0 and kernel.registers <= 128 for kernel in kernels.values())
    assert kernels["planes_kernel"].shared <= 36 * 1024
    assert (kernels["direct_kernel"].shared, kernels["direct_kernel"].count("BAR")) == (0, 0)


# ---- strided stems of the networks --------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "op", "height", "angle"),
    sampled(
        [(layout, *problem) for layout in ("nchw", "nhwc") for problem in (("conv", 224, 22.5), ("conv_dx", 224, 90), ("conv_dw", 112, 22.5))],
        pairs=lambda *_: (),
        once=lambda layout, op, height, angle: (layout,),
    ),
)
def test_stems_run_near_the_speed_of_dram(layout: str, op: str, height: int, angle: float) -> None:
    """64 channels, stride 2, K=31: all passes together take at most 1.3 times what DRAM needs, and nothing spills."""
    device = arch_device("sm_90a")
    spec = spec_of(op, 64, height, height, line(angle, k=31), 2, layout=layout)
    choice = default_choices(spec, device)[0]
    (found,) = predict([(spec, choice)], device)
    assert found.spills == 0
    assert found.kernels[0].shared <= 49152 + 1024
    assert found.clocks <= 1.3 * found.bounds[0].clocks["dram"], (choice.decisions, [one.clocks for one in found.bounds])


@pytest.mark.parametrize("layout", ["nchw", pytest.param("nhwc", marks=pytest.mark.long)])
def test_four_angles_of_a_stem_in_one_kernel(layout: str) -> None:
    """Eight channels an angle: in both layouts the kernel fits the registers, and 48 KiB of shared memory."""
    spec = spec_of("conv", 32, 112, 112, line(*ANGLES[:4], k=31), 2, layout=layout)
    (kernel,) = kernels_of(default_source(spec, "sm_90a")).values()
    assert kernel.spills == 0
    assert kernel.shared <= 49152 + 1024


# ---- channels_last ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [pytest.param(7), pytest.param(31, marks=pytest.mark.long)])
def test_channels_last_at_the_speed_of_memory(kernel_size: int) -> None:
    """A warp of channels shares its taps: at 28x28 every angle is near what DRAM allows, and nothing spills."""
    device = arch_device("sm_90a")
    specs = [dataclasses.replace(spec_of("conv", 512, 28, 28, line(angle, k=kernel_size)), layout="nhwc") for angle in (0, 22.5, 45, 90)]
    for predicted in predict([(spec, default_choices(spec, device)[0]) for spec in specs], device):
        assert predicted.spills == 0
        (one,) = predicted.bounds
        assert one.limiter_clocks <= 1.2 * one.clocks["dram"], one.clocks


@pytest.mark.parametrize("arch", archs())
def test_what_the_driver_keeps_is_counted_from_sm_90_on(arch: str) -> None:
    """From sm_100 on too, whose names begin with another digit."""
    assert gpu_specs.driver_shared_bytes(arch) == (gpu_specs.driver_shared_bytes("sm_90") if capability(arch)[0] >= 9 else 0)
