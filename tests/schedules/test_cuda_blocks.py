"""The CUDA source of every template run block by block on the CPU, with its barriers, against the oracle."""

from __future__ import annotations

import dataclasses

import pytest

from tests.support.cases import CUDA_CASES as CASES
from tests.support.cuda import GPU, TEMPLATES
from tests.support.helpers import (
    check_blocks,
    fitted,
    line,
    spec_of,
    with_template,
)
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import ONE_TILE, Template
from tvm_orient.schedules.choices import Choice

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
