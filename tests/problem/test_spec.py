"""ConvSpec: keys, derived numbers, parts, and the wrong inputs it names."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tvm_orient.errors import InvalidArgument
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.spec import ACTIVATIONS, DTYPES, LAYOUTS, OPS, PADDING_MODES, ConvSpec, stride_pair
from tvm_orient.problem.taps import Taps

pytestmark = pytest.mark.timeout(120, method="thread")  # naming a table must never become a long search; thread: no shrinking afterwards
LINE = Taps.oriented(math.radians(22.5), 31)


def spec(**changes):
    return ConvSpec(**{"op": "conv", "channels": 512, "height": 56, "width": 56, "taps": LINE, **changes})


specs = st.builds(
    ConvSpec,
    op=st.sampled_from(OPS),
    channels=st.integers(1, 4096),
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
    taps=st.one_of(
        st.builds(
            lambda degrees, half: Taps.oriented(np.radians(degrees), 2 * half + 1), st.lists(st.integers(0, 359), min_size=1, max_size=4), st.integers(0, 15)
        ),
        st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9)), min_size=1, max_size=4).map(lambda line: Taps.from_offsets([line])),
    ),
    stride=st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    padding_mode=st.sampled_from(PADDING_MODES),
    dtype=st.sampled_from(sorted(DTYPES)),
    layout=st.sampled_from(LAYOUTS),
) | st.builds(
    lambda bias, activation: ConvSpec("conv", 8, 5, 6, Taps.oriented([0.0], 3), bias=bias, activation=activation), st.booleans(), st.sampled_from(ACTIVATIONS)
)

# ---- keys -----------------------------------------------------------------------------------------

GOLDEN_KEYS = {
    "conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5": {},
    "conv_dx-c512h56w56-s1-zeros-float32-nchw-k31a22.5": {"op": "conv_dx"},
    "conv_dw-c64h112w7-s2-zeros-float32-nchw-k31a22.5": {"op": "conv_dw", "channels": 64, "height": 112, "width": 7, "stride": 2},
    "conv-c512h56w56-s1x2-circular-float32-nchw-k31a22.5": {"stride": (1, 2), "padding_mode": "circular"},
    "conv-c8h5w6-s1-zeros-float32-nchw-k3a0_90": {"channels": 8, "height": 5, "width": 6, "taps": Taps.oriented([0.0, math.pi / 2], 3)},
    "conv-c8h5w6-s1-zeros-bfloat16-nhwc-k31a22.5": {"channels": 8, "height": 5, "width": 6, "dtype": "bfloat16", "layout": "nhwc"},
    "conv+bias-c8h5w6-s1-zeros-float32-nchw-k31a22.5": {"channels": 8, "height": 5, "width": 6, "bias": True},
    "conv+bias+gelu-c8h5w6-s1-zeros-float32-nchw-k31a22.5": {"channels": 8, "height": 5, "width": 6, "bias": True, "activation": "gelu"},
    "conv+relu-c8h5w6-s1-zeros-float32-nchw-k31a22.5": {"channels": 8, "height": 5, "width": 6, "activation": "relu"},
    "conv-c1h1w1-s1-zeros-float32-nchw-t-3.4.0.-1": {"channels": 1, "height": 1, "width": 1, "taps": Taps.from_offsets([[[-3, 4], [0, -1]]])},
}


@pytest.mark.parametrize("key", GOLDEN_KEYS)
def test_golden_keys(key):
    """Keys stand in logs that were shipped: a change here orphans them."""
    assert spec(**GOLDEN_KEYS[key]).key == key
    assert ConvSpec.from_key(key) == spec(**GOLDEN_KEYS[key])


@given(specs)
def test_key_round_trip(one):
    again = ConvSpec.from_key(one.key)
    assert again == one
    assert hash(again) == hash(one)
    assert again.key == one.key == str(one)


@given(specs, specs)
def test_keys_are_equal_where_specs_are(one, other):
    assert (one.key == other.key) == (one == other)


CHANGES = [
    {"op": "conv_dx"},
    {"channels": 511},
    {"height": 55},
    {"width": 55},
    {"taps": Taps.oriented(0.0, 31)},
    {"stride": 2},
    {"stride": (2, 1)},
    {"stride": (1, 2)},
    {"padding_mode": "circular"},
    {"dtype": "float64"},
]


@pytest.mark.parametrize("change", CHANGES, ids=[str(*change.items()) for change in CHANGES])
def test_every_field_is_in_the_key(change):
    assert spec(**change).key != spec().key
    assert spec(**change) != spec()


def test_stride_is_one_thing_however_it_is_given():
    assert spec(stride=2) == spec(stride=(2, 2)) == spec(stride=[2, 2])
    assert spec(stride=2).stride == (2, 2)


def test_specs_are_frozen():
    with pytest.raises(AttributeError):
        spec().channels = 3


WRONG_KEYS = [
    "",
    "conv",
    "k31a22.5",
    "conv-c512h56w56-s1-zeros-float32-nchw-",
    "conv-c512h56w56-s1-zeros-float32-nchw-k4",
    "conv-c512h56-s1-zeros-float32-nchw-k31a22.5",
    "convolve-c512h56w56-s1-zeros-float32-nchw-k31a22.5",
    "conv-c0h56w56-s1-zeros-float32-nchw-k31a22.5",
    "conv-c512h56w56-s0-zeros-float32-nchw-k31a22.5",
    "conv-c512h56w56-s1-mirror-float32-nchw-k31a22.5",
    "conv-c512h56w56-s1-zeros-int8-nchw-k31a22.5",
    "conv-c512h56w56-s1-zeros-float32-chwn-k31a22.5",
    "conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5\n",
    "../conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5",
]


@pytest.mark.parametrize("key", WRONG_KEYS)
def test_wrong_keys_are_refused(key):
    with pytest.raises(InvalidArgument):
        ConvSpec.from_key(key)


@pytest.mark.parametrize("key", [None, 3, b"conv"])
def test_a_key_is_text(key):
    with pytest.raises(InvalidArgument, match="not a spec key"):
        ConvSpec.from_key(key)


# ---- derived numbers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "stride", "out"),
    [((224, 224), 2, (112, 112)), ((7, 8), 2, (4, 4)), ((7, 8), (1, 3), (7, 3)), ((1, 1), 4, (1, 1)), ((10, 115), 1, (10, 115))],
)
def test_output_is_the_ceiling(size, stride, out):
    one = spec(height=size[0], width=size[1], stride=stride)
    assert (one.out_height, one.out_width) == out


def test_bytes_and_flops_of_the_published_benchmark():
    """N=64, C=512, 56x56, K=31, float32: x read once and y written once are 822 MB."""
    one = spec()
    assert one.kernel_size == 31
    assert one.itemsize == 4
    assert one.bytes_moved(64) == 4 * (2 * 64 * 512 * 56 * 56 + 512 * 31)
    assert one.flops(64) == 2 * 31 * 64 * 512 * 56 * 56
    assert spec(dtype="float64").bytes_moved(64) == 2 * one.bytes_moved(64)


def test_bytes_with_a_stride_count_the_smaller_plane():
    one = spec(channels=3, height=7, width=9, stride=(2, 3), taps=Taps.oriented(0.0, 5))
    assert one.bytes_moved(2) == 4 * 3 * (2 * (7 * 9 + 4 * 3) + 5)
    assert one.flops(2) == 2 * 5 * 2 * 3 * 4 * 3


# ---- pieces of keys -------------------------------------------------------------------------------


@given(specs)
def test_pieces_of_a_key_are_those_of_its_spec(one):
    assert ConvSpec.op_of_key(one.key) == one.op
    assert one.key.startswith(f"{one.op_with_epilogue}-c")
    grown = dataclasses.replace(one, channels=one.channels + 1, height=one.height + 1, width=one.width + 2)
    assert ConvSpec.family_of_key(one.key) == ConvSpec.family_of_key(grown.key)
    for change in ({"stride": (5, 5)}, {"taps": Taps.from_offsets([[[77, 0]]])}, {"padding_mode": "zeros" if one.padding_mode == "circular" else "circular"}):
        assert ConvSpec.family_of_key(dataclasses.replace(one, **change).key) != ConvSpec.family_of_key(one.key)


@pytest.mark.parametrize("key", ["", "conv2d-c1h1w1", "other", "-conv"])
def test_a_key_begins_with_an_op(key):
    with pytest.raises(InvalidArgument, match="a spec key starts with one of conv, conv_dx, conv_dw, got"):
        ConvSpec.op_of_key(key)


def test_keys_are_read_only_where_they_are_made():
    root = Path(__file__).resolve().parents[2]
    sources = [path for folder in ("tvm_orient", "schedules", "benchmarks") for path in sorted((root / folder).rglob("*.py"))]
    read = re.compile(r"""\b(key|spec|taps)\b[\]")]*\.(r?partition|r?split)\(|"-n(chw|hwc)-" in""")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sources
        if path.name not in ("taps.py", "taps_key.py", "spec.py")
        for line in path.read_text().splitlines()
        if read.search(line)
    ]
    assert found == [], "Taps.degrees, Taps.lines, ConvSpec.op_of_key, ConvSpec.family_of_key and ConvSpec.from_key say what a key holds"
    assert read.search('record.spec.partition("-")')
    assert read.search('entry["key"]["spec"].split("-", 2)')


