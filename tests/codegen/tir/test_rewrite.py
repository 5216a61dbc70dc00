"""Rewrites of scheduled functions: rows cut into vectors cover a row once, prefetches stand where they were asked for."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import check_cpu
from tvm_orient.codegen.tir.vectorize_pieces import pieces, runs
from tvm_orient.compiler.lower import scheduled
from tvm_orient.problem.device import device_for
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice


@given(st.sets(st.integers(1, 300), min_size=1, max_size=5), st.sampled_from([1, 2, 4, 8, 16]))
def test_pieces_cover_a_row_once_with_aligned_vectors_that_straddle_no_bound(ends: set[int], widest: int) -> None:
    bounds = [0, *sorted(ends)]
    runs = list(pieces(bounds, widest))
    assert [column for start, width in runs for column in range(start, start + width)] == list(range(bounds[-1]))
    for start, width in runs:
        assert width in (1, 2, 4, 8, 16)
        assert width <= widest
        assert start % width == 0
        assert any(low <= start and start + width <= high for low, high in itertools.pairwise(bounds))


@given(st.sets(st.integers(1, 2000), min_size=1, max_size=4), st.sampled_from([1, 4, 16]))
def test_long_runs_of_equal_pieces_are_one(ends: set[int], widest: int) -> None:
    found = list(pieces([0, *sorted(ends)], widest))
    joined = list(runs(found))
    assert [(start + turn * width, width) for start, width, count in joined for turn in range(count)] == found
    assert all(count == 1 or count > 16 for *_, count in joined)
    assert len(joined) <= 16 * 6 * len(ends)


@pytest.mark.parametrize("op", ["conv", "conv_dx", "conv_dw"])
def test_a_wide_row(op: str) -> None:
    check_cpu(ConvSpec(op, 1, 2, 1203, Taps.oriented([0.3], 5)), batches=(1,))


@pytest.mark.parametrize("op", ["conv", "conv_dx", "conv_dw"])
@pytest.mark.parametrize("ahead", [0, 2])
def test_prefetches_stand_only_where_a_choice_asks_for_them(op: str, ahead: int) -> None:
    spec = ConvSpec(op, 8, 14, 14, Taps.oriented([0.3], 7))
    device = device_for("cpu")
    template, config = registry.default(spec, device)
    text = scheduled(spec, device, [Choice.of(template, dataclasses.replace(config, prefetch_planes=ahead))]).script()
    assert ("llvm.prefetch" in text) == bool(ahead)


@pytest.mark.parametrize("width", [1, 7, 14, 33])
def test_staged_rows_are_cut_at_the_edges_of_the_plane(width: int) -> None:
    spec = ConvSpec("conv", 4, 5, width, Taps.oriented([0.0], 7))
    device = device_for("cpu")
    text = scheduled(spec, device, [Choice.of(*registry.default(spec, device))]).script()
    assert text.count('T.sblock("stage")') >= len(list(pieces((0, width), 4)))
