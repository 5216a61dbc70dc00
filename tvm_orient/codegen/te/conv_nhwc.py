"""TE of the three ops for NHWC: what `conv_nchw` is for NCHW. A channel keeps its offsets, so that lanes along C need no alignment.

Blocks: "stage" (source padded with its halo, channels in blocks of whole vectors), "folded" (weights, tap by tap) and "acc" (sums) where
the form has vectors, "y". conv_dw has "stage", "dys" (dy in blocks of channels), "acc", "part" (per image and band) and "y".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...problem.spec import ConvSpec
from ...problem.stencil import Stencil, StencilTap, stencil
from ...toolchain.tvm import load_tvm
from .config import StageConfig
from .conv_dw_reduce import by_tap, weight_sums
from .conv_nchw import batch_of, epilogue_of
from .expr import constants, pick, total_of

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


def part_func(spec: ConvSpec, channels: int, form: StageConfig) -> Any:
    """PrimFunc of a single-group spec over `channels` channels, in the given form.

    Parameters as those of `conv_nchw.part_func`, images being (n, h, w, c) and part (n, bands, taps, c). form.vector: channels of a
    vector; form.rows, form.tile: rows and columns of a band of conv_dw, divisors of those of dy.
    """
    func = _dw_func(spec, channels, form) if spec.op == "conv_dw" else _gather_func(spec, channels, form)
    return func.with_attr("global_symbol", "main")


def _blocked(image: Any, channels: int, v: int, spec: ConvSpec, name: str, extents: tuple[Any, ...], place: Callable[..., Any]) -> Any:
    """(*extents, c / v, v) of the image in the dtype of sums; place(*indices) gives the tests of lying inside, and the pixel.

    Zeros stand outside, and for the channels that the last block lacks.
    """

    def value(*at: Any) -> Any:
        *pixel, b, lane = at
        tests, index = place(*pixel)
        if channels % v:  # by block, or by lane: each is the same for a whole vector once lanes are cut
            tests = [*tests, tirx.any(b < channels // v, lane < channels % v)]
        one = image[(*index, b * v + lane)].astype(spec.sums)
        return te.if_then_else(te.all(*tests), one, tirx.const(0, spec.sums)) if tests else one

    return te.compute((*extents, -(-channels // v), v), value, name=name)


def _stage(source: Any, g: Stencil, channels: int, v: int, spec: ConvSpec) -> tuple[Any, int, int]:
    """The source (n, rows, columns, c / v, v) padded as the mode says, and the halo before the plane (rows, columns)."""
    (height, width), top, left = g.source, g.low(0), g.low(1)
    rows, columns = max(1, top + height + g.high(0)), max(1, left + width + g.high(1))

    def place(a: Any, i: Any, j: Any) -> tuple[list[Any], tuple[Any, ...]]:
        row, col = i - top, j - left
        if g.wrap:
            return [], (a, tirx.floormod(row, height), tirx.floormod(col, width))
        tests = [row >= 0, row < height] if rows != height else []
        return [*tests, *([col >= 0, col < width] if columns != width else [])], (a, row, col)

    return _blocked(source, channels, v, spec, "stage", (source.shape[0], rows, columns), place), top, left


def _gather_func(spec: ConvSpec, channels: int, form: StageConfig) -> Any:
    g, n, v = stencil(spec), batch_of(form), max(1, form.vector)
    source = te.placeholder((n, *g.source, channels), name="x", dtype=spec.dtype)
    weight = te.placeholder((channels, spec.kernel_size), name="w", dtype=spec.dtype)
    given, ended = epilogue_of(spec, channels, form)
    stage, top, left = _stage(source, g, channels, v, spec)
    zero, blocks, terms = tirx.const(0, spec.sums), -(-channels // v), g.every
    order = {id(t): i for i, t in enumerate(terms)}

    def weighed(c: Any, term: StencilTap) -> Any:
        return total_of([weight[c, s].astype(spec.sums) for s in term.taps])

    def fold(t: Any, b: Any, lane: Any) -> Any:
        c = b * v + lane
        one = pick(t, [weighed(tirx.Min(c, channels - 1), term) for term in terms])
        return one if channels % v == 0 else tirx.Select(c < channels, one, zero)

    weights: Any = te.compute((len(terms), blocks, v), fold, name="folded") if form.vector and terms else None

    def folded(b: Any, lane: Any, term: StencilTap) -> Any:
        return weighed(b, term) if weights is None else weights[order[id(term)], b, lane]

    def value(a: Any, i: Any, j: Any, b: Any, lane: Any, terms: Sequence[StencilTap]) -> Any:
        if not g.every:  # no tap ever lands inside: zeros, which must still read the stage for the schedules to find it
            return te.if_then_else(a < 0, stage[a, 0, 0, b, lane], zero)
        products = [folded(b, lane, t) * stage[a, i * g.step[0] + t.row + top, j * g.step[1] + t.col + left, b, lane] for t in terms]
        return total_of(products) if products else zero

    def by_phase(a: Any, h: Any, w: Any, b: Any, lane: Any) -> Any:
        result = None
        for (pa, pb), terms in reversed(g.terms.items()):
            one = value(a, h // g.phases[0], w // g.phases[1], b, lane, terms)
            here = [test for test, many in ((h % g.phases[0] == pa, g.phases[0] > 1), (w % g.phases[1] == pb, g.phases[1] > 1)) if many]
            result = one if result is None else te.if_then_else(te.all(*here), one, result)
        return result

    shape = (n, *g.output, channels)
    if not form.vector:
        y = te.compute(shape, lambda a, h, w, c: ended(by_phase(a, h, w, c, 0), c), name="y")
        return te.create_prim_func([source, weight, *given, y])
    if g.every and g.phases == (1, 1):
        rows, columns = constants([t.row + top for t in terms]), constants([t.col + left for t in terms])
        tap = te.reduce_axis((0, len(terms)), "tap")

        def summed(a: Any, h: Any, w: Any, b: Any, lane: Any) -> Any:
            return te.sum(weights[tap, b, lane] * stage[a, h * g.step[0] + pick(tap, rows), w * g.step[1] + pick(tap, columns), b, lane], axis=tap)

        acc = te.compute((n, *g.output, blocks, v), summed, name="acc")
    else:
        acc = te.compute((n, *g.output, blocks, v), by_phase, name="acc")
    y = te.compute(shape, lambda a, h, w, c: ended(acc[a, h, w, c // v, c % v], c), name="y")
    return te.create_prim_func([source, weight, *given, y])


def _dw_func(spec: ConvSpec, channels: int, form: StageConfig) -> Any:
    g, n, v = stencil(spec), batch_of(form), max(1, form.vector)
    height, width = g.output
    terms = g.terms[0, 0] or (StencilTap(0, 0, ()),)  # where no tap is alive one is summed and used by none
    source = te.placeholder((n, *g.source, channels), name="x", dtype=spec.dtype)
    dy = te.placeholder((n, height, width, channels), name="dy", dtype=spec.dtype)
    stage, top, left = _stage(source, g, channels, v, spec)
    band, own, blocks, count = form.rows or height, form.tile or width, -(-channels // v), len(terms)
    tiles = width // own
    bands = height // band * tiles
    rows, columns = constants([t.row + top for t in terms]), constants([t.col + left for t in terms])
    dys = _blocked(dy, channels, v, spec, "dys", (n, height, width), lambda a, p, q: ([], (a, p, q)))
    rp, rq = te.reduce_axis((0, band), "rp"), te.reduce_axis((0, own), "rq")

    def product(a: Any, o: Any, t: Any, b: Any, lane: Any) -> Any:
        p, q = o // tiles * band + rp, o % tiles * own + rq
        return te.sum(dys[a, p, q, b, lane] * stage[a, p * g.step[0] + pick(t, rows), q * g.step[1] + pick(t, columns), b, lane], axis=[rp, rq])

    acc = te.compute((n, bands, count, blocks, v), product, name="acc")
    if form.slices:

        def tap(a: Any, o: Any, s: Any, c: Any) -> Any:
            return by_tap(spec, terms, lambda t: acc[a, o, t, c // v, c % v])(s)

        part = te.compute((n, bands, spec.kernel_size, channels), tap, name="part")
        return te.create_prim_func([source, dy, part, _sliced_sums(spec, channels, n, bands, form, part)])
    part = te.compute((n, bands, count, channels), lambda a, o, t, c: acc[a, o, t, c // v, c % v], name="part")
    return te.create_prim_func([source, dy, part, weight_sums(spec, channels, terms, n, bands, lambda a, o, t, c: part[a, o, t, c])])


def _sliced_sums(spec: ConvSpec, channels: int, n: Any, bands: int, form: StageConfig, part: Any) -> Any:
    """dw (channels, K) as the sum of part by way of "slices": bands s, s + slices, ... of all images are summed apart, `ahead` of them in one step."""
    many, taps, zero = form.slices, spec.kernel_size, tirx.const(0, spec.sums)
    ro, ri = te.reduce_axis((0, (n * bands + many * form.ahead - 1) // (many * form.ahead)), "ro"), te.reduce_axis((0, form.ahead), "ri")
    rs = te.reduce_axis((0, many), "rs")

    def total(slice: Any, s: Any, c: Any) -> Any:
        band = (ro * form.ahead + ri) * many + slice
        return te.sum(te.if_then_else(band < n * bands, part[band // bands, band % bands, s, c], zero), axis=[ro, ri])

    slices = te.compute((many, taps, channels), total, name="slices")
    return te.compute((channels, taps), lambda c, s: te.sum(slices[rs, s, c], axis=rs), name="y")
