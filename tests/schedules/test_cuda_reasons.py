"""Why a CUDA template declines a problem or a choice: in words that name the limit."""

from __future__ import annotations

from tests.support.cuda import GPU
from tests.support.helpers import (
    line,
    spec_of,
)
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import registry

GRID = [[[h, w] for h in range(-7, 8) for w in range(-7, 8)]]


def test_the_reasons_of_shared_patch() -> None:
    template = registry.find("shared_patch")
    spec = spec_of("conv", 64, 56, 56, line(45, k=31))
    default = {**template.default(spec, GPU).decisions(), "store_via_smem": 0}
    assert "threads, at most 1024" in str(template.invalid(spec, GPU, {**default, "channels_per_block": 16, "patches_h": 14, "patch_w": 1}))
    assert "multiply-adds, at most" in str(
        template.invalid(spec_of("conv", 64, 56, 56, line(0, k=101)), GPU, {**default, "patch_h": 28, "patch_w": 2, "patches_h": 2})
    )
    assert "vector must be one of" in str(template.invalid(spec_of("conv", 64, 56, 57, line(45, k=31)), GPU, {**default, "vector": 4}))
    assert "unrolls at most" in str(template.declines(spec_of("conv", 1, 400, 400, line(0, k=301)), GPU))
    assert "shared memory" in str(template.declines(spec_of("conv", 1, 10, 100_000, line(0, k=7)), GPU))


def test_the_reasons_of_whole_plane() -> None:
    template = registry.find("whole_plane")
    assert "at most 64 outputs" in str(template.declines(spec_of("conv", 64, 14, 14, line(45, k=7)), GPU))
    assert "float32" in str(template.declines(spec_of("conv", 64, 7, 7, line(45, k=7), dtype="float64"), GPU))
    assert "multiply-adds, at most" in str(template.declines(spec_of("conv", 64, 15, 15, Taps.from_offsets(GRID), 2, "circular"), GPU))
    spec = spec_of("conv", 256, 15, 15, line(45, k=7), 2)
    assert "shared memory" in str(template.invalid(spec, GPU, {**template.default(spec, GPU).decisions(), "channels_per_block": 128}))


def test_the_reasons_of_plane_lanes() -> None:
    template = registry.find("plane_lanes")
    assert "at most 256 inputs" in str(template.declines(spec_of("conv", 64, 28, 28, line(45, k=7)), GPU))
    assert "no number of warps" in str(template.declines(spec_of("conv", 64, 40, 1, line(90, k=7)), GPU))
    assert "multiply-adds, at most" in str(template.declines(spec_of("conv", 64, 14, 14, Taps.from_offsets(GRID)), GPU))
    spec = spec_of("conv", 64, 14, 14, line(45, k=31))
    default = template.default(spec, GPU).decisions()
    assert "shared memory" in str(template.invalid(spec, GPU, {**default, "channels_per_block": 64}))
    small = spec_of("conv", 64, 16, 2, line(0, k=3))
    assert "threads, at most 1024" in str(
        template.invalid(
            spec_of("conv", 64, 4, 32, line(90, k=3)), GPU, {**template.default(small, GPU).decisions(), "channels_per_block": 64, "warps_per_plane": 32}
        )
    )


def test_the_reasons_of_direct() -> None:
    template = registry.find("direct")
    assert "unrolls at most 64 taps" in str(template.declines(spec_of("conv", 1, 200, 200, line(0, k=101)), GPU))
    spec = spec_of("conv", 64, 56, 56, line(45, k=31))
    default = template.default(spec, GPU).decisions()
    assert "multiply-adds, at most" in str(template.invalid(spec, GPU, {**default, "patch_h": 8, "patch_w": 8}))
    assert "pixels, at most" in str(template.invalid(spec_of("conv", 64, 56, 56, line(45, k=45)), GPU, {**default, "patch_h": 4, "patch_w": 8}))
    assert "threads, at most 1024" in str(template.invalid(spec, GPU, {"patch_h": 1, "patch_w": 1, "patches_h": 56, "channels_per_block": 16}))
