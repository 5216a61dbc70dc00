"""What is read from a cubin: names, registers, shared memory, spills and counts of instructions."""

from __future__ import annotations

import pytest

from tests.support.helpers import nvrtc_missing
from tvm_orient.sass.cubin import kernels
from tvm_orient.toolchain import nvrtc

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")


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
    add, spill = sorted(kernels(nvrtc.compile_cubin(source, "sm_80")), key=lambda kernel: kernel.name)
    assert (add.name, spill.name) == ("add", "spill")
    assert (add.shared, spill.shared) == (256, 0)
    assert (add.count("LDG"), add.count("LDS"), add.count("STS"), add.count("FFMA"), add.spills) == (1, 1, 1, 1, 0)
    assert spill.spills > 0
    assert 0 < add.registers < 32
    assert add.instructions >= 8
