"""How many blocks a multiprocessor holds at once, by the limits of its architecture."""

from __future__ import annotations

import pytest

from tvm_orient.errors import InvalidArgument
from tvm_orient.perf_model import gpu_specs


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
