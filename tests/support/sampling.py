"""Which cases of a sweep every commit runs, and which `make test-long` alone."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Hashable, Iterable

import pytest

from tvm_orient.problem.spec import ConvSpec

Aspects = tuple[Hashable, ...]


def sampled(rows: Iterable[tuple[object, ...]], pairs: Callable[..., Aspects], once: Callable[..., Aspects] = lambda *row: ()) -> list[pytest.ParameterSet]:
    """Makes parameters of all rows in their order: those of a covering sample as they are, the others marked `long`.

    The sample holds each value of each aspect, and of two aspects in `pairs` each two values that any row holds together. It is chosen greedily:
    the row that adds most comes next, and of several that add as much the one whose name has the smallest CRC-32. So it is the same in every
    process and in every run, and a case that is added to a sweep changes little of it.

    Args:
        rows: the arguments of the test, a tuple a case.
        pairs: from the arguments of a row, the aspects whose values are covered two by two, always as many.
        once: likewise, the aspects whose values are covered one by one.
    """
    cases = list(rows)
    names = ["-".join(map(_name, row)) for row in cases]
    left = [_covered(pairs(*row), once(*row)) for row in cases]
    chosen = set()
    while any(left):
        best = min(range(len(cases)), key=lambda i: (-len(left[i]), zlib.crc32(names[i].encode())))
        chosen.add(best)
        found = set(left[best])
        for wanted in left:
            wanted -= found
    return [pytest.param(*row, id=name, marks=[] if i in chosen else [pytest.mark.long]) for i, (row, name) in enumerate(zip(cases, names, strict=True))]


def sampled_together(rows: Iterable[tuple[object, ...]], once: Callable[..., Aspects]) -> list[pytest.ParameterSet]:
    """Makes two parameters of all rows, for a test that takes several of them at once: those of the sample, and the others, marked `long`.

    Args:
        rows: a tuple a case.
        once: from a row, the aspects whose values the sample covers one by one.
    """
    every = sampled(rows, pairs=lambda *row: (), once=once)
    few, others = ([one.values for one in every if bool(one.marks) == late] for late in (False, True))
    return [pytest.param(few, id="sample"), pytest.param(others, id="others", marks=[pytest.mark.long])]


def facets(spec: ConvSpec) -> Aspects:
    """Returns what is worth covering two by two of a problem: op, step, padding, dtype and layout."""
    down, right = spec.stride
    step = "1" if down == right == 1 else "equal" if down == right else "uneven"
    return spec.op, step, spec.padding_mode, spec.dtype, spec.layout


def _covered(pairs: Aspects, once: Aspects) -> set[Hashable]:
    """All that a row covers: its values with their places, and those of `pairs` two by two."""
    placed = list(enumerate(pairs))
    return {("once", *one) for one in enumerate(once)} | {("value", *one) for one in placed} | set(itertools.combinations(placed, 2))


def _name(value: object) -> str:
    """The name of an argument: a template's, the key of a spec, or its text."""
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return str(getattr(value, "name", getattr(value, "key", value)))
