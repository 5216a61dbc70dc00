"""Tiles that are computed in turn, the next one copied ahead: right in every part of the ring, and waits and barriers where they must be."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re

import pytest
import torch

from tests.support.cuda import GPU, in_turn, kernel_of, source_of
from tests.support.helpers import (
    call,
    check_blocks,
    check_serial,
    line,
    operands,
    spec_of,
)
from tests.support.sampling import sampled
from tvm_orient.codegen.names import kernel_names
from tvm_orient.compiler import library, lower
from tvm_orient.evaluate.cuda_emulator import Blocks
from tvm_orient.schedules import registry


@pytest.mark.parametrize(
    ("name", "collect"), sampled(itertools.product(("shared_patch", "strips"), (0, 1)), pairs=lambda *_: (), once=lambda name, collect: (name, collect))
)
def test_tiles_that_are_copied_ahead(name: str, collect: int) -> None:
    """Ragged patches, strides and wrapped planes; weights in the ring and not; more turns than stages, in any part of the ring."""
    for case, decisions in [
        (("conv", 12, 13, 17, line(22.5, k=15)), {"weights_shared": 1}),
        (
            ("conv", 6, 11, 10, line(67.5, k=7), (3, 2)),
            {"channels_per_block": 1, "tiles_per_block": 4, "weights_shared": 1},
        ),  # three turns, since 6 channels part so
        (("conv_dx", 16, 9, 7, line(22.5, k=7), (3, 2), "circular"), {"tiles_per_block": 4, "weights_shared": 0}),
    ]:
        spec = spec_of(*case)
        choices = in_turn(spec, name, store_via_smem=collect, **decisions)
        check_serial(spec, choices, batches=(1, 3))
        check_blocks(spec, choices)


@pytest.mark.parametrize("weights_shared", [0, 1])
@pytest.mark.parametrize("turns", [2, 4])
def test_lines_of_tiles_that_are_copied_ahead(turns: int, weights_shared: int) -> None:
    for spec in (spec_of("conv", 16, 9, 12, line(135, k=5)), spec_of("conv_dx", 6, 10, 10, line(90, k=7))):
        choices = in_turn(spec, "lines", tiles_per_block=turns, staged=1, weights_shared=weights_shared)
        check_serial(spec, choices, batches=(2,))
        check_blocks(spec, choices)
    assert "planes that are staged" in str(registry.find("lines").invalid(spec, GPU, {**dict(choices[0].decisions), "staged": 0}))


def test_what_is_left_of_turns_where_channels_do_not_part() -> None:
    spec = spec_of("conv", 5, 9, 12, line(22.5, k=5))
    for choices in (in_turn(spec, "shared_patch"), in_turn(spec, "shared_patch", tiles_per_block=4, stages=1)):
        assert "tvm_orient_ahead" not in kernel_of(source_of(spec, choices))
        check_serial(spec, choices, batches=(2,))
    reason = registry.find("shared_patch").invalid(spec, GPU, {**dict(choices[0].decisions), "tiles_per_block": 1, "stages": 2})
    assert "tiles_per_block must be at least as many" in str(reason)
    half = dataclasses.replace(spec, dtype="float16")
    assert "stages must be one of 1, got 2" in str(registry.find("shared_patch").invalid(half, GPU, {**dict(choices[0].decisions), "stages": 2}))


def test_half_precision_in_turn() -> None:
    """Copies that convert cannot be sent ahead; a block may pass over its tiles all the same."""
    spec = spec_of("conv", 8, 9, 12, line(22.5, k=5), dtype="float16")
    choices = in_turn(spec, "shared_patch", tiles_per_block=4, stages=1, weights_shared=1)
    check_serial(spec, choices, batches=(2,))
    check_blocks(spec, choices)


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        (r"(tvm_orient_ahead \+?= .*\{\n(?:.*\n)*?) *__syncthreads\(\);\n", r"\1"),  # a tile is overwritten while others still read it
        (r"tvm_orient_arrived_but_last\(\); ", ""),
        (r" *tvm_orient_sent\(\);\n", ""),  # the first tile's copies are then of the same group as the second's
        (r"tvm_orient_arrived_but_last\(\); __syncthreads\(\);", "tvm_orient_arrived_but_last();"),
    ],
    ids=["no barrier before the copies", "no wait", "one group", "no barrier after the wait"],
)
def test_copies_that_come_too_early_or_late_are_seen(pattern: str, replacement: str) -> None:
    spec = spec_of("conv", 8, 9, 12, line(22.5, k=5))
    choices = in_turn(spec, "shared_patch", tiles_per_block=4, store_via_smem=0)
    module = lower.scheduled(spec, GPU, choices, 2)
    source, given = library.cuda_source(module, GPU), operands(spec, 2)
    changed, count = re.subn(pattern, replacement, source)
    assert count == 1
    broken = Blocks(module, GPU, changed)
    runs = [functools.partial(broken, names=kernel_names(spec.op, bias=spec.bias), backwards=backwards) for backwards in (False, True)]
    results = [call(spec, run, given, None) for run in runs]
    assert not torch.equal(*results)
