"""TE of the three ops for NCHW: what is computed, never how. Schedules find the stages by the names fixed here.

Blocks: "stage" (source padded with its halo, columns parted
by stride), "acc" (sums, rows rounded up to whole vectors, where the form asks), "y". conv_dw has "stage", "dys"
(dy padded to whole vectors), "lanes" (partial sums), "part" (per image and band) and "y".
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from ...errors import InvalidArgument
from ...problem.spec import ConvSpec
from ...problem.stencil import Stage, Stencil, StencilTap, round_up, stencil
from ...toolchain.tvm import load_tvm
from .config import StageConfig
from .conv_dw_reduce import part_of, sliced_sums, weight_sums
from .epilogue import activate
from .expr import constants, pick, total_of

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)
from tvm.ir import Range  # noqa: E402
from tvm.s_tir import SBlock  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402

COMPUTE_VERSION = 1


def padded_stage(source: Any, g: Stencil, shape: Stage, dtype: str, quad: int) -> Any:
    """The source (n, c, rows, column phase, columns / quad, quad) padded as the mode says, in dtype.

    With quad > 1 a group of columns is all inside the plane or all outside: one test, one vector load.
    """
    height, width = g.source
    apart = shape.tile * shape.across  # source columns from one tile to the next
    if quad > 1 and (g.wrap or shape.phases > 1 or any(size % quad for size in (width, shape.left, shape.columns, apart))):
        raise InvalidArgument(
            f"columns cannot be staged {quad} at a time: width {width}, left halo {shape.left}, pitch {shape.columns}, tile {apart} must be multiples, "
            "and columns not parted by a stride"
        )

    def padded(n: Any, c: Any, i: Any, b: Any, j: Any, v: Any) -> Any:
        row, col = i - shape.top, (j * quad + v) * shape.phases + b * (apart or 1) - shape.left
        if g.wrap:
            return source[n, c, tirx.floormod(row, height), tirx.floormod(col, width)].astype(dtype)
        inside = [] if shape.rows == height and shape.top == 0 else [row >= 0, row < height]
        if quad > 1:
            first = b * (apart // quad)
            inside += [j + first >= shape.left // quad, j + first < (shape.left + width) // quad]
        else:
            inside += [col >= 0, col < width]
        return te.if_then_else(te.all(*inside), source[n, c, row, col].astype(dtype), tirx.const(0, dtype))

    return te.compute((*source.shape[:2], shape.rows, shape.phases * shape.tiles, shape.columns // quad, quad), padded, name="stage")


def batch_of(form: StageConfig) -> Any:
    """N as the form wants it."""
    return te.var("n", "int32") if form.batch is None else form.batch


def part_func(spec: ConvSpec, channels: int, form: StageConfig) -> Any:
    """PrimFunc of a single-group spec over `channels` channels, in the given form.

    Parameters: conv (x, w, y), with bias (x, w, bias, y); conv_dx (dy, w, dx); conv_dw (x, dy, part, dw), where part (n, c, bands, taps) is a
    workspace of the caller. part and dw are of spec.sums, all else of spec.dtype.
    """
    if spec.op == "conv_dw" and (form.whole or form.pruned is not None):
        from .conv_dw_unrolled_nchw import unrolled_dw_func as make  # which needs this file
    elif form.line:
        from .conv_lines_nchw import line_func as make
    else:
        make = _gather_func if spec.op != "conv_dw" else _dw_func
    func = make(spec, channels, form)
    if not form.narrow:
        widened = 3 if form.tile else 1 if form.pruned == 0 else 2
        func = _whole_rows(func, *(("x", 1) if form.bare and spec.op != "conv_dw" else ("stage", widened)))
    return func.with_attr("global_symbol", "main")


def _whole_rows(func: Any, name: str, axes: int) -> Any:
    """The function with every read of the stage widened to whole rows, so that staging keeps its alignment and pitch.

    name: of the buffer. axes: those after this one are widened.
    """

    def widen(region: Any) -> Any:
        if region.source.name != name:
            return region
        ranges = [Range(0, size) if axis > axes and int(size) > 1 else r for axis, (size, r) in enumerate(zip(region.source.shape, region.region, strict=True))]
        return tirx.BufferRegion(region.source, ranges)

    def block(b: Any) -> Any:
        return SBlock(b.iter_vars, [widen(r) for r in b.reads], b.writes, b.name_hint, b.body, b.init, b.alloc_buffers, b.match_buffers, b.annotations)

    return func.with_body(structural_map(func.body, (SBlock, block)))


def _swept(terms: Sequence[StencilTap]) -> list[StencilTap]:
    """Terms from the topmost row down, and right to left: outputs go from left to right, and the compiler then holds fewer values at once."""
    return sorted(terms, key=lambda t: (t.row, -t.col))


def _gather_func(spec: ConvSpec, channels: int, form: StageConfig) -> Any:
    g, n = stencil(spec), batch_of(form)
    source = te.placeholder((n, channels, *g.source), name="x", dtype=spec.dtype)
    weight = te.placeholder((channels, spec.kernel_size), name="w", dtype=spec.dtype)
    given, ended = epilogue_of(spec, channels, form)
    inner = -(-g.output[1] // g.phases[1])
    columns = round_up(inner, max(1, form.vector))
    padded = dataclasses.replace(g, output=(round_up(g.output[0], form.rows or 1), g.output[1]))
    shape_of = padded.stage(columns, form.halo, form.pitch, form.tile, form.pruned)
    top, zero = shape_of.top, tirx.const(0, spec.sums)
    stage: Any = None if form.bare else padded_stage(source, g, shape_of, spec.dtype if form.raw else spec.sums, form.quad)

    def weight_of(c: Any, t: StencilTap) -> Any:
        return total_of([weight[c, s].astype(spec.sums) for s in t.taps])

    def tested(a: Any, c: Any, i: Any, j: Any, t: StencilTap) -> Any:
        row, col = i * g.step[0] + t.row, j * g.step[1] + t.col
        if g.wrap:
            return weight_of(c, t) * source[a, c, tirx.floormod(row, g.source[0]), tirx.floormod(col, g.source[1])].astype(spec.sums)
        inside = te.all(row >= 0, row < g.source[0], col >= 0, col < g.source[1])
        return te.if_then_else(inside, weight_of(c, t) * source[a, c, row, col].astype(spec.sums), zero)

    def pruned(a: Any, c: Any, i: Any, j: Any, t: StencilTap) -> Any:
        """A product whose place along the axis without a halo is tested."""
        axis = form.pruned or 0
        at, size, (phase, shift) = (i, j)[axis] * g.step[axis] + (t.row, t.col)[axis], g.source[axis], shape_of.place(t.col)
        place = tirx.floormod(at, size) if g.wrap else at
        row, phase, column = (place, phase, j + shift) if axis == 0 else (i * g.step[0] + t.row + top, 0, place)
        product = weight_of(c, t) * stage[a, c, row, phase, column // form.quad, column % form.quad]
        return product if g.wrap else te.if_then_else(te.all(at >= 0, at < size), product, zero)

    def value(a: Any, c: Any, i: Any, j: Any, terms: Sequence[StencilTap]) -> Any:
        if form.bare:
            products = [tested(a, c, i, j, t) for t in sorted(terms, key=lambda t: (t.row, t.col))]
            return total_of(products) if products else te.if_then_else(a < 0, source[a, c, 0, 0].astype(spec.sums), zero)
        if not g.every:  # no tap ever lands inside: zeros, which must still read the stage for the schedules to find it
            return te.if_then_else(a < 0, stage[a, c, 0, 0, 0, 0], zero)
        products = []
        for t in _swept(terms) if form.sweep else terms:
            if form.pruned is not None:
                products.append(pruned(a, c, i, j, t))
                continue
            (phase, shift), (tile, column) = shape_of.place(t.col), shape_of.split(j)
            column = column + shift
            read = stage[a, c, i * g.step[0] + t.row + top, tile + phase, column // form.quad, column % form.quad]
            products.append(weight_of(c, t) * read.astype(spec.sums))
        return total_of(products) if products else zero

    def by_phase(a: Any, c: Any, h: Any, b: Any, j: Any) -> Any:
        result = None
        for (pa, pb), terms in reversed(g.terms.items()):
            one = value(a, c, h // g.phases[0], j, terms)
            here = [test for test, many in ((h % g.phases[0] == pa, g.phases[0] > 1), (b == pb, g.phases[1] > 1)) if many]
            result = one if result is None else te.if_then_else(te.all(*here), one, result)
        return result

    shape = (n, channels, *g.output)
    if form.lean is not None:
        place = form.lean.place

        def leaning(a: Any, c: Any, i: Any, j: Any) -> Any:
            h, w = place(g.output, i, j)
            return ended(by_phase(a, c, h, w % g.phases[1], w // g.phases[1]), c)

        own = te.compute(shape, leaning, name="own")
        return te.create_prim_func([source, weight, *given, te.compute(shape, lambda a, c, h, w: own[a, c, h, w], name="y")])
    if not form.vector:
        y = te.compute(shape, lambda a, c, h, w: ended(by_phase(a, c, h, w % g.phases[1], w // g.phases[1]), c), name="y")
        return te.create_prim_func([source, weight, *given, y])
    v, rows_of = form.vector, (n, channels, g.output[0], g.phases[1], columns // form.vector, form.vector)
    if form.reduce and g.every and g.phases == (1, 1):
        terms = sorted(g.terms[0, 0], key=lambda t: (t.row, t.col % v, t.col))  # neighbours share vectors
        where = [shape_of.place(t.col) for t in terms]
        rows, phases, shifts = constants([t.row + top for t in terms]), constants([p for p, _ in where]), constants([s for _, s in where])
        folded = te.compute(
            (channels, len(terms)), lambda c, t: pick(t, [total_of([weight[c, s].astype(spec.sums) for s in term.taps]) for term in terms]), name="folded"
        )
        tap = te.reduce_axis((0, len(terms)), "tap")

        def summed(a: Any, c: Any, h: Any, b: Any, jo: Any, ji: Any) -> Any:
            column = jo * v + ji + pick(tap, shifts)
            return te.sum(folded[c, tap] * stage[a, c, h * g.step[0] + pick(tap, rows), pick(tap, phases), column // form.quad, column % form.quad], axis=tap)

        acc = te.compute(rows_of, summed, name="acc")
    else:
        acc = te.compute(rows_of, lambda a, c, h, b, jo, ji: by_phase(a, c, h, b, jo * v + ji), name="acc")
    y = te.compute(shape, lambda a, c, h, w: ended(acc[a, c, h, w % g.phases[1], w // g.phases[1] // v, w // g.phases[1] % v], c), name="y")
    return te.create_prim_func([source, weight, *given, y])


def epilogue_of(spec: ConvSpec, channels: int, form: StageConfig) -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """Parameters of the epilogue, and what makes a result of a sum and its channel."""
    bias = te.placeholder((channels,), name="bias", dtype=spec.dtype) if spec.bias else None

    def ended(value: Any, c: Any) -> Any:
        value = value + bias[c].astype(spec.sums) if bias is not None else value
        return activate(spec.activation, value, spec.sums, form.vector_math).astype(spec.dtype)

    return [] if bias is None else [bias], ended


def _dw_func(spec: ConvSpec, channels: int, form: StageConfig) -> Any:
    g, n, v = stencil(spec), batch_of(form), max(1, form.vector)
    height, width = g.output
    terms = g.terms[0, 0] or (StencilTap(0, 0, ()),)  # where no tap is alive one is summed and used by none
    source = te.placeholder((n, channels, *g.source), name="x", dtype=spec.dtype)
    dy = te.placeholder((n, channels, height, width), name="dy", dtype=spec.dtype)
    chunk, rows = v * form.run, round_up(form.rows or height, form.row_lanes)
    columns, each = round_up(width, form.tile or chunk), rows // form.row_lanes
    own = form.tile or columns  # columns of a band
    tiles, tall = columns // own, round_up(height, rows)
    bands = tall // rows * tiles
    g = dataclasses.replace(g, output=(tall, width), terms={(0, 0): terms})  # padded rows meet a dy of zero
    shape_of = g.stage(columns, form.halo, form.pitch, form.tile)
    stage, top = padded_stage(source, g, shape_of, spec.sums, form.quad), shape_of.top
    where = [shape_of.place(t.col) for t in terms]
    trows, phases, shifts = constants([t.row + top for t in terms]), constants([p for p, _ in where]), constants([s for _, s in where])
    zero = tirx.const(0, spec.sums)

    quad = max(1, form.dy_quad)
    if columns % quad or (quad > 1 and width % quad):
        raise InvalidArgument(f"columns of dy cannot be loaded {quad} at a time: {columns} of them for a width of {width}")

    def padded(a: Any, c: Any, p: Any, q: Any) -> Any:
        value = dy[a, c, p, q].astype(spec.sums)
        return te.if_then_else(te.all(p < height, q // quad < -(-width // quad)), value, zero) if tall != height or columns != width else value

    if form.dy_quad:
        dys = te.compute((n, channels, tall, columns // quad, quad), lambda a, c, p, j, i: padded(a, c, p, j * quad + i), name="dys")
    else:
        dys = te.compute((n, channels, tall, columns), padded, name="dys")
    rp, ro, ri = te.reduce_axis((0, each), "rp"), te.reduce_axis((0, own // chunk), "ro"), te.reduce_axis((0, form.run), "ri")

    def product(a: Any, c: Any, band: Any, t: Any, lane: Any) -> Any:
        down, tile = (band // tiles, band % tiles) if form.tile else (band, 0)
        p = down * rows + lane // v * each + rp
        q = (ro * v + lane % v) * form.run + ri
        row = p * g.step[0] + pick(t, trows)
        column = q * shape_of.across + pick(t, shifts)
        q = tile * own + q
        factor = dys[a, c, p, q // quad, q % quad] if form.dy_quad else dys[a, c, p, q]
        part = tile if form.tile else pick(t, phases)
        return te.sum(factor * stage[a, c, row, part, column // form.quad, column % form.quad], axis=[rp, ro, ri])

    count, many = len(terms), v * form.row_lanes
    if form.dy_quad:
        lanes = te.compute((n, channels, bands, many, count), lambda a, c, band, lane, t: product(a, c, band, t, lane), name="lanes")
        part = part_of(lanes, form.joins)
    else:
        lanes = te.compute((n, channels, bands, count, many), product, name="lanes")
        rl = te.reduce_axis((0, many), "rl")
        part = te.compute((n, channels, bands, count), lambda a, c, band, t: te.sum(lanes[a, c, band, t, rl], axis=rl), name="part")
    if form.slices:
        return te.create_prim_func([source, dy, part, sliced_sums(spec, channels, terms, form, part)])
    return te.create_prim_func([source, dy, part, weight_sums(spec, channels, terms, n, bands, lambda a, band, t, c: part[a, c, band, t])])


def flat(images: Any, dtype: str, name: str) -> Any:
    """Planes (n, c, h, w) as (n, c, 1, h * w / quad, quad): a whole one is copied in groups of 4 where it parts into them."""
    n, channels, height, width = images.shape
    size, width = int(height) * int(width), int(width)
    quad = 1 if size % 4 else 4

    def value(a: Any, c: Any, _: Any, j: Any, i: Any) -> Any:
        place = j * quad + i
        return images[a, c, place // width, place % width].astype(dtype)

    return te.compute((n, channels, 1, size // quad, quad), value, name=name)
