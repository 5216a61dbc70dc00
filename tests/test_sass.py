"""CUDA kernels compiled by NVRTC for every architecture that we name, and what ptxas made of them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import struct
from collections.abc import Sequence

import numpy as np
import pytest
from _helpers import EIGHT, OPS, line, nvrtc_missing, spec_of

from tvm_orient.compiler import library, lower
from tvm_orient.compiler.predict import Predicted, predict, together
from tvm_orient.errors import BuildFailed, InvalidArgument
from tvm_orient.perf_model import gpu_specs
from tvm_orient.problem.device import Device, arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil
from tvm_orient.sass import alu, bank_conflicts, decode, interpreter
from tvm_orient.sass import cubin as sass_cubin
from tvm_orient.sass import known as sass_known
from tvm_orient.schedules import choices as schedules_choices
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice
from tvm_orient.toolchain import nvrtc

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")

ARCHS = ["sm_80", "sm_89", "sm_90a", "sm_100a", "sm_120"]
_EM_CUDA = 190  # e_machine of a cubin


def source_of(spec: ConvSpec, arch: str) -> str:
    device = arch_device(arch)
    return library.cuda_source(lower.scheduled(spec, device, schedules_choices.default_choices(spec, device)), device)


def kernels_of(source: str, arch: str = "sm_90a") -> dict[str, sass_cubin.KernelFacts]:
    return {kernel.name: kernel for kernel in sass_cubin.kernels(nvrtc.compile_cubin(source, arch))}


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch(arch: str) -> None:
    cubin = nvrtc.compile_cubin(together({op: source_of(spec_of(op, 8, 28, 28, line(22.5, k=7)), arch) for op in OPS}), arch)
    assert cubin[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", cubin, 18)[0] == _EM_CUDA
    kernels = sass_cubin.kernels(cubin)
    assert sorted(kernel.name for kernel in kernels) == ["conv_dw_kernel", "conv_dw_kernel_1", "conv_dx_kernel", "conv_kernel"]
    for kernel in kernels:
        assert kernel.spills == 0
        assert 0 < kernel.registers <= 255
        assert kernel.shared <= 49152 + 1024  # static, and what the driver keeps for itself from sm_90 on
        assert kernel.count("FFMA", "FADD") > 0
        assert kernel.count("RED.", "ATOM") == 0, "a float atomic: sums would depend on the order of blocks"
        assert kernel.name == "conv_dw_kernel_1" or (kernel.count("BAR") > 0 and kernel.count("LDGSTS") > 0)


ANGLES = [math.degrees(a) for a in EIGHT]
LEANING = [line(angle, k=k) for angle in ANGLES[1:4] for k in (7, 31)]


def defaults(
    device: Device, *sizes: tuple[int, int], op: str = "conv", angles: Sequence[float] = ANGLES, dtype: str = "float32"
) -> list[tuple[ConvSpec, Choice]]:
    """Single-angle problems of 512 channels by (K, plane) with the choice that an untuned machine makes."""
    specs = [spec_of(op, 512, height, height, line(angle, k=k), dtype=dtype) for k, height in sizes for angle in angles]
    return [(spec, schedules_choices.default_choices(spec, device)[0]) for spec in specs]


def agrees(spec: ConvSpec, choice: Choice, found: Predicted, device: Device) -> None:
    """What ranks the choices, before anything is compiled, against what is compiled: within 20 % for the pipe of memory."""
    estimate = registry.find(choice.template).estimate(spec, device, dict(choice.decisions))
    assert estimate["memory"] == pytest.approx(found.bounds[0].clocks["memory"], rel=0.2), spec
    assert estimate["dram"] == pytest.approx(found.bounds[0].clocks["dram"], rel=0.01), spec


def test_the_defaults_run_at_the_speed_of_dram() -> None:
    """K=31 at 56x56 at all eight angles, and K=7 at every size, on an H200: by what warps execute, nothing needs much longer than DRAM.

    A twentieth more, and at 28x28 and 14x14 K=31 a fifth: the line is longer than the plane, and code that an SM fetches counts too.
    """
    device = arch_device("sm_90a")
    cases = defaults(device, (31, 56)) + defaults(device, (31, 28), (31, 14), (7, 56), (7, 28), (7, 14), (7, 7), angles=ANGLES[:5])
    for (spec, choice), found in zip(cases, predict(cases, device), strict=True):
        (one,) = found.bounds
        assert found.spills == 0, spec
        allowed = 1.2 if spec.kernel_size == 31 and spec.height < 56 else 1.06
        assert one.limiter_clocks <= allowed * one.clocks["dram"], (str(spec), choice.decisions, one.clocks)
        if (spec.kernel_size, spec.height) in ((31, 56), (7, 14)) and spec.taps in LEANING:
            agrees(spec, choice, found, device)


def test_weight_gradients_run_at_the_speed_of_dram() -> None:
    """First pass of conv_dw: as `test_the_defaults_run_at_the_speed_of_dram`. K=31 may need a fifth more for the pipe of memory.

    The second pass takes a tenth of the first at most, on small planes a third: there it is one wait for memory after the other.
    """
    device = arch_device("sm_90a")
    cases = defaults(device, (31, 56), (7, 14), op="conv_dw", angles=ANGLES[1:4]) + defaults(device, (31, 28), op="conv_dw", angles=(45, 90))
    cases += defaults(device, (31, 14), op="conv_dw", angles=(22.5,)) + defaults(device, (7, 56), (7, 28), (7, 7), op="conv_dw", angles=(0, 22.5))
    for (spec, choice), found in zip(cases, predict(cases, device), strict=True):
        first, second = found.bounds
        assert found.spills == 0, spec
        allowed = 1.22 if spec.kernel_size == 31 else 1.0
        assert first.limiter_clocks <= allowed * first.clocks["dram"], (str(spec), choice.decisions, first.clocks)
        assert second.limiter_clocks <= (0.1 if spec.height > 14 else 0.33) * first.limiter_clocks, (str(spec), second.clocks)
        if (spec.kernel_size, spec.height) in ((31, 56), (7, 14)):
            agrees(spec, choice, found, device)


@pytest.mark.parametrize(("op", "dtype"), [("conv", "float16"), ("conv_dw", "float16"), ("conv", "bfloat16")])
def test_half_precision_runs_near_the_speed_of_dram(op: str, dtype: str) -> None:
    """Half the bytes, and as many multiply-adds: K=7 is at 0.7 of what DRAM allows (conv_dw at 0.6), K=31 at 0.7 at 56x56 and 0.5 at 14x14 (conv_dw at 0.45).

    These are bounds; small planes are chosen for little code and many blocks, which no bound shows.
    """
    device = arch_device("sm_90a")
    cases = defaults(device, (7, 14), op=op, angles=(0, 22.5), dtype=dtype)
    if dtype == "float16":
        cases += defaults(device, (7, 28), (7, 7), op=op, angles=(45,), dtype=dtype) + defaults(device, (7, 56), op=op, angles=(90,), dtype=dtype)
    if op == "conv_dw":
        cases += defaults(device, (31, 56), op=op, angles=(45,), dtype=dtype)
    else:
        cases += defaults(device, (31, 14), (31, 56), angles=(45,), dtype=dtype)
    for (spec, choice), found in zip(cases, predict(cases, device), strict=True):
        first = found.bounds[0]
        assert found.spills == 0, spec
        share = {"conv": 0.7, "conv_dw": 0.6}[op] if spec.kernel_size == 7 else {"conv56": 0.7, "conv14": 0.5, "conv_dw56": 0.45}[f"{op}{spec.height}"]
        assert first.clocks["dram"] >= share * first.limiter_clocks, (str(spec), choice.decisions, first.clocks)
        assert first.exposed_waits <= 8, (str(spec), "loads go by batches, not one by one")
        if op == "conv" and dtype == "float16" and spec.taps == line(22.5, k=7):
            agrees(spec, choice, found, device)


@pytest.mark.parametrize(("size", "angles", "most"), [(56, (45, 112.5), 168), (28, (90, 135), 216)], ids=["bands", "strips"])
def test_weight_gradients_of_several_angles_in_one_kernel(size: int, angles: Sequence[float], most: int) -> None:
    for kernel in kernels_of(source_of(spec_of("conv_dw", 512, size, size, line(*angles, k=31)), "sm_90a")).values():
        assert kernel.spills == 0
        assert kernel.registers <= most, "the angles take registers in turn, not together"
        assert kernel.shared <= 49152 + 1024, "the angles share one allocation"


@pytest.mark.parametrize("height", [56, 14])
def test_eight_angles_in_one_kernel(height: int) -> None:
    source = source_of(spec_of("conv", 512, height, height, line(*ANGLES, k=31)), "sm_90a")
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
    template, block = registry.find("shared_patch"), {"patch_h": 7, "patch_w": 2, "row_patches": 4, "planes": 2, "weights_shared": 1, "collect": 0}
    choices = [Choice.of(template, {**template.default(spec, device), **block, "turns": 4, "stages": stages}) for stages in (1, 2)]
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
        estimate = template.estimate(spec, device, dict(choice.decisions))
        assert estimate["memory"] == pytest.approx(found.clocks["memory"], rel=0.2)


def test_small_planes_in_one_kernel() -> None:
    """Eight angles of 7x7 planes, a plane a thread; and the template that stages nothing."""
    device = arch_device("sm_90a")
    spec = spec_of("conv", 512, 7, 7, line(*ANGLES, k=7))
    choice, part = registry.find("direct"), spec_of("conv", 512, 56, 56, line(45, k=3))
    direct = library.cuda_source(lower.scheduled(part, device, [Choice.of(choice, choice.default(part, device))]), device)
    kernels = kernels_of(together({"planes": source_of(spec, "sm_90a"), "direct": direct}))
    assert all(kernel.spills == 0 and kernel.registers <= 128 for kernel in kernels.values())
    assert kernels["planes_kernel"].shared <= 36 * 1024
    assert (kernels["direct_kernel"].shared, kernels["direct_kernel"].count("BAR")) == (0, 0)


def test_counts_are_read_right() -> None:
    source = """
    extern "C" __global__ void add(float* x, float* y) {
      __shared__ float tile[64];
      tile[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
      y[threadIdx.x] = tile[63 - threadIdx.x] * 2.5f + 1.0f;
    }
    extern "C" __global__ void spill(float* x, int i) {
      float room[64];
      for (int k = 0; k < 64; ++k) room[k * i & 63] = x[k];
      x[0] = room[i];
    }
    """
    add, spill = sorted(sass_cubin.kernels(nvrtc.compile_cubin(source, "sm_80")), key=lambda kernel: kernel.name)
    assert (add.name, spill.name) == ("add", "spill")
    assert (add.shared, spill.shared) == (256, 0)
    assert (add.count("LDG"), add.count("LDS"), add.count("STS"), add.count("FFMA"), add.spills) == (1, 1, 1, 1, 0)
    assert spill.spills > 0
    assert 0 < add.registers < 32
    assert add.instructions >= 8


LOOP = """
    extern "C" __global__ void main_kernel(const float* __restrict__ x, float* y, int n) {
      __shared__ float tile[64 * 33];
      for (int i = 0; i < 64; ++i) tile[threadIdx.x * STEP + i % 32] = x[(blockIdx.x * 64 + i) * 64 + threadIdx.x];
      __syncthreads();
      float sum = 0;
      #pragma unroll 1
      for (int i = 0; i < n; ++i) if (threadIdx.x < 40) sum += tile[threadIdx.x * STEP + i];
      y[blockIdx.x * 64 + threadIdx.x] = sum;
    }
"""


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90a"])
@pytest.mark.parametrize(("step", "ways"), [(33, 1), (32, 32), (2, 2), (1, 1)])
def test_a_trace_follows_loops_branches_and_banks(arch: str, step: int, ways: int) -> None:
    """Two blocks of two warps; all counts are known from the source."""
    (kernel,) = sass_cubin.kernels(nvrtc.compile_cubin(LOOP.replace("STEP", str(step)), arch))
    ran = interpreter.run(kernel, 64, [0, 5], [7])
    assert (ran.blocks, ran.warps) == (2, 4)
    assert ran.count("LDG") == 4 * 64
    assert ran.sectors["load"] == 2 * 64 * 64 * 4 / 32
    assert ran.count("LDS") == 7 * 4  # the second warp of a block has 8 lanes of 32 active
    assert ran.wavefronts["LDS"] == 2 * 7 * (ways + (ways if ways < 32 else 8) - (step == 2))
    assert ran.wavefronts["LDG"] == 4 * 64
    assert ran.stored == 2 * 64 * 4
    assert (ran.count("STG"), ran.sectors["store"]) == (4, 2 * 64 * 4 / 32)
    assert 0 < ran.exposed_waits <= 64


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(("n", "stores"), [(8, 2), (0, 3), (-32, 4), (64, 0)])
def test_a_trace_follows_votes(arch: str, n: int, stores: int) -> None:
    """Two warps, lanes 0 to 63: whether all of a warp, and whether any, are below 40 with n added."""
    source = """
    extern "C" __global__ void main_kernel(float* y, int n) {
      const bool low = (int)threadIdx.x + n < 40;
      if (__all_sync(~0u, low)) y[threadIdx.x] = 1;
      if (__any_sync(~0u, low)) y[64 + threadIdx.x] = 1;
    }"""
    (kernel,) = sass_cubin.kernels(nvrtc.compile_cubin(source, arch))
    assert "VOTE" in kernel.code
    assert interpreter.run(kernel, 64, [0], [n]).stored == stores * 128


def test_a_trace_follows_bits_of_a_register_that_is_not_known() -> None:
    class Given:
        def __init__(self, **known: sass_known.Known) -> None:
            self.known = known

        def partial(self, text: str) -> sass_known.Known:
            return (
                self.known.get(text, sass_known.Known(None, None))
                if text[0] == "R" and text != "RZ"
                else sass_known.Known(np.uint32(int(text.replace("RZ", "0"), 0)), True)
            )

    def and_or(reader: Given, lut: str, mask: str) -> sass_known.Known:
        return alu.INTEGER["LOP3"](reader, ("LUT",), ("R1", "R1", mask, "RZ", lut, "!PT"))["R1"]

    cleared = and_or(Given(), "0xc0", "0xfffffdff")  # data & ~0x200
    assert (int(cleared.value[0]), cleared.bits) == (0, 0x200)
    filled = and_or(Given(R1=cleared), "0xfc", "0x200")  # ... | 0x200
    assert (int(filled.value[0]), filled.bits) == (0x200, 0x200)
    tested = and_or(Given(R1=filled), "0xc0", "0x200")  # ... & 0x200
    assert (int(tested.value[0]), tested.bits) == (0x200, sass_known.ALL_BITS)
    assert and_or(Given(R1=filled), "0xc0", "0x300").bits != sass_known.ALL_BITS, "the other bit is data"


def test_a_trace_says_what_it_cannot_follow() -> None:
    source = 'extern "C" __global__ void main_kernel(int* x) { if (x[threadIdx.x] > 3) x[x[threadIdx.x + 32]] = 1; }'
    (kernel,) = sass_cubin.kernels(nvrtc.compile_cubin(source, "sm_80"))
    with pytest.raises(BuildFailed, match="depends on data"):
        interpreter.run(kernel, 32, [0])


def test_the_high_word_of_a_pair() -> None:
    """A number has none of its own, which is zero; a constant lies 4 bytes further on, also beside a register."""
    pairs = {
        "R2": "R3",
        "UR4.reuse": "UR5",
        "RZ": "RZ",
        "0x10": "RZ",
        "c[0x0][0x160]": "c[0x0][0x164]",
        "c[0x3][R4]": "c[0x3][R4+0x4]",
        "c[0x3][R4+0x8]": "c[0x3][R4+0xc]",
        "c[0x3][UR4+-0x8]": "c[0x3][UR4+-0x4]",
    }
    assert {text: decode.high_word(text) for text in pairs} == pairs


def test_wavefronts() -> None:
    lane, every = np.arange(32), np.ones(32, bool)
    cases = [(4 * lane, 4, 1), (8 * lane, 4, 2), (0 * lane, 4, 1), (16 * lane, 16, 4), (16 * lane, 4, 4), (8 * lane, 8, 2), (128 * lane, 4, 32)]
    for address, size, taken in cases:
        assert bank_conflicts.wavefronts(address, size, every) == taken, (address, size)
    assert bank_conflicts.wavefronts(128 * lane, 4, lane < 3) == 3
    assert bank_conflicts.wavefronts(132 * lane, 4, every) == 1
    assert bank_conflicts.wavefronts(132 * lane, 4, every, lines=True) == 32


def test_resident_blocks() -> None:
    """By hand, from the limits of compute capability 9.0 and 8.9."""
    assert gpu_specs.resident_blocks(gpu_specs.gpu_spec("sm_90a"), 256, 32, 0) == 8  # 64 warps
    assert gpu_specs.resident_blocks(gpu_specs.gpu_spec("sm_90a"), 256, 128, 0) == 2  # 65536 registers
    assert gpu_specs.resident_blocks(gpu_specs.gpu_spec("sm_90a"), 196, 56, 24320) == 5
    assert gpu_specs.resident_blocks(gpu_specs.gpu_spec("sm_90a"), 32, 32, 48 * 1024) == 4  # 228 KiB
    assert gpu_specs.resident_blocks(gpu_specs.gpu_spec("sm_89"), 32, 32, 0) == 24
    assert gpu_specs.resident_blocks(gpu_specs.gpu_spec("sm_89"), 64, 32, 48 * 1024) == 2  # 100 KiB
    with pytest.raises(InvalidArgument, match="no figures"):
        gpu_specs.gpu_spec("sm_70")


@pytest.mark.parametrize("arch", ARCHS)
def test_shared_bytes_of_the_driver(arch: str) -> None:
    """Beside a kernel's own 256 bytes the section counts nothing up to sm_89, and 1024 from sm_90 on."""
    source = 'extern "C" __global__ void main_kernel(float* y) { __shared__ float s[64]; s[threadIdx.x] = y[0]; __syncthreads(); y[1] = s[63 - threadIdx.x]; }'
    (kernel,) = sass_cubin.kernels(nvrtc.compile_cubin(source, arch))
    assert kernel.shared - gpu_specs.driver_shared_bytes(arch) == 64 * 4


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_predictions_agree_with_what_is_known(arch: str) -> None:
    specs = [spec_of("conv", 16, 28, 28, line(45, k=7)), spec_of("conv_dx", 16, 28, 28, line(45, k=7), 2), spec_of("conv_dw", 16, 28, 28, line(22.5, k=7))]
    device = arch_device(arch)
    for spec, found in zip(specs, predict([(spec, schedules_choices.default_choices(spec, device)[0]) for spec in specs], device), strict=True):
        assert found.spills == 0
        assert len(found.bounds) == (2 if spec.op == "conv_dw" else 1)
        first = found.bounds[0]
        live = len(stencil(spec).every) / (4 if spec.op == "conv_dx" else 1)
        assert first.fma >= live * 0.95
        assert first.limiter_clocks == max(first.clocks.values()) == first.clocks[first.limiter]
        assert 0 < first.occupancy <= 1
        copied = 32 * spec.bytes_moved(64) / 64 / spec.outputs / gpu_specs.gpu_spec(arch).dram
        assert copied <= first.clocks["dram"] <= 1.2 * copied


def test_what_nvrtc_refuses() -> None:
    with pytest.raises(InvalidArgument, match="got arch 'sm_12'"):
        nvrtc.compile_cubin("", "sm_12")
    with pytest.raises(BuildFailed, match=r"NVRTC refused the kernel for sm_90a.*spoon"):
        nvrtc.compile_cubin("void f() { spoon(); }", "sm_90a")
    with pytest.raises(BuildFailed, match="nvdisasm does not read"):
        sass_cubin.kernels(b"\x7fELF not a cubin")


def test_archs() -> None:
    assert {"sm_80", "sm_89", "sm_90", "sm_100", "sm_120"} <= set(nvrtc.archs())
    assert nvrtc.version() >= (13, 0)


# ---- strided stems of the networks --------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_stems_run_near_the_speed_of_dram(layout: str) -> None:
    """64 channels, stride 2, K=31: all passes together take at most 1.3 times what DRAM needs, and nothing spills."""
    device = arch_device("sm_90a")
    problems = (("conv", 224, 22.5), ("conv_dx", 224, 90), ("conv_dw", 112, 22.5))
    specs = [spec_of(op, 64, height, height, line(angle, k=31), 2, layout=layout) for op, height, angle in problems]
    cases = [(spec, schedules_choices.default_choices(spec, device)[0]) for spec in specs]
    for (spec, choice), found in zip(cases, predict(cases, device), strict=True):
        assert found.spills == 0, spec
        assert found.kernels[0].shared <= 49152 + 1024
        assert found.clocks <= 1.3 * found.bounds[0].clocks["dram"], (str(spec), choice.decisions, [one.clocks for one in found.bounds])


def test_four_angles_of_a_stem_in_one_kernel() -> None:
    """Eight channels an angle: in both layouts the kernel fits the registers, and 48 KiB of shared memory."""
    specs = [spec_of("conv", 32, 112, 112, line(*ANGLES[:4], k=31), 2, layout=layout) for layout in ("nchw", "nhwc")]
    for kernel in kernels_of(together({f"case{i}": source_of(spec, "sm_90a") for i, spec in enumerate(specs)})).values():
        assert kernel.spills == 0, kernel.name
        assert kernel.shared <= 49152 + 1024


# ---- channels_last ------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [7, 31])
def test_channels_last_at_the_speed_of_memory(kernel_size: int) -> None:
    """A warp of channels shares its taps: at 28x28 every angle is near what DRAM allows, and nothing spills."""
    device = arch_device("sm_90a")
    specs = [dataclasses.replace(spec_of("conv", 512, 28, 28, line(angle, k=kernel_size)), layout="nhwc") for angle in (0, 22.5, 45, 90)]
    for predicted in predict([(spec, schedules_choices.default_choices(spec, device)[0]) for spec in specs], device):
        assert predicted.spills == 0
        (one,) = predicted.bounds
        assert one.limiter_clocks <= 1.2 * one.clocks["dram"], one.clocks
