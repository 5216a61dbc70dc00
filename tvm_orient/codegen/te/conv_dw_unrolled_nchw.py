"""Builds the TE of conv_dw where a lane owns a whole plane, or whole rows or columns of it.

Which products lie outside the plane is then known when the loops over pixels and taps are unrolled, on both axes or on one, so that there
is no halo there. Blocks: STAGE, DYS (planes as they lie, but for the halo that is left), LANES, GROUPS, PART, SLICES and Y, as `names` calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...problem.spec import ConvSpec
from ...problem.stencil import StencilTap, stencil
from ...toolchain.tvm import load_tvm
from .. import names
from .config import DwStageConfig
from .conv_dw_reduce import part_of, sliced_sums
from .expr import constants, pick
from .stages import batch_of, flat, padded_stage

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)

Product = Callable[[Any, Any, Any, Any], Any]


def unrolled_dw_func(spec: ConvSpec, channels: int, config: DwStageConfig) -> Any:
    """Returns the PrimFunc as `prim_func.part_func` of conv_dw: one band, one lane a plane (config.whole) or a strip (config.pruned)."""
    g, n = stencil(spec), batch_of(config)
    terms = g.terms[0, 0] or (StencilTap(0, 0, ()),)  # where no tap is alive one is summed and used by none
    source = te.placeholder((n, channels, *g.source), name=names.X, dtype=spec.dtype)
    dy = te.placeholder((n, channels, *g.output), name=names.DY, dtype=spec.dtype)
    make = _whole if config.whole else _strips
    many, axes, product = make(spec, terms, source, dy, config)
    lanes = te.compute((n, channels, 1, many, len(terms)), lambda a, c, _, lane, t: te.sum(product(a, c, lane, t), axis=axes), name=names.LANES)
    part = part_of(lanes, config.joins)
    return te.create_prim_func([source, dy, part, sliced_sums(spec, channels, terms, config, part)])


def _at(planes: Any, a: Any, c: Any, place: Any) -> Any:
    """Returns the value of a flat plane at this place."""
    quad = int(planes.shape[4])
    return planes[a, c, 0, place // quad, place % quad]


def _whole(spec: ConvSpec, terms: tuple[StencilTap, ...], source: Any, dy: Any, config: DwStageConfig) -> tuple[int, list[Any], Product]:
    """Returns (lanes, axes that a lane sums over, product), where a lane owns a plane."""
    g = stencil(spec)
    (height, width), (out_height, out_width) = g.source, g.output
    stage, dys = flat(source, spec.sums, names.STAGE), flat(dy, spec.sums, names.DYS)
    rp, ri = te.reduce_axis((0, out_height), "rp"), te.reduce_axis((0, out_width), "ri")
    rows, columns = constants([t.row for t in terms]), constants([t.col for t in terms])

    def product(a: Any, c: Any, lane: Any, t: Any) -> Any:
        row, column = rp * g.step[0] + pick(t, rows), ri * g.step[1] + pick(t, columns)
        if g.wrap:
            row, column = tirx.floormod(row, height), tirx.floormod(column, width)
        inside = te.all(row >= 0, row < height, column >= 0, column < width)
        place = tirx.max(tirx.min(row * width + column, height * width - 1), 0)
        return tirx.Select(inside, _at(dys, a, c, rp * out_width + ri) * _at(stage, a, c, place), tirx.const(0, spec.sums))

    return 1, [rp, ri], product


def _strips(spec: ConvSpec, terms: tuple[StencilTap, ...], source: Any, dy: Any, config: DwStageConfig) -> tuple[int, list[Any], Product]:
    """Returns the same as `_whole`, where a lane owns config.run rows of dy (config.pruned 1) or columns (0); x has its halo on that side only."""
    g = stencil(spec)
    shape = g.stage(g.output[1], config.halo, config.pitch, pruned=config.pruned)
    stage, dys = padded_stage(source, g, shape, spec.sums, config.quad), flat(dy, spec.sums, names.DYS)
    along, size = g.output[config.pruned or 0], g.source[config.pruned or 0]
    rp, ri = te.reduce_axis((0, config.run), "rp"), te.reduce_axis((0, along), "ri")
    where = [shape.place(t.col) for t in terms]
    rows, columns = constants([t.row for t in terms]), constants([t.col for t in terms])
    phases, shifts = constants([phase for phase, _ in where]), constants([shift for _, shift in where])

    def product(a: Any, c: Any, lane: Any, t: Any) -> Any:
        own = lane * config.run + rp
        i, j = (own, ri) if config.pruned else (ri, own)
        row = i * g.step[0] + pick(t, rows)
        if config.pruned:
            place = column = j * g.step[1] + pick(t, columns)
            phase, row = 0, row + shape.top
        else:
            place, phase, column = row, pick(t, phases), j + pick(t, shifts)
        inside = te.all(place >= 0, place < size)
        place = tirx.floormod(place, size) if g.wrap else tirx.max(tirx.min(place, size - 1), 0)
        row, column = (row, place) if config.pruned else (place, column)
        value = _at(dys, a, c, i * g.output[1] + j) * stage[a, c, row, phase, column // config.quad, column % config.quad]
        return value if g.wrap else tirx.Select(inside, value, tirx.const(0, spec.sums))

    return g.output[1 - (config.pruned or 0)] // config.run, [rp, ri], product
