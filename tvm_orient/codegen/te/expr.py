"""Builds the small TE expressions that the stages of all ops are made of."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from ...toolchain.tvm import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)


def pick(index: Any, values: Sequence[Any]) -> Any:
    """Returns values[index] as a Select chain: bounded for region inference, and one value once the loop over index is unrolled."""
    chosen = values[-1]
    for i in range(len(values) - 2, -1, -1):
        chosen = tirx.Select(index == i, values[i], chosen)
    return chosen


def steps(index: Any, values: Sequence[int]) -> Any:
    """Returns values[index], whole numbers, as a line plus a step wherever the values leave it: no branch where index is known at run time only.

    A Select chain over a thread's index is a branch for each value, one behind the other, in which the lanes of a warp part.
    """
    least, most = min(values), max(values)
    if least == most:
        return tirx.const(least, "int32")
    rises = [after - before for before, after in itertools.pairwise(values)]
    slope = max((0, 1, -1), key=rises.count)
    found = index * slope + values[0] if slope else tirx.const(values[0], "int32")
    for place, rise in enumerate(rises, 1):
        if rise != slope:
            found = found + tirx.Select(index >= place, tirx.const(rise - slope, "int32"), tirx.const(0, "int32"))
    return tirx.max(tirx.min(found, most), least)  # which changes nothing, but region inference sees no more than a sum of bounds


def constants(values: Sequence[int]) -> list[Any]:
    """Returns the values as int32 constants."""
    return [tirx.const(v, "int32") for v in values]


def total_of(values: Sequence[Any]) -> Any:
    """Returns the sum of expressions, first to last."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
