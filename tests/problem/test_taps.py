"""Taps: keys, the lines that a table is, channel groups, and wrong input."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tvm_orient.errors import InvalidArgument
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.taps import Taps
from tvm_orient.problem.taps_key import Lines, degrees_text

pytestmark = [
    pytest.mark.timeout(120, method="thread"),  # naming a table must never become a long search; thread: no shrinking afterwards
    pytest.mark.filterwarnings("ignore:theta is in radians"),  # the laws hold beyond a turn too
]
# ---- keys -----------------------------------------------------------------------------------------

GOLDEN_KEYS = [
    ("k31a0_22.5_45_67.5_90_112.5_135_157.5", lambda: Taps.oriented(angles_between(8), 31)),
    ("k31a22.5", lambda: Taps.oriented(math.radians(22.5), 31)),
    ("k31a337.5", lambda: Taps.oriented(math.radians(-22.5), 31)),
    ("k7d2a45", lambda: Taps.oriented(math.pi / 4, 7, 2)),
    ("k5sa90", lambda: Taps.oriented(math.pi / 2, 5, anchor="start")),
    ("k31a60", lambda: Taps.oriented(math.pi / 3, 31)),
    ("k1a0", lambda: Taps.oriented(1.0, 1)),
    ("t0.0.0.5.-3.1", lambda: Taps.from_offsets([[[0, 0], [0, 5], [-3, 1]]])),
    ("t0.0.1.1_0.1.0.0", lambda: Taps.from_offsets([[[0, 0], [1, 1]], [[0, 1], [0, 0]]])),
]


@pytest.mark.parametrize(("key", "make"), GOLDEN_KEYS, ids=[key for key, _ in GOLDEN_KEYS])
def test_golden_keys(key, make):
    """Keys are written into logs and exported programs: a change here orphans them."""
    assert make().key == key
    assert Taps.from_key(key) == make()


oriented = st.builds(
    lambda thetas, half, dilation, anchor: Taps.oriented(thetas, 2 * half + 1, dilation, anchor),
    st.lists(st.one_of(st.floats(-7, 7), st.integers(0, 72).map(lambda n: math.radians(5 * n))), min_size=1, max_size=4),
    st.integers(0, 31),
    st.integers(1, 5),
    st.sampled_from(["center", "start"]),
)


def tables(largest):
    offset = st.tuples(st.integers(-largest, largest), st.integers(-largest, largest))
    return st.integers(1, 5).flatmap(lambda k: st.lists(st.lists(offset, min_size=k, max_size=k), min_size=1, max_size=3)).map(Taps.from_offsets)


any_taps = st.one_of(oriented, tables(1), tables(3), tables(2**15))


@given(any_taps)
def test_key_round_trip(taps):
    again = Taps.from_key(taps.key)
    assert again == taps
    assert hash(again) == hash(taps)
    assert again.key == taps.key


UNLIKE_A_LINE = [
    [[[5, 5]]],  # the centre tap is not at the centre
    [[[-(2**15), 2**15]]],
    [[[0, 0], [3, 3], [0, 0]]],
    [[[1, 2], [0, 0], [1, 2]]],  # each distance fits dilation 3 at 20 to 40 degrees, but both ends are on one side
    [[[0, 1], [0, 0], [1, 0]]],
    [[[-1, -1], [0, 0], [-1, 1]]],
]


@pytest.mark.parametrize("offsets", UNLIKE_A_LINE)
def test_a_table_that_is_no_line_is_named_at_once(offsets):
    taps = Taps.from_offsets(offsets)
    assert taps.key == "t" + "_".join(".".join(f"{h}.{w}" for h, w in group) for group in offsets)
    assert Taps.from_key(taps.key) == taps


@given(any_taps, any_taps)
def test_equal_tables_have_equal_keys(one, other):
    assert (one.key == other.key) == (one.table == other.table) == (one == other)


@given(st.floats(0, 360), st.floats(0, 360))
def test_angles_with_one_table_are_one_key(one, other):
    """At K=3 whole ranges of angles give the same three pixels."""
    first, second = (Taps.oriented(math.radians(degrees), 3) for degrees in (one, other))
    assert (first.key == second.key) == np.array_equal(first.offsets, second.offsets)


@given(oriented)
def test_a_line_is_named_by_an_angle(taps):
    assert taps.key.startswith("k"), taps.key


def test_taps_are_values():
    one, other = Taps.oriented(0.1, 7), Taps.oriented([0.1], 7)
    assert len({one, other}) == 1
    assert one != "k7a5"
    assert repr(one) == f"Taps({one.key})"
    with pytest.raises(AttributeError):
        one.table = ()


@pytest.mark.parametrize(
    ("key", "degrees", "dilation", "anchor"),
    [
        ("k31a22.5", (22.5,), 1, "center"),
        ("k5a0_90_22.5", (0.0, 90.0, 22.5), 1, "center"),
        ("k7d2a45", (45.0,), 2, "center"),
        ("k4sa90", (90.0,), 1, "start"),
    ],
)
def test_taps_know_the_lines_that_they_are(key, degrees, dilation, anchor):
    taps = Taps.from_key(key)
    assert taps.degrees == degrees
    assert taps.lines == Lines(degrees, dilation, anchor)
    assert f"a{'_'.join(map(degrees_text, taps.degrees))}" in taps.key


def test_free_offsets_are_no_lines():
    taps = Taps.from_key("t0.0.3.-4.0.9")
    assert (taps.degrees, taps.lines) == ((), None)
    assert taps.mirrored == Taps.from_key("t0.0.3.4.0.-9")


@given(st.floats(0, 179, width=32), st.integers(0, 15))
def test_a_mirror_turns_the_angle_about_the_upright(degrees, half):
    taps = Taps.oriented(math.radians(degrees), 2 * half + 1)
    assert taps.mirrored.mirrored == taps
    assert taps.mirrored.negated == Taps.oriented(-math.radians(degrees), 2 * half + 1), "a line at 180 - a is that at -a, walked from its other end"


# ---- channel groups -------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 120))
@example(8, 96)
@example(8, 3)
@example(1, 1)
def test_channel_ranges_follow_the_formula(groups, channels):
    ranges = Taps.from_offsets([[[g, 0]] for g in range(groups)]).channel_ranges(channels)
    assert len(ranges) == groups
    by_formula = [(groups * (c + 1) - 1) // channels for c in range(channels)]
    by_ranges = [g for g, (start, stop) in enumerate(ranges) for _ in range(start, stop)]
    assert by_ranges == by_formula
    assert ranges[0][0] == 0
    assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))


@given(st.lists(st.integers(0, 2), min_size=1, max_size=24))
def test_for_channels_keeps_every_channel_and_never_adds_groups(rows):
    taps = Taps.from_offsets([[[r, 0]] for r in rows])
    fewer = taps.for_channels(len(rows))
    assert fewer.groups <= taps.groups
    assert [fewer.table[(fewer.groups * (c + 1) - 1) // len(rows)] for c in range(len(rows))] == list(taps.table)


def test_for_channels_finds_contiguous_groups():
    assert Taps.oriented(np.repeat(angles_between(8), 12), 31).for_channels(96).key == "k31a0_22.5_45_67.5_90_112.5_135_157.5"


# ---- wrong inputs ---------------------------------------------------------------------------------

WRONG = [
    (lambda: Taps.oriented(0.0, 4), "got 4"),
    (lambda: Taps.oriented(0.0, 0), "got 0"),
    (lambda: Taps.oriented(0.0, -3), "got -3"),
    (lambda: Taps.oriented(0.0, 3.0), "got 3.0"),
    (lambda: Taps.oriented(0.0, True), "got True"),
    (lambda: Taps.oriented(0.0, 3, 0), "dilation must be a whole number >= 1, got 0"),
    (lambda: Taps.oriented(0.0, 3, 1.5), "got 1.5"),
    (lambda: Taps.oriented(0.0, 3, anchor="middle"), "got 'middle'"),
    (lambda: Taps.oriented(math.nan, 3), "got nan"),
    (lambda: Taps.oriented([0.0, -math.inf], 3), "got -inf at position 1"),
    (lambda: Taps.oriented("steep", 3), "got 'steep'"),
    (lambda: Taps.oriented([], 3), "got shape (0,)"),
    (lambda: Taps.oriented([[0.0, 1.0]], 3), "got shape (1, 2)"),
    (lambda: Taps.oriented([[0.0], [1.0, 2.0]], 3), "[1.0, 2.0]"),
    (lambda: Taps.oriented(0.0, 3, 2**15 + 1), "got 32769"),
    (lambda: Taps.from_offsets([[[0.5, 0]]]), "got dtype float64"),
    (lambda: Taps.from_offsets([[True, False]]), "got shape (1, 2)"),
    (lambda: Taps.from_offsets([[0, 1]]), "got shape (1, 2)"),
    (lambda: Taps.from_offsets(np.zeros((1, 0, 2), int)), "got shape (1, 0, 2)"),
    (lambda: Taps.from_offsets(np.zeros((1, 3, 3), int)), "got shape (1, 3, 3)"),
    (lambda: Taps.from_offsets([[[0, 2**15 + 1]]]), "got 32769"),
    (lambda: Taps.from_offsets([[[-(2**15) - 1, 0]]]), "got 32769"),
    (lambda: angles_between(0), "got 0"),
    (lambda: angles_between(2.5), "got 2.5"),
]


@pytest.mark.parametrize(("call", "said"), WRONG)
def test_wrong_input_is_named(call, said):
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert said in str(caught.value)


WRONG_KEYS = ["", "a0", "t", "k31", "k31a", "k31ax", "kxa0", "k3.5a0", "k-3a0", "31a0", "k7a1__2", "t0.0.0", "t0.0_0.0.0.1", "t0.x", "t40000.0"]
# a line that Taps.oriented refuses has no key either, and a key from a stranger's log must not fill the memory
WRONG_LINES = ["k4a0", "k0a0", "k31d0a0", "k31ainf", "k3a0_nan", "k99999999999a0"]


@pytest.mark.parametrize("key", WRONG_KEYS + WRONG_LINES)
def test_wrong_key_is_named(key):
    with pytest.raises(InvalidArgument) as caught:
        Taps.from_key(key)
    assert repr(key) in str(caught.value)
