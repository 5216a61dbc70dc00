"""Builds the TE of conv and conv_dx where all taps lie on one line of whole slope: one lane owns a line of the plane, and no pixel is read twice.

Taps (t, slope * t) stay on the line column = first + slope * row. Taken modulo the width, the W lines that begin in the top row hold every
pixel once. Such a line leaves the plane at one side and comes back at the other; the two parts are summed apart.
"""

from __future__ import annotations

from typing import Any

from ...problem.shear import line_slope
from ...problem.spec import ConvSpec
from ...problem.stencil import stencil
from ...toolchain.tvm import load_tvm
from .. import names
from ..tir.rewrite import moved
from .config import StageConfig
from .expr import total_of
from .stages import batch_of, epilogue_of, flat

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


def line_func(spec: ConvSpec, channels: int, config: StageConfig) -> Any:
    """Returns the PrimFunc as `prim_func.part_func`, whose y is stored by (row, first column of the line) until `in_place` moves it.

    Blocks, by (n, c, row, line): FIRST and, where a line has two parts, SECOND, their sums, and Y. They read STAGE: planes as they lie in
    memory, or in a bare configuration values by (n, c, row, line). Only for specs that have a `shear.line_slope`.
    """
    g, n, slope = stencil(spec), batch_of(config), line_slope(spec) or 0
    height, width = g.source
    shape = (n, channels, height, width)
    source = te.placeholder(shape, name=names.X, dtype=spec.dtype)
    weight = te.placeholder((channels, spec.kernel_size), name=names.W, dtype=spec.dtype)
    given, ended = epilogue_of(spec, channels, config)
    zero, terms = tirx.const(0, spec.sums), sorted(g.every, key=lambda t: t.row)
    if config.bare:
        stage = te.compute(shape, lambda a, c, r, q: source[a, c, r, _column(r, q, slope, width)].astype(spec.sums), name=names.STAGE)
    else:
        stage = flat(source, spec.sums, names.STAGE)

    def value(a: Any, c: Any, r: Any, q: Any) -> Any:
        if config.bare:
            return stage[a, c, r, q]
        place, quad = r * width + _column(r, q, slope, width), int(stage.shape[4])
        return stage[a, c, 0, place // quad, place % quad]

    def summed(values: Any, name: str) -> Any:
        def total(a: Any, c: Any, i: Any, q: Any) -> Any:
            products = []
            for t in terms:
                row = tirx.floormod(i + t.row, height) if g.wrap else i + t.row
                product = total_of([weight[c, s].astype(spec.sums) for s in t.taps]) * values[a, c, row, q]
                products.append(product if g.wrap else te.if_then_else(te.all(row >= 0, row < height), product, zero))
            return total_of(products) if products else te.if_then_else(a < 0, values[a, c, i, q], zero)

        return te.compute(shape, total, name=name)

    # two sums instead of a test for each product; every part is a stage, so that no sum stands in a branch
    two = bool(slope) and not g.wrap

    def part(before: bool) -> Any:
        def kept(a: Any, c: Any, r: Any, q: Any) -> Any:
            here = value(a, c, r, q)
            back = _came_back(r, q, slope, width)
            return tirx.Select(back, *((zero, here) if before else (here, zero))) if two else here

        return kept

    first = te.compute(shape, part(True), name=names.FIRST)
    sums = summed(first, names.FIRST_SUM)
    if two:
        second = te.compute(shape, part(False), name=names.SECOND)
        others = summed(second, names.SECOND_SUM)
        y = te.compute(shape, lambda a, c, i, q: ended(tirx.Select(_came_back(i, q, slope, width), others[a, c, i, q], sums[a, c, i, q]), c), name=names.Y)
    else:
        y = te.compute(shape, lambda a, c, i, q: ended(sums[a, c, i, q], c), name=names.Y)
    return te.create_prim_func([source, weight, *given, y])


def in_place(func: Any, spec: ConvSpec) -> Any:
    """Returns the scheduled function with y stored where it belongs: (row, first column) becomes (row, column).

    Raises:
        BuildFailed: nothing is stored in y.
    """
    y, slope, width = func.params[-1], line_slope(spec) or 0, spec.width
    return moved(func, y.same_as, lambda row, line: (row, _column(row, line, slope, width))) if slope else func


def _came_back(row: Any, line: Any, slope: int, width: int) -> Any:
    """Returns whether a line has left the plane at one side and come back at the other before this row."""
    return line + slope * row >= width if slope > 0 else line + slope * row < 0


def _column(row: Any, line: Any, slope: int, width: int) -> Any:
    """Returns the column of the plane at which a line stands in this row."""
    column = line + slope * row
    return tirx.Select(_came_back(row, line, slope, width), column - width if slope > 0 else column + width, column) if slope else column
