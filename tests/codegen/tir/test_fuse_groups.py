"""Angles of a layer in one launch: unlike blocks and stages share it, and what one angle alone needs is left out."""

from __future__ import annotations

import re

import pytest

from tests.support.cuda import GPU, in_turn, kernel_of, source_of, uneven
from tests.support.helpers import (
    OPS,
    check_blocks,
    check_serial,
    choice_of,
    line,
    spec_of,
)
from tvm_orient.codegen.cuda.cuda_text import divergent, launches
from tvm_orient.compiler import library, lower
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import default_choices


@pytest.mark.parametrize(("name", "chosen"), [("two_pass_dw", {"whole": 1}), ("strips_dw", {})])
def test_long_sums_gain_nothing_by_the_pass_that_is_left_out(name: str, chosen: dict[str, int]) -> None:
    spec, template = spec_of("conv_dw", 32, 7, 7, line(67.5, k=7)), registry.find(name)
    module = lower.scheduled(spec, GPU, [choice_of(template, {**template.default(spec, GPU).decisions(), **chosen})])
    assert "tvm_orient.settled" in module["main"].attrs
    with_it = type(module)({"main": module["main"].without_attr("tvm_orient.settled")})
    assert library.cuda_source(module, GPU) == library.cuda_source(with_it, GPU)


@pytest.mark.parametrize("op", OPS)
def test_groups_of_different_thread_counts_share_a_launch(op: str) -> None:
    spec, choices, alone = uneven(op)
    source = source_of(spec, choices)
    kernels = launches(source)
    assert len(kernels) == (2 if op == "conv_dw" else 1)
    assert source.count("__global__") == 2 * len(kernels)  # each is declared, then defined
    assert kernels[0][1] == max(alone)
    assert divergent(source) == []


def test_angles_of_unlike_stages_share_a_launch() -> None:
    spec = spec_of("conv", 48, 10, 12, line(0, 45, 67.5, 135, k=7))
    ahead, one, turns, strips = (
        in_turn(spec, "shared_patch", store_via_smem=1, weights_shared=1)[0],
        default_choices(spec, GPU)[1],
        in_turn(spec, "shared_patch", tiles_per_block=4, stages=1, channels_per_block=1)[2],
        in_turn(spec, "strips", tiles_per_block=4, channels_per_block=2)[3],
    )
    choices = (ahead, one, turns, strips)
    check_serial(spec, choices, batches=(2,))
    check_blocks(spec, choices)
    assert len(re.findall(r"tvm_orient_arrived_but_last\(\);", kernel_of(source_of(spec, choices)))) == 2


@pytest.mark.parametrize("op", OPS)
def test_blocks_of_different_thread_counts(op: str) -> None:
    spec, choices, _ = uneven(op)
    check_blocks(spec, choices)
