"""The stencil of an angle: folded, pruned and wrapped taps, and what a stage of it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.helpers import EIGHT, OPS, line, spec_of
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import round_up, stencil
from tvm_orient.problem.taps import Taps

PADDINGS = ["zeros", "circular"]


@pytest.mark.parametrize("degrees", [math.degrees(a) for a in EIGHT])
@pytest.mark.parametrize(
    ("kernel_size", "counts"), [(3, (3, 1, 1, 1)), (7, (7, 5, 5, 5)), (15, (15, 13, 9, 13)), (31, (31, 29, 21, 29)), (63, (63, 61, 43, 61))]
)
def test_colliding_taps_are_folded(degrees: float, kernel_size: int, counts: tuple[int, ...]) -> None:
    g = stencil(spec_of("conv", 8, 200, 200, line(degrees, k=kernel_size)))
    assert len(g.every) == counts[round(degrees / 22.5) % 4]
    assert sorted(s for t in g.every for s in t.taps) == list(range(kernel_size))


# reference/oriented1d.md 1.4: live taps of K=31 before folding
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("size", "live"),
    [(7, (13, 15, 19, 15, 13, 15, 19, 15)), (14, (27, 31, 31, 31, 27, 31, 31, 31)), (28, (31,) * 8), (56, (31,) * 8)],
    ids=["7x7", "14x14", "28x28", "56x56"],
)
def test_dead_taps_are_pruned(op: str, size: int, live: tuple[int, ...]) -> None:
    gathers = [stencil(spec_of(op, 8, size, size, line(22.5 * i, k=31))) for i in range(8)]
    assert tuple(sum(len(t.taps) for t in g.every) for g in gathers) == live
    if size == 7:
        assert {len(g.every) for g in gathers} == {13}


def test_out_of_reach_leaves_no_term() -> None:
    for op in OPS:
        g = stencil(spec_of(op, 2, 4, 5, Taps.from_offsets([[[4, 0], [0, -5], [99, 99]]])))
        assert g.every == []
        assert (g.low(0), g.high(0), g.low(1), g.high(1), g.span()) == (0, 0, 0, 0, 1)


def test_strides_prune_what_no_output_reads() -> None:
    # two outputs, at columns 0 and 3 of 6: an offset of 3 lands only from the first, 6 and -4 from neither
    g = stencil(spec_of("conv", 1, 1, 6, Taps.from_offsets([[[0, 3], [0, 6], [0, -4], [0, -3], [0, 5]]]), 3))
    assert [t.col for t in g.every] == [3, -3, 5]


@pytest.mark.parametrize("op", OPS)
def test_a_circular_plane_folds_what_coincides_modulo_its_size(op: str) -> None:
    g = stencil(spec_of(op, 1, 5, 4, line(0, k=31), padding="circular"))
    assert g.wrap
    assert len(g.every) == 4
    assert sorted(s for t in g.every for s in t.taps) == list(range(31))
    assert all(abs(t.row) <= 2 and abs(t.col) <= 2 for t in g.every)


def test_the_phases_of_conv_dx_share_out_the_taps() -> None:
    spec = spec_of("conv_dx", 1, 12, 12, line(22.5, k=7), (2, 3))
    g = stencil(spec)
    assert g.phases == (2, 3)
    assert set(g.terms) == {(a, b) for a in range(2) for b in range(3)}
    assert sorted(s for t in g.every for s in t.taps) == list(range(7))


def test_a_circular_plane_that_the_stride_does_not_tile_is_unwrapped() -> None:
    assert stencil(spec_of("conv_dx", 1, 6, 6, line(0, k=3), 2, "circular")).wrap
    assert not stencil(spec_of("conv_dx", 1, 5, 6, line(0, k=3), 2, "circular")).wrap


_OFFSETS = st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=6)


@given(_OFFSETS, st.integers(1, 7), st.integers(1, 7), st.tuples(st.integers(1, 3), st.integers(1, 3)), st.sampled_from(PADDINGS), st.sampled_from(OPS))
def test_the_gather_is_the_definition(offsets: list[tuple[int, int]], height: int, width: int, stride: tuple[int, int], padding: str, op: str) -> None:
    """Every pair (output pixel, source pixel) gets the taps that the definition pairs them by, no more and no less."""
    spec = ConvSpec(op, 1, height, width, Taps.from_offsets([offsets]), stride=stride, padding_mode=padding)
    g = stencil(spec)
    wanted: dict[tuple[int, ...], list[int]] = {}
    for p, q in np.ndindex(spec.out_height, spec.out_width):
        for s, (dh, dw) in enumerate(offsets):
            h, w = p * stride[0] + dh, q * stride[1] + dw
            if padding == "circular":
                h, w = h % height, w % width
            if 0 <= h < height and 0 <= w < width:
                wanted.setdefault((h, w, p, q) if op == "conv_dx" else (p, q, h, w), []).append(s)
    got: dict[tuple[int, ...], list[int]] = {}
    for i, j in np.ndindex(*g.output):
        for t in g.terms[i % g.phases[0], j % g.phases[1]]:
            h, w = i // g.phases[0] * g.step[0] + t.row, j // g.phases[1] * g.step[1] + t.col
            if g.wrap:
                h, w = h % g.source[0], w % g.source[1]
            if 0 <= h < g.source[0] and 0 <= w < g.source[1]:
                got.setdefault((i, j, h, w), []).extend(t.taps)
    assert {place: sorted(taps) for place, taps in got.items()} == {place: sorted(taps) for place, taps in wanted.items()}
    # nothing that is kept is useless: each term reaches the plane from some output
    assert g.wrap or all(any(t in g.terms[i % g.phases[0], j % g.phases[1]] for i, j in np.ndindex(*g.output)) for t in g.every)


@given(
    _OFFSETS,
    st.integers(1, 9),
    st.integers(1, 9),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.sampled_from(OPS),
    st.sampled_from([1, 4, 8]),
    st.sampled_from([1, 4]),
)
def test_the_stage_holds_every_read(offsets: list[tuple[int, int]], height: int, width: int, stride: tuple[int, int], op: str, halo: int, pitch: int) -> None:
    g = stencil(ConvSpec(op, 1, height, width, Taps.from_offsets([offsets]), stride=stride))
    inner = -(-g.output[1] // g.phases[1])
    stage = g.stage(inner, halo, pitch)
    assert stage.left % (halo * stage.phases) == 0
    assert stage.columns % pitch == 0
    rows = -(-g.output[0] // g.phases[0])
    for t in g.every:
        phase, shift = stage.place(t.col)
        assert 0 <= phase < stage.phases
        assert 0 <= shift <= stage.columns - inner
        assert shift * stage.phases + phase - stage.left == t.col
        assert t.row + stage.top >= 0
        assert (rows - 1) * g.step[0] + t.row + stage.top < stage.rows


@given(st.integers(0, 100), st.integers(1, 16))
def test_round_up(value: int, multiple: int) -> None:
    assert round_up(value, multiple) % multiple == 0
    assert 0 <= round_up(value, multiple) - value < multiple
