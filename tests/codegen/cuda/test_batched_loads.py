"""Loads by batches: all of a batch before its first store, where copies are not asynchronous."""

from __future__ import annotations

from tests.support.cuda import GPU, kernel_of, source_of
from tests.support.helpers import (
    choice_of,
    line,
    spec_of,
)
from tvm_orient.schedules import registry


def test_loads_go_by_batches() -> None:
    """A loop that converts half precision loads first and stores then; copies of float32 are asynchronous and no batches."""
    sources, template = {}, registry.find("shared_patch")
    for dtype in ("float16", "float32"):
        spec = spec_of("conv", 8, 28, 28, line(22.5, k=7), dtype=dtype)
        sources[dtype] = source_of(spec, [choice_of(template, {**template.default(spec, GPU).decisions(), "smem_native_dtype": 0})])
    first, then = sources["float16"].split("tvm_orient_held[", 1)[1].split("#pragma unroll\n")[1:3]
    assert "tvm_orient_load<" in first
    assert "stage_shared_ptr" not in first
    assert "stage_shared_ptr" in then
    assert "x_ptr" not in then.split("__syncthreads", maxsplit=1)[0]
    assert "tvm_orient_load<" not in kernel_of(sources["float32"])
    assert "tvm_orient_copy<" in sources["float32"]
