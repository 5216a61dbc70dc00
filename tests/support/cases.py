"""Problems that kernels are tested on, by name."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

from tests.support.helpers import EIGHT, line, spec_of
from tvm_orient.problem.spec import ACTIVATIONS, ConvSpec
from tvm_orient.problem.taps import Taps

FREE = Taps.from_offsets([[[0, 1], [0, 1], [-2, 0], [1, -3], [9, -8]]])
# name: channels, height, width, taps, stride, padding; small, thin and odd planes first, then those of the networks, then the
# sizes where the published kernels fail (reference/oriented1d.md 3.6)
CUDA_CASES: dict[str, tuple[Any, ...]] = {
    "one pixel": (3, 1, 1, line(0, 45, k=3)),
    "one pixel, circular": (2, 1, 1, line(45, k=7), 1, "circular"),
    "one row": (3, 1, 20, line(0, 90, k=7)),
    "one column": (3, 13, 1, line(22.5, 90, k=7)),
    "K=1": (2, 5, 6, line(0, k=1)),
    "thin": (2, 3, 57, line(22.5, k=15)),
    "tall": (2, 57, 3, line(112.5, k=15)),
    "uneven groups": (5, 9, 10, line(0, 45, 135, k=5)),
    "fewer channels than groups": (3, 8, 9, Taps.oriented(EIGHT, 7)),
    "odd": (3, 9, 13, line(22.5, 112.5, k=9)),
    "stride 2": (3, 14, 14, line(45, 90, k=7), 2),
    "stride 2x1": (3, 9, 12, line(22.5, 90, k=7), (2, 1)),
    "stride 3x2": (3, 11, 10, line(0, 67.5, k=7), (3, 2)),
    "stride over the plane": (2, 4, 3, line(45, k=5), (5, 4)),
    "circular": (3, 9, 10, line(22.5, 90, k=15), 1, "circular"),
    "circular, stride 2": (2, 8, 10, line(45, k=7), 2, "circular"),
    "circular, ragged stride": (2, 9, 7, line(22.5, k=7), (3, 2), "circular"),
    "free taps": (2, 6, 7, FREE),
    "no live tap": (2, 3, 4, Taps.from_offsets([[[3, 0], [0, 4]]])),
    "anchor start, dilated": (2, 10, 11, Taps.oriented([0.4], 4, dilation=2, anchor="start")),
    "7x7": (16, 7, 7, line(22.5, k=31)),
    "14x14": (8, 14, 14, line(45, k=31)),
    "28x28": (4, 28, 28, line(67.5, k=7)),
    "28x28, K=31": (4, 28, 28, line(135, k=31)),
    "56x56": (2, 56, 56, line(157.5, k=31)),
    "B3: 66x66, K=7": (1, 66, 66, line(22.5, k=7)),
    "B3: 46x46, K=31": (1, 46, 46, line(45, k=31)),
    "B3: 45x45, K=31": (1, 45, 45, line(67.5, k=31)),
    "B4: 112x112, stride 2, 90 degrees, K=31": (1, 112, 112, line(90, k=31), 2),
    "B4: 112x112, stride 2, 90 degrees, K=15": (1, 112, 112, line(90, k=15), 2),
    "B4: 152x152, stride 2": (1, 152, 152, line(112.5, k=15), 2),
    "B5: K=63 on 7x7": (2, 7, 7, line(67.5, k=63)),
    "B6: 13x13": (2, 13, 13, line(45, k=7)),
}
# name: channels, height, width, taps, stride, padding, dtype
CPU_CASES: dict[str, tuple[Any, ...]] = {
    "one pixel": (3, 1, 1, line(0, 45, k=3)),
    "one pixel, circular": (2, 1, 1, line(45, k=7), (1, 1), "circular"),
    "one row": (2, 1, 20, line(22.5, 90, k=7)),
    "one column": (2, 13, 1, line(67.5, 90, k=7)),
    "one column, stride 2": (2, 13, 1, line(90, k=7), (2, 2)),
    "K=1": (2, 5, 6, line(0, k=1)),
    "wider than the plane": (2, 7, 7, line(0, 67.5, k=31)),
    "K=63 on 7x7": (2, 7, 7, line(22.5, k=63)),
    "uneven groups": (5, 9, 10, line(0, 45, 135, k=5)),
    "fewer channels than groups": (3, 8, 9, Taps.oriented(EIGHT, 7)),
    "odd": (3, 13, 17, line(22.5, 112.5, k=15)),
    "whole vectors": (2, 6, 32, line(157.5, k=7)),
    "a vector and one": (2, 5, 17, line(22.5, k=7)),
    "stride 2": (3, 14, 14, line(45, 90, k=7), (2, 2)),
    "stride 2x1": (3, 9, 12, line(22.5, 90, k=7), (2, 1)),
    "stride 3x2": (3, 11, 10, line(0, 67.5, k=7), (3, 2)),
    "stride over the plane": (2, 4, 3, line(45, k=5), (5, 4)),
    "circular": (3, 9, 10, line(22.5, 90, k=15), (1, 1), "circular"),
    "circular, stride 2": (2, 8, 10, line(45, k=7), (2, 2), "circular"),
    "circular, ragged stride": (2, 9, 7, line(22.5, k=7), (3, 2), "circular"),
    "free taps": (2, 6, 7, FREE),
    "no live tap": (2, 3, 4, Taps.from_offsets([[[3, 0], [0, 4]]])),
    "anchor start, dilated": (2, 10, 11, Taps.oriented([0.4], 4, dilation=2, anchor="start")),
    "float64": (3, 9, 10, line(0, 45, k=7), (2, 1), "zeros", "float64"),
    "float64, wide": (2, 7, 19, line(22.5, k=15), (1, 1), "zeros", "float64"),
}
# channels, height, width, taps, stride, padding, dtype: channels fill vectors, or do not
LAST_CASES: dict[str, tuple[Any, ...]] = {
    "one pixel": (3, 1, 1, line(0, 45, k=3)),
    "one row": (16, 1, 20, line(22.5, 90, k=7)),
    "one column": (8, 13, 1, line(67.5, 90, k=7)),
    "K=1": (2, 5, 6, line(0, k=1)),
    "whole vectors": (64, 9, 10, line(0, 45, k=7)),
    "twelve channels an angle": (24, 9, 10, line(22.5, 112.5, k=15)),
    "a vector and some": (37, 8, 9, line(22.5, 135, k=5)),
    "fewer channels than groups": (3, 8, 9, Taps.oriented(EIGHT, 7)),
    "stride 2": (16, 14, 14, line(45, 90, k=7), (2, 2)),
    "stride 3x2": (5, 11, 10, line(0, 67.5, k=7), (3, 2)),
    "stride over the plane": (2, 4, 3, line(45, k=5), (5, 4)),
    "circular": (16, 9, 10, line(22.5, 90, k=15), (1, 1), "circular"),
    "circular, ragged stride": (8, 9, 7, line(22.5, k=7), (3, 2), "circular"),
    "free taps": (4, 6, 7, Taps.from_offsets([[[0, 1], [0, 1], [-2, 0], [1, -3], [9, -8]]])),
    "no live tap": (2, 3, 4, Taps.from_offsets([[[3, 0], [0, 4]]])),
    "wider than the plane": (16, 7, 7, line(0, 67.5, k=31)),
    "bfloat16": (20, 6, 7, line(45, k=31), (1, 1), "zeros", "bfloat16"),
    "float64": (12, 6, 7, line(22.5, 90, k=7), (2, 1), "zeros", "float64"),
}
EPILOGUES = [(bias, name) for bias, name in itertools.product((True, False), ACTIVATIONS) if bias or name != "none"]


def last_spec(op: str, case: str) -> ConvSpec:
    """A case of LAST_CASES as a spec in channels_last."""
    return spec_of(op, *(*LAST_CASES[case], *(1, "zeros", "float32")[len(LAST_CASES[case]) - 4 :]), layout="nhwc")


def ended(bias: bool, activation: str, layout: str = "nchw", dtype: str = "float32", stride: Any = 1) -> ConvSpec:
    """A spec with an epilogue."""
    return dataclasses.replace(spec_of("conv", 24, 9, 21, line(0, 67.5, k=7), stride, dtype=dtype, layout=layout), bias=bias, activation=activation)
