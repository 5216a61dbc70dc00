"""The CUDA source of every template run block by block on the CPU, with its barriers, against the oracle."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.cases import CUDA_CASES as CASES
from tests.support.cuda import GPU, TEMPLATES
from tests.support.helpers import (
    check_blocks,
    choice_of,
    fitted,
    line,
    served,
    spec_of,
    with_template,
)
from tests.support.sampling import facets, sampled
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import Template

BLOCKS = ["uneven groups", "stride 3x2", "circular, ragged stride", "7x7", "odd"]
HALVES = ["7x7", "uneven groups", "odd"]


def spec_for(template: Template, op: str, case: str, dtype: str) -> ConvSpec:
    """The case as the template serves it, in that dtype."""
    return fitted(template, dataclasses.replace(spec_of(op, *CASES[case]), dtype=dtype))


@pytest.mark.parametrize(
    ("template", "op", "case", "dtype"),
    sampled(
        [
            *((*row, "float32") for row in served(TEMPLATES, BLOCKS, CASES, GPU)),
            *((*row, "float16") for row in served(TEMPLATES, HALVES, CASES, GPU)),
            *((*row, "bfloat16") for row in served(TEMPLATES, HALVES[:1], CASES, GPU)),
        ],
        pairs=lambda *_: (),
        once=lambda template, op, case, dtype: (case, (template.name, op, dtype), *enumerate(facets(spec_for(template, op, case, dtype)))),
    ),
)
def test_blocks_with_barriers(template: Template, op: str, case: str, dtype: str) -> None:
    """In half precision copies go by batches, with every vector that a width allows and with none; results by vectors, collected and one by one."""
    spec = spec_for(template, op, case, dtype)
    choices = with_template(template, spec, GPU)
    assert choices is not None
    check_blocks(spec, choices)


def test_blocks_of_half_precision_that_keep_weights_and_part_planes() -> None:
    """Weights are staged in one turn without a loop, planes stand apart, and results are collected."""
    spec, template = spec_of("conv", 8, 28, 28, line(22.5, k=7), dtype="float16"), registry.find("shared_patch")
    decisions = {
        "patch_h": 7,
        "patch_w": 7,
        "patches_h": 4,
        "channels_per_block": 4,
        "vector": 4,
        "weights_shared": 1,
        "store_via_smem": 1,
        "row_pad": 4,
        "tile": 0,
        "plane_skew": 4,
    }
    decisions |= {"smem_native_dtype": 0, "tiles_per_block": 1, "stages": 1}
    assert template.invalid(spec, GPU, decisions) is None
    check_blocks(spec, [choice_of(template, decisions)])
