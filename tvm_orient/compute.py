"""TE of the three ops: what is computed, never how. Schedules find the stages by the names fixed here.

conv and conv_dx are one gather: output (i*A + a) reads source rows i*step + row for the terms of its phase a, where
A is the stride of conv_dx and step the stride of conv. Blocks: "stage" (source padded with its halo, columns parted
by stride), "acc" (sums, rows rounded up to whole vectors, where the form asks), "y". conv_dw has "stage", "dys"
(dy padded to whole vectors), "part" (per image), "total" and "y".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .form import Form
from .spec import ConvSpec
from .taps import Offset
from .tvmkit import load_tvm

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)

COMPUTE_VERSION = 1


@dataclass(frozen=True)
class Term:
    """Source offset of a distinct tap within its phase, and the taps whose weights are added there first."""

    row: int
    col: int
    taps: tuple[int, ...]


@dataclass(frozen=True)
class Gather:
    """The geometry of a single-group problem: source and output planes, steps, phases and their live terms."""

    source: tuple[int, int]
    output: tuple[int, int]
    step: tuple[int, int]
    phases: tuple[int, int]
    terms: dict[tuple[int, int], tuple[Term, ...]]
    wrap: bool

    @property
    def every(self) -> list[Term]:
        """All live terms, phase by phase."""
        return [term for terms in self.terms.values() for term in terms]

    def low(self, axis: int) -> int:
        """Rows (axis 0) or columns (1) of halo before the plane."""
        return max([0] + [-(t.row, t.col)[axis] for t in self.every])

    def high(self, axis: int) -> int:
        """Rows (axis 0) or columns (1) of halo after the plane."""
        inner = -(-self.output[axis] // self.phases[axis])
        reach = max([0] + [(t.row, t.col)[axis] for t in self.every]) + (inner - 1) * self.step[axis]
        return max(0, reach - self.source[axis] + 1)


def _nearest(value: int, period: int) -> int:
    """The representative of value modulo period that lies nearest to 0."""
    value %= period
    return value - period if value > period // 2 else value


def _alive(offset: int, count: int, step: int, size: int) -> bool:
    return any(0 <= i * step + offset < size for i in range(count))


def _fold(pairs: Sequence[tuple[Offset, tuple[int, ...]]]) -> tuple[Term, ...]:
    places: dict[Offset, list[int]] = {}
    for offset, taps in pairs:
        places.setdefault(offset, []).extend(taps)
    return tuple(Term(row, col, tuple(taps)) for (row, col), taps in places.items())


def gather(spec: ConvSpec) -> Gather:
    """Folded, pruned terms of a single-group spec (conv_dw: those of conv)."""
    plane, out, stride = (spec.height, spec.width), (spec.out_height, spec.out_width), spec.stride
    pairs = list(spec.taps.distinct(0).items())
    wrap = spec.padding_mode == "circular"
    if spec.op != "conv_dx":
        if wrap:
            pairs = [((_nearest(h, plane[0]), _nearest(w, plane[1])), taps) for (h, w), taps in pairs]
        live = [t for t in _fold(pairs) if wrap or (_alive(t.row, out[0], stride[0], plane[0]) and _alive(t.col, out[1], stride[1], plane[1]))]
        return Gather(plane, out, stride, (1, 1), {(0, 0): tuple(live)}, wrap)
    if wrap and (plane[0] % stride[0] or plane[1] % stride[1]):
        # the wrapped plane does not tile by the stride: every wrap becomes a tap of its own, and the rest is zeros
        pairs, wrap = _unwrapped(spec), False
    terms = {}
    for a in range(min(stride[0], plane[0])):
        for b in range(min(stride[1], plane[1])):
            rows, cols = -(-(plane[0] - a) // stride[0]), -(-(plane[1] - b) // stride[1])
            here = [(((a - h) // stride[0], (b - w) // stride[1]), taps) for (h, w), taps in pairs if (a - h) % stride[0] == 0 and (b - w) % stride[1] == 0]
            if wrap:
                here = [((_nearest(i, out[0]), _nearest(j, out[1])), taps) for (i, j), taps in here]
            terms[a, b] = tuple(t for t in _fold(here) if wrap or (_alive(t.row, rows, 1, out[0]) and _alive(t.col, cols, 1, out[1])))
    return Gather(out, plane, (1, 1), stride, terms, wrap)


def _unwrapped(spec: ConvSpec) -> list[tuple[Offset, tuple[int, ...]]]:
    """Taps of a circular plane as taps of a zero-padded one: each offset less every multiple of the plane that can matter."""
    height, width = spec.height, spec.width
    top, right = (spec.out_height - 1) * spec.stride[0], (spec.out_width - 1) * spec.stride[1]
    pairs = []
    for (h, w), taps in spec.taps.distinct(0).items():
        for row in range((h - height) // height, (h + top) // height + 1):
            pairs += [((h - row * height, w - col * width), taps) for col in range((w - width) // width, (w + right) // width + 1)]
    return pairs


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def _pick(index: Any, values: Sequence[Any]) -> Any:
    """values[index] as a Select chain: bounded for region inference, and one value once the loop over index is unrolled."""
    chosen = values[-1]
    for i in range(len(values) - 2, -1, -1):
        chosen = tirx.Select(index == i, values[i], chosen)
    return chosen


def _integers(values: Sequence[int]) -> list[Any]:
    return [tirx.const(v, "int32") for v in values]


def _total(values: Sequence[Any]) -> Any:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total


def _stage(source: Any, g: Gather, spec: ConvSpec, columns: int, halo: int) -> tuple[Any, int, Callable[[Any, int], tuple[int, Any]]]:
    """The padded source (n, c, rows, column phase, columns); its top halo; and where column j*step + col stands."""
    top, step = g.low(0), g.step[1]
    left = _up(g.low(1), halo * step)
    rows = max(1, top + g.source[0] + g.high(0))
    count = columns + max([0] + [(t.col + left) // step for t in g.every])
    height, width = g.source

    def padded(n: Any, c: Any, i: Any, b: Any, j: Any) -> Any:
        row, col = i - top, j * step + b - left
        if g.wrap:
            return source[n, c, tirx.floormod(row, height), tirx.floormod(col, width)]
        inside = [] if rows == height and top == 0 else [row >= 0, row < height]
        inside += [col >= 0, col < width]
        return te.if_then_else(te.all(*inside), source[n, c, row, col], tirx.const(0, spec.dtype))

    stage = te.compute((source.shape[0], source.shape[1], rows, step, count), padded, name="stage")

    def place(j: Any, col: int) -> tuple[int, Any]:
        return (col + left) % step, j + (col + left) // step

    return stage, top, place


def _batch(form: Form) -> Any:
    return te.var("n", "int32") if form.batch is None else form.batch


def part_func(spec: ConvSpec, channels: int, form: Form) -> Any:
    """PrimFunc of a single-group spec over `channels` channels, in the given form.

    Parameters: conv (x, w, y); conv_dx (dy, w, dx); conv_dw (x, dy, part, dw), where part (n, c, bands, taps) is a
    workspace of the caller.
    """
    func = _dw_func(spec, channels, form) if spec.op == "conv_dw" else _gather_func(spec, channels, form)
    return func.with_attr("global_symbol", "main")


def _gather_func(spec: ConvSpec, channels: int, form: Form) -> Any:
    g, n = gather(spec), _batch(form)
    source = te.placeholder((n, channels, *g.source), name="x", dtype=spec.dtype)
    weight = te.placeholder((channels, spec.kernel_size), name="w", dtype=spec.dtype)
    inner = -(-g.output[1] // g.phases[1])
    columns = _up(inner, max(1, form.vector))
    stage, top, place = _stage(source, g, spec, columns, form.halo)
    zero = tirx.const(0, spec.dtype)

    def value(a: Any, c: Any, i: Any, j: Any, terms: Sequence[Term]) -> Any:
        products = []
        for t in terms:
            phase, column = place(j, t.col)
            products.append(_total([weight[c, s] for s in t.taps]) * stage[a, c, i * g.step[0] + t.row + top, phase, column])
        return _total(products) if products else zero

    def by_phase(a: Any, c: Any, h: Any, b: Any, j: Any) -> Any:
        result = None
        for (pa, pb), terms in reversed(g.terms.items()):
            one = value(a, c, h // g.phases[0], j, terms)
            here = [test for test, many in ((h % g.phases[0] == pa, g.phases[0] > 1), (b == pb, g.phases[1] > 1)) if many]
            result = one if result is None else te.if_then_else(te.all(*here), one, result)
        return result

    shape = (n, channels, *g.output)
    if not form.vector:
        y = te.compute(shape, lambda a, c, h, w: by_phase(a, c, h, w % g.phases[1], w // g.phases[1]), name="y")
        return te.create_prim_func([source, weight, y])
    v, rows_of = form.vector, (n, channels, g.output[0], g.phases[1], columns // form.vector, form.vector)
    if form.reduce and g.every and g.phases == (1, 1):
        terms = g.terms[0, 0]
        where = [place(0, t.col) for t in terms]
        rows, phases, shifts = _integers([t.row + top for t in terms]), _integers([p for p, _ in where]), _integers([s for _, s in where])
        folded = te.compute((channels, len(terms)), lambda c, t: _pick(t, [_total([weight[c, s] for s in term.taps]) for term in terms]), name="folded")
        tap = te.reduce_axis((0, len(terms)), "tap")

        def summed(a: Any, c: Any, h: Any, b: Any, jo: Any, ji: Any) -> Any:
            return te.sum(folded[c, tap] * stage[a, c, h * g.step[0] + _pick(tap, rows), _pick(tap, phases), jo * v + ji + _pick(tap, shifts)], axis=tap)

        acc = te.compute(rows_of, summed, name="acc")
    else:
        acc = te.compute(rows_of, lambda a, c, h, b, jo, ji: by_phase(a, c, h, b, jo * v + ji), name="acc")
    y = te.compute(shape, lambda a, c, h, w: acc[a, c, h, w % g.phases[1], w // g.phases[1] // v, w // g.phases[1] % v], name="y")
    return te.create_prim_func([source, weight, y])


def _dw_func(spec: ConvSpec, channels: int, form: Form) -> Any:
    g, n, v = gather(spec), _batch(form), max(1, form.vector)
    height, width = g.output
    terms = g.terms[0, 0] or (Term(0, 0, ()),)  # where no tap is alive one is summed and used by none
    source = te.placeholder((n, channels, *g.source), name="x", dtype=spec.dtype)
    dy = te.placeholder((n, channels, height, width), name="dy", dtype=spec.dtype)
    columns, rows = _up(width, v), -(-height // form.bands)
    bands = -(-height // rows)
    stage, top, place = _stage(source, g if g.every else Gather(g.source, g.output, g.step, g.phases, {(0, 0): terms}, g.wrap), spec, columns, form.halo)
    where = [place(0, t.col) for t in terms]
    trows, phases, shifts = _integers([t.row + top for t in terms]), _integers([p for p, _ in where]), _integers([s for _, s in where])
    zero = tirx.const(0, spec.dtype)
    ragged = rows * bands != height

    def padded(a: Any, c: Any, p: Any, q: Any) -> Any:
        return te.if_then_else(te.all(p < height, q < width), dy[a, c, p, q], zero) if ragged or columns != width else dy[a, c, p, q]

    dys = te.compute((n, channels, rows * bands, columns), padded, name="dys")
    stage_rows = int(stage.shape[2])
    rp, rq = te.reduce_axis((0, rows), "rp"), te.reduce_axis((0, columns // v), "rq")

    def product(a: Any, c: Any, band: Any, t: Any, lane: Any) -> Any:
        row = (band * rows + rp) * g.step[0] + _pick(t, trows)
        if ragged:
            row = tirx.min(row, stage_rows - 1)  # rows past the plane meet a dy of zero
        return te.sum(dys[a, c, band * rows + rp, rq * v + lane] * stage[a, c, row, _pick(t, phases), rq * v + lane + _pick(t, shifts)], axis=[rp, rq])

    count = len(terms)
    lanes = te.compute((n, channels, bands, count, v), product, name="lanes")
    rl = te.reduce_axis((0, v), "rl")
    part = te.compute((n, channels, bands, count), lambda a, c, band, t: te.sum(lanes[a, c, band, t, rl], axis=rl), name="part")
    rn, rb = te.reduce_axis((0, n), "rn"), te.reduce_axis((0, bands), "rb")
    total = te.compute((channels, count), lambda c, t: te.sum(part[rn, c, rb, t], axis=[rn, rb]), name="total")
    home = {s: i for i, t in enumerate(terms) for s in t.taps}
    taps = [home.get(s) for s in range(spec.kernel_size)]
    dead = {s for s, i in enumerate(taps) if i is None}

    def spread(c: Any, s: Any) -> Any:
        value = total[c, _pick(s, _integers([i or 0 for i in taps]))]
        return tirx.Select(_pick(s, _integers([int(k in dead) for k in range(len(taps))])) == 1, zero, value) if dead else value

    out = te.compute((channels, spec.kernel_size), spread, name="y")
    return te.create_prim_func([source, dy, part, out])
