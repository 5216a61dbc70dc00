"""Costs of a register patch of outputs: what it reads, and how many values it holds at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..problem.stencil import Stencil


@dataclass(frozen=True)
class Patch:
    """The cost of a thread's patch of outputs."""

    products: int  #: multiply-adds
    loads: dict[int, int]  #: shared loads by words a lane: 1, 2 and 4
    alive: int  #: values that are needed at once


@functools.lru_cache(maxsize=4096)
def patch(key: Any, height: int, width: int, align: int, whole: bool) -> Patch:
    """Returns the cost of a patch of height x width outputs.

    The compiler keeps a value from the first output that needs it to the last, row by row, and joins neighbours into aligned vectors.

    Args:
        key: `cells` of the problem.
        align: floats that every thread's first column is a multiple of.
        whole: whether no output of the patch lies outside the plane; else each stands under a test, and nothing is shared or joined.
    """
    phases, step, across, terms = key
    where = []
    for i in range(height):
        for j in range(width):
            cells = terms[(i % phases[0]) * phases[1] + j % phases[1]]
            where.append(cells + np.array([i // phases[0] * step, 0, j // phases[1] * across]))
    if not whole:
        products = sum(map(len, where))
        return Patch(products, {1: products, 2: 0, 4: 0}, max(map(len, where)))
    mirrored = [where[i * width + j] for i in range(height) for j in reversed(range(width))]
    return min(held(where, align), held(mirrored, align), key=lambda own: own.alive)  # the compiler finds the better order


def held(where: Sequence[Any], align: int) -> Patch:
    """Returns the cost of outputs that are computed one after the other.

    Args:
        where: for each output an array of (row, column phase, column) in the stage that it reads.
        align: floats that every thread's first column is a multiple of.
    """
    if not (products := sum(map(len, where))):
        return Patch(0, {1: 0, 2: 0, 4: 0}, 0)
    every, when = np.concatenate(where), np.repeat(np.arange(len(where)), [len(cells) for cells in where])
    flat = (every[:, 0] * 64 + every[:, 1]) * 65536 + every[:, 2]
    first: Any
    distinct, first, back = np.unique(flat, return_index=True, return_inverse=True)
    last = np.zeros(len(distinct), np.int64)
    np.maximum.at(last, back, when)
    change = np.zeros(len(where) + 1, np.int64)
    np.add.at(change, when[first], 1)
    np.add.at(change, last + 1, -1)
    return Patch(products, _joined(distinct, align), int(change.cumsum().max()))


def cells(g: Stencil, columns: int, halo: int, pitch: int, tile: int = 0) -> Any:
    """Returns (phases, row step, column step, by phase an array of (row, column phase, column) in the stage that output 0 reads)."""
    shape, found = g.stage(columns, halo, pitch, tile), []
    for a, b in itertools.product(range(g.phases[0]), range(g.phases[1])):  # a plane may have fewer rows than there are phases
        terms = g.terms.get((a, b), ())
        rows = [(t.row + shape.top, *shape.place(t.col)) for t in terms]
        found.append(np.array(rows, np.int64).reshape(-1, 3))
    return _Key(g.phases, g.step[0], shape.across, tuple(found))


class _Key(tuple[Any, ...]):
    """Arrays as part of a key: equal where their bytes are."""

    def __new__(cls, phases: tuple[int, int], step: int, across: int, terms: tuple[Any, ...]) -> _Key:
        return super().__new__(cls, (phases, step, across, terms))

    def __hash__(self) -> int:
        return hash((*self[:3], tuple(t.tobytes() for t in self[3])))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and hash(self) == hash(other)


def _joined(distinct: Any, align: int) -> dict[int, int]:
    """Returns the loads by width of these words, sorted: whole aligned groups of 4 and 2 as one, the rest one by one."""
    counts = {1: 0, 2: 0, 4: 0}
    left = distinct
    for size in (4, 2):
        if align % size == 0:
            group, where, many = np.unique(left // size, return_inverse=True, return_counts=True)
            counts[size] = int((many == size).sum())
            left = left[many[where] != size]
            del group
    counts[1] = len(left)
    return counts