def test_what_follows_the_taps_is_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        ConvSpec("conv", 8, 5, 6, LINE, (1, 2))


# ---- parts ----------------------------------------------------------------------------------------


def test_parts_of_a_layer():
    parts = spec(channels=96, taps=Taps.oriented(angles_between(8), 31)).parts()
    assert [(lo, hi) for lo, hi, _ in parts] == [(12 * g, 12 * (g + 1)) for g in range(8)]
    assert [part.key for _, _, part in parts][:2] == ["conv-c96h56w56-s1-zeros-float32-nchw-k31a0", "conv-c96h56w56-s1-zeros-float32-nchw-k31a22.5"]


@given(st.integers(1, 12), st.integers(1, 40), specs)
def test_parts_cover_every_channel_once(groups, channels, like):
    taps = Taps.from_offsets([[[g, 0]] for g in range(groups)])
    layer = ConvSpec(like.op, channels, like.height, like.width, taps, stride=like.stride, padding_mode=like.padding_mode, dtype=like.dtype, layout=like.layout)
    owners = {}
    for lo, hi, part in layer.parts():
        assert hi > lo
        assert part.taps.groups == 1
        assert (part.channels, part.op, part.stride) == (channels, like.op, layer.stride)
        owners |= dict.fromkeys(range(lo, hi), part.taps.table[0][0][0])
    assert owners == {c: (groups * (c + 1) - 1) // channels for c in range(channels)}


# ---- operands -------------------------------------------------------------------------------------


@given(specs, st.integers(1, 3))
def test_operands_are_named_in_the_order_of_a_kernel(one, batch):
    found = one.operands(batch, (5, one.kernel_size))
    names = {"conv": ["x", "weight", *["bias"] * one.bias, "y"], "conv_dx": ["dy", "weight", "dx"], "conv_dw": ["x", "dy", "workspace", "dweight"]}
    assert [operand.name for operand in found] == names[one.op]
    assert [operand.role for operand in found] == sorted((operand.role for operand in found), key=["input", "workspace", "output"].index)
    planes = {"x": (one.height, one.width), "y": (one.out_height, one.out_width), "workspace": (5, one.kernel_size)}
    planes |= {"dx": planes["x"], "dy": planes["y"]}
    for operand in found:
        assert operand.shape[operand.channel_axis] == one.channels
        assert operand.dtype == (one.sums if operand.name in ("workspace", "dweight") else one.dtype)
        assert operand.origin(2) == tuple(2 * (axis == operand.channel_axis) for axis in range(len(operand.shape)))
        if operand.name in planes:
            assert operand.torch_shape == (batch, one.channels, *planes[operand.name])
    moved = sum(one.itemsize * math.prod(operand.shape) for operand in found if operand.role != "workspace")
    assert one.bytes_moved(batch) == moved or one.sums != one.dtype, "a gradient of half precision is summed in float32 and then stored"


# ---- wrong inputs ---------------------------------------------------------------------------------

WRONG = [
    ({"op": "conv2d"}, "got 'conv2d'"),
    ({"dtype": "int8"}, "got 'int8'"),
    ({"padding_mode": "reflect"}, "got 'reflect'"),
    ({"layout": "chwn"}, "got 'chwn'"),
    ({"activation": "tanh"}, "got 'tanh'"),
    ({"channels": 0}, "channels must be a whole number >= 1, got 0"),
    ({"height": -1}, "height must be a whole number >= 1, got -1"),
    ({"width": 5.0}, "width must be a whole number >= 1, got 5.0"),
    ({"width": True}, "got True"),
    ({"stride": 0}, "got 0"),
    ({"stride": (1, 2, 3)}, "got (1, 2, 3)"),
    ({"stride": (1, 0)}, "got (1, 0)"),
    ({"stride": 1.5}, "got 1.5"),
    ({"stride": "2"}, "got '2'"),
    ({"stride": True}, "got True"),
    ({"taps": "k31a0"}, "got str"),
]


def test_only_conv_has_an_epilogue():
    for change in ({"bias": True}, {"activation": "relu"}):
        with pytest.raises(InvalidArgument, match="only conv has an epilogue, got conv_dx"):
            spec(op="conv_dx", **change)


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[str(*change.items()) for change, _ in WRONG])
def test_wrong_field_is_named(change, said):
    with pytest.raises(InvalidArgument) as caught:
        spec(**change)
    assert said in str(caught.value)


def test_stride_pair():
    assert stride_pair(3) == (3, 3)
    assert stride_pair((1, 2)) == (1, 2)
    with pytest.raises(InvalidArgument, match="got None"):
        stride_pair(None)
