"""Builds the TE of conv and conv_dx for NHWC: what `conv_nchw` is for NCHW. A channel keeps its offsets, so that lanes along C need no alignment.

Blocks: STAGE (source padded with its halo, channels in blocks of whole vectors), FOLDED (weights, tap by tap) and ACC (sums) where the
configuration has vectors, and Y, as `names` calls them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...problem.spec import ConvSpec
from ...problem.stencil import StencilTap, stencil
from ...toolchain.tvm import load_tvm
from .. import names
from .config import StageConfig
from .expr import constants, pick, total_of
from .stages import batch_of, blocked_stage, epilogue_of

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


def conv_func(spec: ConvSpec, channels: int, config: StageConfig) -> Any:
    """Returns the PrimFunc as `prim_func.part_func` of conv or conv_dx. config.vector: channels of a vector."""
    g, n, v = stencil(spec), batch_of(config), max(1, config.vector)
    source = te.placeholder((n, *g.source, channels), name=names.X, dtype=spec.dtype)
    weight = te.placeholder((channels, spec.kernel_size), name=names.W, dtype=spec.dtype)
    given, ended = epilogue_of(spec, channels, config)
    stage, top, left = blocked_stage(source, g, channels, v, spec)
    zero, blocks, terms = tirx.const(0, spec.sums), -(-channels // v), g.every
    order = {id(t): i for i, t in enumerate(terms)}

    def weighed(c: Any, term: StencilTap) -> Any:
        return total_of([weight[c, s].astype(spec.sums) for s in term.taps])

    def fold(t: Any, b: Any, lane: Any) -> Any:
        c = b * v + lane
        one = pick(t, [weighed(tirx.Min(c, channels - 1), term) for term in terms])
        return one if channels % v == 0 else tirx.Select(c < channels, one, zero)

    weights: Any = te.compute((len(terms), blocks, v), fold, name=names.FOLDED) if config.vector and terms else None

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
    if not config.vector:
        y = te.compute(shape, lambda a, h, w, c: ended(by_phase(a, h, w, c, 0), c), name=names.Y)
        return te.create_prim_func([source, weight, *given, y])
    if g.every and g.phases == (1, 1):
        rows, columns = constants([t.row + top for t in terms]), constants([t.col + left for t in terms])
        tap = te.reduce_axis((0, len(terms)), "tap")

        def summed(a: Any, h: Any, w: Any, b: Any, lane: Any) -> Any:
            return te.sum(weights[tap, b, lane] * stage[a, h * g.step[0] + pick(tap, rows), w * g.step[1] + pick(tap, columns), b, lane], axis=tap)

        acc = te.compute((n, *g.output, blocks, v), summed, name=names.ACC)
    else:
        acc = te.compute((n, *g.output, blocks, v), by_phase, name=names.ACC)
    y = te.compute(shape, lambda a, h, w, c: ended(acc[a, h, w, c // v, c % v], c), name=names.Y)
    return te.create_prim_func([source, weight, *given, y])
