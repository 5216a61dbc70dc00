"""CUDA: the pixels of the source that a patch of outputs reads, for templates whose threads load their own."""

from __future__ import annotations

import itertools

from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil


def box(spec: ConvSpec, height: int, width: int) -> tuple[int, int]:
    """Returns the rows and columns of the source that a patch of height x width outputs reaches."""
    g = stencil(spec)
    ends = []
    for axis, outputs in ((0, height), (1, width)):
        offsets = [(t.row, t.col)[axis] for t in g.every] or [0]
        ends.append((-(-outputs // g.phases[axis]) - 1) * g.step[axis] + max(offsets) - min(offsets) + 1)
    return ends[0], ends[1]


def pixels_read(spec: ConvSpec, height: int, width: int) -> set[tuple[int, int]]:
    """Returns (row, column) of each distinct pixel of the source that the first patch of height x width outputs reads, those outside the plane included."""
    g = stencil(spec)
    return {
        (i // g.phases[0] * g.step[0] + t.row, j // g.phases[1] * g.step[1] + t.col)
        for i, j in itertools.product(range(height), range(width))
        for t in g.terms.get((i % g.phases[0], j % g.phases[1]), ())
    }


def too_far(spec: ConvSpec, height: int, width: int, most: int) -> str | None:
    """Returns why no patch of height x width outputs may reach so many pixels, where a thread may hold `most` of them; or None."""
    rows, columns = box(spec, height, width)
    return f"a patch reaches {rows} x {columns} pixels, at most {most}" if rows * columns > most else None
