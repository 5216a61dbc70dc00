"""Small TE expressions that the stages of all ops are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tvmkit import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)


def pick(index: Any, values: Sequence[Any]) -> Any:
    """values[index] as a Select chain: bounded for region inference, and one value once the loop over index is unrolled."""
    chosen = values[-1]
    for i in range(len(values) - 2, -1, -1):
        chosen = tirx.Select(index == i, values[i], chosen)
    return chosen


def constants(values: Sequence[int]) -> list[Any]:
    """int32 constants."""
    return [tirx.const(v, "int32") for v in values]


def total_of(values: Sequence[Any]) -> Any:
    """The sum of expressions, first to last."""
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
