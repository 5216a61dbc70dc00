"""Offsets of lines: the published truncation rule on the sensitive angles, ground truth, and symmetry laws."""

import math
from decimal import Decimal, localcontext

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.taps import Taps

pytestmark = [
    pytest.mark.timeout(120, method="thread"),  # naming a table must never become a long search; thread: no shrinking afterwards
    pytest.mark.filterwarnings("ignore:theta is in radians"),  # the laws hold beyond a turn too
]
GRID = [22.5 * n for n in range(8)]


def line(degrees, kernel_size, **kwargs):
    return Taps.oriented(math.radians(degrees), kernel_size, **kwargs).table[0]


# ---- the rule against exact arithmetic ----------------------------------------------------------


def exact_cosines():
    """cos of m * 11.25 degrees for m = 0..31 with 50 digits, from 0 and 90 degrees by half-angle formulas alone."""
    with localcontext() as context:
        context.prec = 60
        c = {0: Decimal(1), 8: Decimal(0)}
        half = lambda cosine: ((1 + cosine) / 2).sqrt()  # noqa: E731
        c[4] = half(c[8])
        c[2], c[6] = half(c[4]), half(-c[4])
        c[1], c[3], c[5], c[7] = half(c[2]), half(c[6]), half(-c[6]), half(-c[2])
        return [c[m] if m <= 8 else -c[16 - m] if m <= 16 else -c[m - 16] if m <= 24 else c[32 - m] for m in range(32)]


def exact_products(directions, kernel_size):
    """{(angle number, tap, component): exact product}; component 0 is dh = -sin * k, 1 is dw = cos * k."""
    cosines = exact_cosines()
    step = 32 // directions
    products = {}
    for j in range(directions):
        cos, sin = cosines[j * step], cosines[(j * step - 8) % 32]
        for s in range(kernel_size):
            k = s - kernel_size // 2
            products[j, s, 0], products[j, s, 1] = -sin * k, cos * k
    return products


@pytest.mark.parametrize(("directions", "smallest"), [(4, None), (8, 2.08e-2), (16, 1.04e-2), (32, 1.32e-4)])
def test_rule_is_exact_on_grids_without_30_degrees(directions, smallest):
    table = Taps.oriented(2 * np.pi * np.arange(directions) / directions, 63).offsets
    products = exact_products(directions, 63)
    wrong = {place: (product, table[place]) for place, product in products.items() if int(product) != table[place]}
    assert wrong == {}
    whole = [place for place, product in products.items() if product == int(product) != 0]
    assert len(products) == directions * 126
    assert len(whole) == 248
    assert {(4 * j) % directions for j, _, _ in whole} == {0}  # axis angles only
    others = [abs(product - round(product)) for product in products.values() if product != int(product) and round(product) != 0]
    if smallest is None:
        assert others == []
    else:
        assert float(min(others)) == pytest.approx(smallest, rel=5e-3)


def test_closest_call_of_the_32_directions():
    assert line(33.75, 19)[18] == (-5, 7)  # exactly 5.000132 pixels up
    assert line(33.75, 37)[36][0] == -10  # 10.000264


def test_one_ulp_low_would_move_every_axis_tap():
    """Why offsets are never computed by a fast sine: 1 - 1 ulp loses a pixel at every distance."""
    k = np.arange(-31, 32, dtype=np.float32)
    low = np.trunc(np.nextafter(np.float32(1), np.float32(0)) * k).astype(int)
    for degrees, axis, sign in ((0, 1, 1), (90, 0, -1), (180, 1, -1), (270, 0, 1)):
        ours = Taps.oriented(math.radians(degrees), 63).offsets[0, :, axis]
        assert (ours == sign * k).all()
        assert np.count_nonzero(ours != sign * low) == 62


def test_30_degree_family_follows_float32():
    """float32 cos 60 is 0.49999997, so every even tap is one pixel short of the exact product at four angles."""
    assert np.float32(math.cos(float(np.float32(math.radians(60))))) == np.float32(0.49999997)
    with localcontext() as context:
        context.prec = 60
        cosines = [Decimal(1), Decimal(3).sqrt() / 2, Decimal(1) / 2, Decimal(0)]
        cosines += [-c for c in cosines[2::-1]]
        cosines += cosines[5:0:-1]
        flipped = {}
        for j in range(12):
            offsets = Taps.oriented(math.radians(30 * j), 63).table[0]
            for s in range(63):
                for component, factor in ((0, -cosines[(j - 3) % 12]), (1, cosines[j])):
                    exact = int(factor * (s - 31))
                    if offsets[s][component] != exact:
                        assert abs(exact) - abs(offsets[s][component]) == 1
                        flipped.setdefault((30 * j, component), set()).add(s - 31)
    even = {k for k in range(-30, 31, 2) if k}
    assert flipped == {(60, 1): even, (210, 0): even, (240, 1): even, (300, 1): even}
    assert sum(map(len, flipped.values())) == 120


# ---- ground truth of the published system, theta = 22.5 n, k = 1..15 -------------------------------

