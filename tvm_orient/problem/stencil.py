"""Works out the stencil that a single-group problem is: folded, pruned terms by phase, and the padded stage that feeds them.

conv and conv_dx have one form: output (i*A + a) reads source rows i*step + row for the terms of its phase a, where A is the
stride of conv_dx and step the stride of conv. No tensor library is needed here, so that choosing a kernel stays quick.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .line_offsets import Offset
from .spec import ConvSpec


@dataclass(frozen=True)
class StencilTap:
    """Source offset of a distinct tap within its phase, and the taps whose weights are added there first."""

    row: int  #: rows from the source row of the output
    col: int  #: columns from the source column of the output
    taps: tuple[int, ...]  #: numbers of the taps whose weights are added


@dataclass(frozen=True)
class Stencil:
    """The geometry of a single-group problem: source and output planes, steps, phases and their live terms."""

    source: tuple[int, int]  #: rows and columns of the plane that is read
    output: tuple[int, int]  #: rows and columns of the plane that is written
    step: tuple[int, int]  #: source rows and columns from one output of a phase to the next
    phases: tuple[int, int]  #: outputs of so many neighbouring rows and columns have terms of their own
    terms: dict[tuple[int, int], tuple[StencilTap, ...]]  #: by phase of the row and of the column
    wrap: bool  #: the plane has no end

    @property
    def every(self) -> list[StencilTap]:
        """Returns all live terms, phase by phase."""
        return [term for terms in self.terms.values() for term in terms]

    def reads(self, row: int, column: int) -> list[tuple[int, int]]:
        """Returns (row, column) of the source for each term of an output, but for those that land outside."""
        found = []
        for t in self.terms.get((row % self.phases[0], column % self.phases[1]), ()):
            i, j = row // self.phases[0] * self.step[0] + t.row, column // self.phases[1] * self.step[1] + t.col
            if self.wrap or (0 <= i < self.source[0] and 0 <= j < self.source[1]):
                found.append((i % self.source[0], j % self.source[1]))
        return found

    def low(self, axis: int) -> int:
        """Returns the rows (axis 0) or columns (1) of halo before the plane."""
        return max([0] + [-(t.row, t.col)[axis] for t in self.every])

    def high(self, axis: int) -> int:
        """Returns the rows (axis 0) or columns (1) of halo after the plane."""
        inner = -(-self.output[axis] // self.phases[axis])
        reach = max([0] + [(t.row, t.col)[axis] for t in self.every]) + (inner - 1) * self.step[axis]
        return max(0, reach - self.source[axis] + 1)

    def span(self) -> int:
        """Returns the rows between the first and the last that one output row reads."""
        rows = [t.row for t in self.every] or [0]
        return max(rows) - min(rows) + 1

    def stage(self, columns: int, halo: int = 1, pitch: int = 1, tile: int = 0, pruned: int | None = None) -> Stage:
        """Returns the padded source for rows of `columns` outputs of each phase, its left halo and its pitch rounded up.

        tile: cut into tiles of so many of those outputs, each with its halo (0: whole rows).
        pruned: axis along which it is not padded; columns are then not parted by the step either.
        """
        rows = max(1, self.low(0) + self.source[0] + self.high(0))
        if pruned == 1:
            return Stage(self.low(0), 0, rows, 1, round_up(self.source[1], pitch))
        step = self.step[1]
        if tile:
            left = round_up(self.low(1), halo)
            count = (tile - 1) * step + 1 + max([0] + [t.col + left for t in self.every])
            return Stage(self.low(0), left, rows, 1, round_up(count, pitch), tile, -(-columns // tile), step)
        left = round_up(self.low(1), halo * step)
        count = columns + max([0] + [(t.col + left) // step for t in self.every])
        top, rows = (0, self.source[0]) if pruned == 0 else (self.low(0), rows)
        return Stage(top, left, rows, step, round_up(count, pitch))


@dataclass(frozen=True)
class Stage:
    """The shape of the staged source.

    Columns of whole rows are parted by stride, so that neighbouring outputs read neighbours. Tiles (`tile` outputs wide, `tiles` of them)
    keep columns as they lie in memory, and neighbouring outputs read `across` columns apart.
    """

    top: int  #: rows of halo before the plane
    left: int  #: columns of halo before the plane
    rows: int  #: rows of the stage
    phases: int  #: parts of a row's columns, by stride
    columns: int  #: columns of a part, or of a tile
    tile: int = 0  #: outputs of a phase that a tile is wide (0: whole rows)
    tiles: int = 1  #: tiles of a row
    across: int = 1  #: columns from what one output reads to what the next one does

    def place(self, col: int) -> tuple[int, int]:
        """Returns (phase, shift) of the column that output column 0 reads at offset col."""
        return (col + self.left) % self.phases, (col + self.left) // self.phases

    def split(self, column: Any) -> tuple[Any, Any]:
        """Returns (tile, column of the stage) that an output column reads at shift 0."""
        return (column // self.tile, column % self.tile * self.across) if self.tile else (0, column)


def nearest(value: int, period: int) -> int:
    """Returns the representative of value modulo period that lies nearest to 0."""
    value %= period
    return value - period if value > period // 2 else value


def alive(offset: int, count: int, step: int, size: int) -> bool:
    """Returns whether any of `count` outputs reads inside a plane of `size` at this offset."""
    return any(0 <= i * step + offset < size for i in range(count))


def _fold(pairs: Sequence[tuple[Offset, tuple[int, ...]]]) -> tuple[StencilTap, ...]:
    """Returns a term for each distinct offset."""
    places: dict[Offset, list[int]] = {}
    for offset, taps in pairs:
        places.setdefault(offset, []).extend(taps)
    return tuple(StencilTap(row, col, tuple(taps)) for (row, col), taps in places.items())


@functools.lru_cache(maxsize=1024)
def stencil(spec: ConvSpec) -> Stencil:
    """Returns the folded, pruned terms of a single-group spec (conv_dw: those of conv)."""
    plane, out, stride = (spec.height, spec.width), (spec.out_height, spec.out_width), spec.stride
    pairs = list(spec.taps.distinct(0).items())
    wrap = spec.padding_mode == "circular"
    if spec.op != "conv_dx":
        if wrap:
            pairs = [((nearest(h, plane[0]), nearest(w, plane[1])), taps) for (h, w), taps in pairs]
        live = [t for t in _fold(pairs) if wrap or (alive(t.row, out[0], stride[0], plane[0]) and alive(t.col, out[1], stride[1], plane[1]))]
        return Stencil(plane, out, stride, (1, 1), {(0, 0): tuple(live)}, wrap)
    if wrap and (plane[0] % stride[0] or plane[1] % stride[1]):
        # the wrapped plane does not tile by the stride: every wrap becomes a tap of its own, and the rest is zeros
        pairs, wrap = _unwrapped(spec), False
    terms = {}
    for a in range(min(stride[0], plane[0])):
        for b in range(min(stride[1], plane[1])):
            rows, cols = -(-(plane[0] - a) // stride[0]), -(-(plane[1] - b) // stride[1])
            here = [(((a - h) // stride[0], (b - w) // stride[1]), taps) for (h, w), taps in pairs if (a - h) % stride[0] == 0 and (b - w) % stride[1] == 0]
            if wrap:
                here = [((nearest(i, out[0]), nearest(j, out[1])), taps) for (i, j), taps in here]
            terms[a, b] = tuple(t for t in _fold(here) if wrap or (alive(t.row, rows, 1, out[0]) and alive(t.col, cols, 1, out[1])))
    return Stencil(out, plane, (1, 1), stride, terms, wrap)


def _unwrapped(spec: ConvSpec) -> list[tuple[Offset, tuple[int, ...]]]:
    """Returns the taps of a circular plane as taps of a zero-padded one: each offset less every multiple of the plane that can matter."""
    height, width = spec.height, spec.width
    top, right = (spec.out_height - 1) * spec.stride[0], (spec.out_width - 1) * spec.stride[1]
    pairs = []
    for (h, w), taps in spec.taps.distinct(0).items():
        for row in range((h - height) // height, (h + top) // height + 1):
            pairs += [((h - row * height, w - col * width), taps) for col in range((w - width) // width, (w + right) // width + 1)]
    return pairs


def round_up(value: int, multiple: int) -> int:
    """Returns the least multiple that is >= value."""
    return -(-value // multiple) * multiple
