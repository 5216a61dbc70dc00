"""Builds the TE of conv_dw for NCHW where a block of threads or a task of a CPU shares one staged band of a plane.

Blocks: STAGE (source padded with its halo, columns parted by stride), DYS (dy padded to whole vectors), LANES (partial sums), GROUPS,
PART (sums of an image and band), SLICES and Y, as `names` calls them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from ...errors import InvalidArgument
from ...problem.spec import ConvSpec
from ...problem.stencil import Stencil, StencilTap, round_up, stencil
from ...toolchain.tvm import load_tvm
from .. import names
from .config import DwStageConfig
from .conv_dw_reduce import part_of, sliced_sums, weight_sums
from .expr import constants, pick
from .stages import batch_of, padded_stage

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


@dataclass(frozen=True)
class _Bands:
    """How dy is parted into bands and, inside a band, among lanes."""

    chunk: int  #: columns that all lanes of a row sum in one step
    rows: int  #: rows of a band
    each: int  #: rows of a band that a lane sums
    own: int  #: columns of a band
    tiles: int  #: bands beside one another
    columns: int  #: columns of dy, rounded up
    tall: int  #: rows of dy, rounded up

    @classmethod
    def of(cls, config: DwStageConfig, height: int, width: int) -> _Bands:
        """Returns the bands of a dy of this size."""
        chunk, rows = max(1, config.vector) * config.run, round_up(config.rows or height, config.row_lanes)
        columns, each = round_up(width, config.tile or chunk), rows // config.row_lanes
        own = config.tile or columns
        return cls(chunk, rows, each, own, columns // own, columns, round_up(height, rows))

    @property
    def count(self) -> int:
        """Returns the number of bands of a plane."""
        return self.tall // self.rows * self.tiles


def dw_func(spec: ConvSpec, channels: int, config: DwStageConfig) -> Any:
    """Returns the PrimFunc as `prim_func.part_func` of conv_dw in bands.

    Raises:
        InvalidArgument: columns of x or dy do not part into the groups that are loaded at once.
    """
    g, n = stencil(spec), batch_of(config)
    terms = g.terms[0, 0] or (StencilTap(0, 0, ()),)  # where no tap is alive one is summed and used by none
    source = te.placeholder((n, channels, *g.source), name=names.X, dtype=spec.dtype)
    dy = te.placeholder((n, channels, *g.output), name=names.DY, dtype=spec.dtype)
    bands = _Bands.of(config, *g.output)
    many = max(1, config.vector) * config.row_lanes
    lanes = _lanes(spec, source, dy, terms, bands, config)
    if config.dy_quad:
        part = part_of(lanes, config.joins)
    else:
        rl = te.reduce_axis((0, many), "rl")
        shape = (n, channels, bands.count, len(terms))
        part = te.compute(shape, lambda a, c, band, t: te.sum(lanes[a, c, band, t, rl], axis=rl), name=names.PART)
    if config.slices:
        return te.create_prim_func([source, dy, part, sliced_sums(spec, channels, terms, config, part)])
    return te.create_prim_func([source, dy, part, weight_sums(spec, channels, terms, n, bands.count, lambda a, band, t, c: part[a, c, band, t])])


def _staged_dy(spec: ConvSpec, dy: Any, g: Stencil, bands: _Bands, quad: int) -> Any:
    """Returns DYS (n, c, rows, columns), or with quad (n, c, rows, columns / quad, quad): dy in the dtype of sums, zeros where it is rounded up."""
    (height, width), (n, channels, *_) = g.output, dy.shape
    group, zero = max(1, quad), tirx.const(0, spec.sums)
    if bands.columns % group or (group > 1 and width % group):
        raise InvalidArgument(f"columns of dy cannot be loaded {group} at a time: {bands.columns} of them for a width of {width}")

    def padded(a: Any, c: Any, p: Any, q: Any) -> Any:
        value = dy[a, c, p, q].astype(spec.sums)
        inside = te.all(p < height, q // group < -(-width // group))
        return te.if_then_else(inside, value, zero) if bands.tall != height or bands.columns != width else value

    if quad:
        shape = (n, channels, bands.tall, bands.columns // quad, quad)
        return te.compute(shape, lambda a, c, p, j, i: padded(a, c, p, j * quad + i), name=names.DYS)
    return te.compute((n, channels, bands.tall, bands.columns), padded, name=names.DYS)


def _lanes(spec: ConvSpec, source: Any, dy: Any, terms: tuple[StencilTap, ...], bands: _Bands, config: DwStageConfig) -> Any:
    """Returns LANES, the sums of each lane of a band: (n, c, band, tap, lane), or with config.dy_quad (n, c, band, lane, tap)."""
    g, v, quad = stencil(spec), max(1, config.vector), config.dy_quad
    n, channels = dy.shape[:2]
    padded = dataclasses.replace(g, output=(bands.tall, g.output[1]), terms={(0, 0): terms})  # padded rows meet a dy of zero
    shape_of = padded.stage(bands.columns, config.halo, config.pitch, config.tile)
    stage = padded_stage(source, padded, shape_of, spec.sums, config.quad)
    dys = _staged_dy(spec, dy, g, bands, quad)
    where = [shape_of.place(t.col) for t in terms]
    rows, phases, shifts = constants([t.row + shape_of.top for t in terms]), constants([p for p, _ in where]), constants([s for _, s in where])
    rp, ro, ri = te.reduce_axis((0, bands.each), "rp"), te.reduce_axis((0, bands.own // bands.chunk), "ro"), te.reduce_axis((0, config.run), "ri")

    def product(a: Any, c: Any, band: Any, t: Any, lane: Any) -> Any:
        down, tile = (band // bands.tiles, band % bands.tiles) if config.tile else (band, 0)
        p = down * bands.rows + lane // v * bands.each + rp
        q = (ro * v + lane % v) * config.run + ri
        row = p * g.step[0] + pick(t, rows)
        column = q * shape_of.across + pick(t, shifts)
        q = tile * bands.own + q
        factor = dys[a, c, p, q // quad, q % quad] if quad else dys[a, c, p, q]
        part = tile if config.tile else pick(t, phases)
        return te.sum(factor * stage[a, c, row, part, column // config.quad, column % config.quad], axis=[rp, ro, ri])

    count, many = len(terms), v * config.row_lanes
    if quad:
        return te.compute((n, channels, bands.count, many, count), lambda a, c, band, lane, t: product(a, c, band, t, lane), name=names.LANES)
    return te.compute((n, channels, bands.count, count, many), product, name=names.LANES)
