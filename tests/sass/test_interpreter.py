"""The interpreter of machine code follows loops, branches, banks and votes, and says what it cannot follow."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support.helpers import nvrtc_missing
from tvm_orient.errors import BuildFailed
from tvm_orient.sass import alu, interpreter
from tvm_orient.sass.cubin import kernels
from tvm_orient.sass.known import ALL_BITS, Known
from tvm_orient.toolchain import nvrtc

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
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
    (kernel,) = kernels(nvrtc.compile_cubin(LOOP.replace("STEP", str(step)), arch))
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
    (kernel,) = kernels(nvrtc.compile_cubin(source, arch))
    assert "VOTE" in kernel.code
    assert interpreter.run(kernel, 64, [0], [n]).stored == stores * 128


def test_a_trace_follows_bits_of_a_register_that_is_not_known() -> None:
    class Given:
        def __init__(self, **known: Known) -> None:
            self.known = known

        def partial(self, text: str) -> Known:
            return self.known.get(text, Known(None, None)) if text[0] == "R" and text != "RZ" else Known(np.uint32(int(text.replace("RZ", "0"), 0)), True)

    def and_or(reader: Given, lut: str, mask: str) -> Known:
        return alu.INTEGER["LOP3"](reader, ("LUT",), ("R1", "R1", mask, "RZ", lut, "!PT"))["R1"]

    cleared = and_or(Given(), "0xc0", "0xfffffdff")  # data & ~0x200
    assert (int(cleared.value[0]), cleared.bits) == (0, 0x200)
    filled = and_or(Given(R1=cleared), "0xfc", "0x200")  # ... | 0x200
    assert (int(filled.value[0]), filled.bits) == (0x200, 0x200)
    tested = and_or(Given(R1=filled), "0xc0", "0x200")  # ... & 0x200
    assert (int(tested.value[0]), tested.bits) == (0x200, ALL_BITS)
    assert and_or(Given(R1=filled), "0xc0", "0x300").bits != ALL_BITS, "the other bit is data"


def test_a_trace_says_what_it_cannot_follow() -> None:
    source = 'extern "C" __global__ void main_kernel(int* x) { if (x[threadIdx.x] > 3) x[x[threadIdx.x + 32]] = 1; }'
    (kernel,) = kernels(nvrtc.compile_cubin(source, "sm_80"))
    with pytest.raises(BuildFailed, match="depends on data"):
        interpreter.run(kernel, 32, [0])
