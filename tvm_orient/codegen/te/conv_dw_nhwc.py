"""Builds the TE of conv_dw for NHWC: lanes are channels, and every band of a plane is summed apart.

Blocks: STAGE, DYS (dy in blocks of channels), ACC (sums of a band), PART (per image and band), SLICES and Y, as `names` calls them.
"""

from __future__ import annotations

from typing import Any

from ...problem.spec import ConvSpec
from ...problem.stencil import StencilTap, stencil
from ...toolchain.tvm import load_tvm
from .. import names
from .config import DwStageConfig
from .conv_dw_reduce import by_tap, weight_sums
from .expr import constants, pick
from .stages import batch_of, blocked, blocked_stage

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


def dw_func(spec: ConvSpec, channels: int, config: DwStageConfig) -> Any:
    """Returns the PrimFunc as `prim_func.part_func` of conv_dw.

    config.vector: channels of a vector; config.rows, config.tile: rows and columns of a band, divisors of those of dy.
    """
    g, n, v = stencil(spec), batch_of(config), max(1, config.vector)
    height, width = g.output
    terms = g.terms[0, 0] or (StencilTap(0, 0, ()),)  # where no tap is alive one is summed and used by none
    source = te.placeholder((n, *g.source, channels), name=names.X, dtype=spec.dtype)
    dy = te.placeholder((n, height, width, channels), name=names.DY, dtype=spec.dtype)
    stage, top, left = blocked_stage(source, g, channels, v, spec)
    band, own, blocks, count = config.rows or height, config.tile or width, -(-channels // v), len(terms)
    tiles = width // own
    bands = height // band * tiles
    rows, columns = constants([t.row + top for t in terms]), constants([t.col + left for t in terms])
    dys = blocked(dy, channels, v, spec, names.DYS, (n, height, width), lambda a, p, q: ([], (a, p, q)))
    rp, rq = te.reduce_axis((0, band), "rp"), te.reduce_axis((0, own), "rq")

    def product(a: Any, o: Any, t: Any, b: Any, lane: Any) -> Any:
        p, q = o // tiles * band + rp, o % tiles * own + rq
        return te.sum(dys[a, p, q, b, lane] * stage[a, p * g.step[0] + pick(t, rows), q * g.step[1] + pick(t, columns), b, lane], axis=[rp, rq])

    acc = te.compute((n, bands, count, blocks, v), product, name=names.ACC)
    if config.slices:

        def tap(a: Any, o: Any, s: Any, c: Any) -> Any:
            return by_tap(spec, terms, lambda t: acc[a, o, t, c // v, c % v])(s)

        part = te.compute((n, bands, spec.kernel_size, channels), tap, name=names.PART)
        return te.create_prim_func([source, dy, part, _sliced_sums(spec, channels, n, bands, config, part)])
    part = te.compute((n, bands, count, channels), lambda a, o, t, c: acc[a, o, t, c // v, c % v], name=names.PART)
    return te.create_prim_func([source, dy, part, weight_sums(spec, channels, terms, n, bands, lambda a, o, t, c: part[a, o, t, c])])


def _sliced_sums(spec: ConvSpec, channels: int, n: Any, bands: int, config: DwStageConfig, part: Any) -> Any:
    """Returns dw (channels, K) as the sum of part by way of SLICES.

    Bands s, s + slices, ... of all images are summed apart, `images_in_flight` of them in one step.
    """
    many, taps, zero = config.slices, spec.kernel_size, tirx.const(0, spec.sums)
    together = config.images_in_flight
    ro = te.reduce_axis((0, (n * bands + many * together - 1) // (many * together)), "ro")
    ri = te.reduce_axis((0, together), "ri")
    rs = te.reduce_axis((0, many), "rs")

    def total(slice: Any, s: Any, c: Any) -> Any:
        band = (ro * together + ri) * many + slice
        return te.sum(te.if_then_else(band < n * bands, part[band // bands, band % bands, s, c], zero), axis=[ro, ri])

    slices = te.compute((many, taps, channels), total, name=names.SLICES)
    return te.compute((channels, taps), lambda c, s: te.sum(slices[rs, s, c], axis=rs), name=names.Y)
