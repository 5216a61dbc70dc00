"""Half precision staged as it lies: copied by whole words, read four values at a time."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.cuda import GPU, kernel_of, source_of
from tests.support.helpers import (
    check_blocks,
    check_serial,
    choice_of,
    line,
    spec_of,
)
from tvm_orient.schedules import registry


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_staged_as_it_lies(dtype: str) -> None:
    """Copies of whole words are asynchronous, values are read four at a time; in whole rows, in tiles and by planes that stand apart."""
    template = registry.find("shared_patch")
    for case, decisions in [
        (("conv", 4, 12, 16, line(22.5, 90, k=7)), {"patch_h": 4, "patch_w": 4, "patches_h": 4, "channels_per_block": 2, "plane_skew": 4, "tile": 0}),
        (("conv_dx", 2, 9, 112, line(135, k=9)), {"patch_h": 2, "patch_w": 4, "patches_h": 2, "channels_per_block": 1, "plane_skew": 0, "tile": 28}),
    ]:
        spec, choices = dataclasses.replace(spec_of(*case), dtype=dtype), []
        for _, _, part in spec.parts():
            chosen = {
                "vector": 4,
                "weights_shared": 1,
                "store_via_smem": 0,
                "row_pad": 4,
                "smem_native_dtype": 1,
                "tiles_per_block": 1,
                "stages": 1,
                **decisions,
            }
            assert template.invalid(part, GPU, chosen) is None
            choices.append(choice_of(template, chosen))
        check_serial(spec, choices, batches=(2,))
        check_blocks(spec, choices)
        kernel = kernel_of(source_of(spec, choices))
        assert "tvm_orient_copy<8>(stage_shared_ptr" in kernel
        assert "tvm_orient_value<" in kernel
        assert "(float)stage_shared" not in kernel
    assert "begin at multiples" in str(template.invalid(spec, GPU, {**chosen, "patch_w": 2}))