STEEP = "0 -1 -2 -3 -4 -5 -6 -7 -8 -9 -10 -11 -12 -12 -13"
SHALLOW = "0 0 -1 -1 -1 -2 -2 -3 -3 -3 -4 -4 -4 -5 -5"
DIAGONAL = "0 -1 -2 -2 -3 -4 -4 -5 -6 -7 -7 -8 -9 -9 -10"
ALONG = "0 1 2 3 4 5 6 7 8 9 10 11 12 12 13"
ACROSS = "0 0 1 1 1 2 2 3 3 3 4 4 4 5 5"
STILL = "0 0 0 0 0 0 0 0 0 0 0 0 0 0 0"
TRUTH = {
    0.0: (STILL, "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
    22.5: (SHALLOW, ALONG),
    45.0: (DIAGONAL, "0 1 2 2 3 4 4 5 6 7 7 8 9 9 10"),
    67.5: (STEEP, ACROSS),
    90.0: ("-1 -2 -3 -4 -5 -6 -7 -8 -9 -10 -11 -12 -13 -14 -15", STILL),
    112.5: (STEEP, "0 0 -1 -1 -1 -2 -2 -3 -3 -3 -4 -4 -4 -5 -5"),
    135.0: (DIAGONAL, DIAGONAL),
    157.5: (SHALLOW, "0 -1 -2 -3 -4 -5 -6 -7 -8 -9 -10 -11 -12 -12 -13"),
}
DISTINCT = {
    3: (3, 1, 1, 1),
    5: (5, 3, 3, 3),
    7: (7, 5, 5, 5),
    13: (13, 11, 9, 11),
    15: (15, 13, 9, 13),
    27: (27, 25, 19, 25),
    31: (31, 29, 21, 29),
    63: (63, 61, 43, 61),
}
REACH = {31: (0, 5, 10, 13, 15, 13, 10, 5), 15: (0, 2, 4, 6, 7, 6, 4, 2), 7: (0, 1, 2, 2, 3, 2, 2, 1)}


@pytest.mark.parametrize("degrees", TRUTH)
def test_ground_truth(degrees):
    up, right = ([int(v) for v in text.split()] for text in TRUTH[degrees])
    positive = list(zip(up, right, strict=True))
    negative = [(-h, -w) for h, w in reversed(positive)]
    assert list(line(degrees, 31)) == [*negative, (0, 0), *positive]


@pytest.mark.parametrize("kernel_size", DISTINCT)
def test_distinct_taps(kernel_size):
    counts = [len(Taps.oriented(math.radians(degrees), kernel_size).distinct(0)) for degrees in GRID]
    assert counts == [*DISTINCT[kernel_size], *(DISTINCT[kernel_size][n % 4] for n in range(4, 8))]


@pytest.mark.parametrize("kernel_size", REACH)
def test_vertical_reach(kernel_size):
    taps = Taps.oriented(angles_between(8), kernel_size)
    assert tuple(np.abs(taps.offsets[:, :, 0]).max(axis=1)) == REACH[kernel_size]


def test_live_taps_of_a_small_plane():
    offsets = Taps.oriented(angles_between(8), 31).offsets
    alive = (np.abs(offsets) < 7).all(axis=-1)
    assert alive.sum(axis=1).tolist() == [13, 15, 19, 15, 13, 15, 19, 15]
    assert {len({tuple(o) for o in group[keep]}) for group, keep in zip(offsets, alive, strict=True)} == {13}


def test_colliding_taps_share_a_place():
    places = Taps.oriented(math.radians(45), 5).distinct(0)
    assert places == {(1, -1): (0,), (0, 0): (1, 2, 3), (-1, 1): (4,)}
    assert list(places) == [(1, -1), (0, 0), (-1, 1)]  # order of first use


@given(st.lists(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=6, max_size=6), min_size=1, max_size=3))
def test_distinct_covers_every_tap_once(table):
    taps = Taps.from_offsets(table)
    for g in range(taps.groups):
        places = taps.distinct(g)
        assert sorted(s for used in places.values() for s in used) == list(range(6))
        assert all(taps.table[g][s] == offset for offset, used in places.items() for s in used)


# ---- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel_size", [1, 3, 15, 31, 63])
@pytest.mark.parametrize("degrees", [22.5 * n for n in range(16)])
def test_symmetries_of_the_grid(degrees, kernel_size):
    taps = line(degrees, kernel_size)
    assert line(degrees + 180, kernel_size) == taps[::-1]
    assert line(-degrees, kernel_size) == tuple((-h, w) for h, w in taps)
    assert line(180 - degrees, kernel_size) == tuple((h, -w) for h, w in taps)


@given(st.floats(-10, 10), st.integers(0, 15), st.integers(1, 4))
def test_line_is_odd_and_centred(theta, half, dilation):
    taps = Taps.oriented(theta, 2 * half + 1, dilation)
    assert taps.table[0][half] == (0, 0)
    assert taps.negated.table[0] == taps.table[0][::-1]


@given(st.floats(-10, 10), st.integers(0, 12), st.integers(1, 4))
def test_dilation_and_anchor_only_choose_distances(theta, half, dilation):
    """Dilation multiplies the distance before truncation, and anchor start is the far half of a centred line."""
    dilated = Taps.oriented(theta, 2 * half + 1, dilation).table[0]
    dense = Taps.oriented(theta, 2 * half * dilation + 1).table[0]
    assert dilated == dense[::dilation]
    assert Taps.oriented(theta, half + 1, dilation, "start").table[0] == dilated[half:]


def test_dilation_comes_before_truncation():
    assert line(45, 3, dilation=2) == ((1, -1), (0, 0), (-1, 1))  # trunc(1.414), not 2 * trunc(0.707)


def test_even_sizes_are_for_anchor_start():
    assert line(0, 4, anchor="start") == ((0, 0), (0, 1), (0, 2), (0, 3))


def test_theta_is_rounded_to_float32_first():
    assert Taps.oriented(math.pi / 2, 31) == Taps.oriented(np.float32(math.pi / 2), 31) == Taps.oriented(np.array([math.pi / 2]), 31)
