"""Sheared planes: lines of taps that lean, and which plane coordinates follow them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .spec import ConvSpec
from .stencil import StencilTap, stencil


@dataclass(frozen=True)
class Shear:
    """A plane whose columns move by `rise` every `run` rows (axis 1), modulo the width, or whose rows do every `run` columns (axis 0)."""

    axis: int  #: the axis that moves: 0 rows, 1 columns
    rise: int  #: rows or columns by which it moves
    run: int  #: columns or rows of the other axis in which it moves so far

    def place(self, shape: tuple[int, int], row: Any, column: Any) -> tuple[Any, Any]:
        """Returns (row, column) in the plane, whose shape is given, of what lies at row and column of the leaning plane."""
        at, along = (row, column) if self.axis == 0 else (column, row)
        moved = (at + (along * self.rise + self.run // 2) // self.run) % shape[self.axis]
        return (moved, column) if self.axis == 0 else (row, moved)


def shear_of(spec: ConvSpec) -> Shear:
    """Returns how outputs lean along the line of the taps: by rows where it is steep, by columns where it is shallow."""
    g = stencil(spec)
    far = max(g.every, key=lambda t: max(abs(t.row), abs(t.col)), default=StencilTap(1, 0, ()))
    row, column = far.row * g.phases[0] * g.step[1], far.col * g.phases[1] * g.step[0]
    axis, rise, run = (1, column, row) if abs(row) >= abs(column) else (0, row, column)
    return Shear(axis, rise if run > 0 else -rise, abs(run) or 1)


def line_slope(spec: ConvSpec) -> int | None:
    """Returns the columns that the line of taps moves with each row, where that is one whole number and such a line leaves the plane at most once."""
    g = stencil(spec)
    if g.step != (1, 1) or g.phases != (1, 1):
        return None
    slopes = {t.col // t.row if t.row and t.col % t.row == 0 else None for t in g.every if (t.row, t.col) != (0, 0)}
    if len(slopes) > 1 or None in slopes:
        return None
    slope, (height, width) = (slopes.pop() if slopes else 0) or 0, g.source
    runs_on = not g.wrap or slope * height % width == 0  # as the same line, from the last row to the first
    return slope if runs_on and abs(slope) * (height - 1) <= width else None
