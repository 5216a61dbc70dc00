"""Builds the TE of conv and conv_dx for NCHW: what is computed, never how. Schedules find the stages by their names in `names`.

Blocks: STAGE (source padded with its halo, columns parted by stride), FOLDED (weights, tap by tap) and ACC (sums, rows rounded up to whole
vectors) where the configuration asks for them, OWN (results by place on a sheared plane) and Y.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...problem.spec import ConvSpec
from ...problem.stencil import Stage, Stencil, StencilTap, round_up, stencil
from ...toolchain.tvm import load_tvm
from .. import names
from .config import StageConfig
from .expr import constants, pick, total_of
from .stages import batch_of, epilogue_of, padded_stage

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


def conv_func(spec: ConvSpec, channels: int, config: StageConfig) -> Any:
    """Returns the PrimFunc as `prim_func.part_func` of conv or conv_dx.

    Raises:
        InvalidArgument: columns do not part into the groups that the configuration wants to load at once.
    """
    g, n = stencil(spec), batch_of(config)
    source = te.placeholder((n, channels, *g.source), name=names.X, dtype=spec.dtype)
    weight = te.placeholder((channels, spec.kernel_size), name=names.W, dtype=spec.dtype)
    given, ended = epilogue_of(spec, channels, config)
    columns = round_up(-(-g.output[1] // g.phases[1]), max(1, config.vector))
    padded = dataclasses.replace(g, output=(round_up(g.output[0], config.rows or 1), g.output[1]))
    shape_of = padded.stage(columns, config.halo, config.pitch, config.tile, config.pruned)
    stage: Any = None if config.bare else padded_stage(source, g, shape_of, spec.dtype if config.smem_native_dtype else spec.sums, config.quad)
    sums, shape = _Sums(spec, g, config, shape_of, source, weight, stage), (n, channels, *g.output)
    if config.shear is not None:
        y = _sheared(sums, shape, ended)
    elif config.vector:
        acc = _vectors(sums, n, channels, columns)
        y = te.compute(
            shape, lambda a, c, h, w: ended(acc[a, c, h, w % g.phases[1], w // g.phases[1] // config.vector, w // g.phases[1] % config.vector], c), name=names.Y
        )
    else:
        y = te.compute(shape, lambda a, c, h, w: ended(sums.by_phase(a, c, h, w % g.phases[1], w // g.phases[1]), c), name=names.Y)
    return te.create_prim_func([source, weight, *given, y])


@dataclass(frozen=True)
class _Sums:
    """The sum over taps of an output as a TE expression, from the stage or from the source itself."""

    spec: ConvSpec
    g: Stencil
    config: StageConfig
    shape_of: Stage  #: shape of the staged source
    source: Any  #: tensor of the images
    weight: Any  #: tensor (channels, taps)
    stage: Any  #: tensor of the staged source; None where config.bare

    @property
    def zero(self) -> Any:
        """Returns 0 in the dtype of sums."""
        return tirx.const(0, self.spec.sums)

    def weight_of(self, c: Any, term: StencilTap) -> Any:
        """Returns the weight of a term: those of its taps, added."""
        return total_of([self.weight[c, s].astype(self.spec.sums) for s in term.taps])

    def by_phase(self, a: Any, c: Any, h: Any, b: Any, j: Any) -> Any:
        """Returns the sum at row h and the j-th column of column phase b, whose terms depend on the phases of both."""
        phases, result = self.g.phases, None
        for (pa, pb), terms in reversed(self.g.terms.items()):
            one = self.value(a, c, h // phases[0], j, terms)
            here = [test for test, many in ((h % phases[0] == pa, phases[0] > 1), (b == pb, phases[1] > 1)) if many]
            result = one if result is None else te.if_then_else(te.all(*here), one, result)
        return result

    def value(self, a: Any, c: Any, i: Any, j: Any, terms: Sequence[StencilTap]) -> Any:
        """Returns the sum over terms at row i and column j of their phase."""
        if self.config.bare:
            products = [self.tested(a, c, i, j, t) for t in sorted(terms, key=lambda t: (t.row, t.col))]
            return total_of(products) if products else te.if_then_else(a < 0, self.source[a, c, 0, 0].astype(self.spec.sums), self.zero)
        if not self.g.every:  # no tap ever lands inside: zeros, which must still read the stage for the schedules to find it
            return te.if_then_else(a < 0, self.stage[a, c, 0, 0, 0, 0], self.zero)
        product = self.staged if self.config.pruned is None else self.pruned
        products = [product(a, c, i, j, t) for t in (_swept(terms) if self.config.sweep else terms)]
        return total_of(products) if products else self.zero

    def tested(self, a: Any, c: Any, i: Any, j: Any, t: StencilTap) -> Any:
        """Returns a product with a value of the source, 0 where that lies outside the plane."""
        g, row, col = self.g, i * self.g.step[0] + t.row, j * self.g.step[1] + t.col
        if g.wrap:
            return self.weight_of(c, t) * self.source[a, c, tirx.floormod(row, g.source[0]), tirx.floormod(col, g.source[1])].astype(self.spec.sums)
        inside = te.all(row >= 0, row < g.source[0], col >= 0, col < g.source[1])
        return te.if_then_else(inside, self.weight_of(c, t) * self.source[a, c, row, col].astype(self.spec.sums), self.zero)

    def staged(self, a: Any, c: Any, i: Any, j: Any, t: StencilTap) -> Any:
        """Returns a product with a value of the padded stage."""
        quad, (phase, shift), (tile, column) = self.config.quad, self.shape_of.place(t.col), self.shape_of.split(j)
        column = column + shift
        read = self.stage[a, c, i * self.g.step[0] + t.row + self.shape_of.top, tile + phase, column // quad, column % quad]
        return self.weight_of(c, t) * read.astype(self.spec.sums)

    def pruned(self, a: Any, c: Any, i: Any, j: Any, t: StencilTap) -> Any:
        """Returns a product whose place along the axis without a halo is tested."""
        g, quad, axis = self.g, self.config.quad, self.config.pruned or 0
        at, size, (phase, shift) = (i, j)[axis] * g.step[axis] + (t.row, t.col)[axis], g.source[axis], self.shape_of.place(t.col)
        place = tirx.floormod(at, size) if g.wrap else at
        row, phase, column = (place, phase, j + shift) if axis == 0 else (i * g.step[0] + t.row + self.shape_of.top, 0, place)
        product = self.weight_of(c, t) * self.stage[a, c, row, phase, column // quad, column % quad]
        return product if g.wrap else te.if_then_else(te.all(at >= 0, at < size), product, self.zero)


def _swept(terms: Sequence[StencilTap]) -> list[StencilTap]:
    """Returns terms from the topmost row down, and right to left: outputs go from left to right, and the compiler then holds fewer values at once."""
    return sorted(terms, key=lambda t: (t.row, -t.col))


def _sheared(sums: _Sums, shape: tuple[Any, ...], ended: Callable[[Any, Any], Any]) -> Any:
    """Returns Y as a copy of OWN, whose results are by place on the sheared plane."""
    g, shear = sums.g, sums.config.shear

    def leaning(a: Any, c: Any, i: Any, j: Any) -> Any:
        h, w = shear.place(g.output, i, j) if shear is not None else (i, j)
        return ended(sums.by_phase(a, c, h, w % g.phases[1], w // g.phases[1]), c)

    own = te.compute(shape, leaning, name=names.OWN)
    return te.compute(shape, lambda a, c, h, w: own[a, c, h, w], name=names.Y)


def _vectors(sums: _Sums, n: Any, channels: int, columns: int) -> Any:
    """Returns ACC (n, c, rows, column phase, vectors, lanes): sums of rows of `columns` outputs, over taps by a loop where config.reduce asks for it."""
    g, config, v, quad = sums.g, sums.config, sums.config.vector, sums.config.quad
    shape = (n, channels, g.output[0], g.phases[1], columns // v, v)
    if not (config.reduce and g.every and g.phases == (1, 1)):
        return te.compute(shape, lambda a, c, h, b, jo, ji: sums.by_phase(a, c, h, b, jo * v + ji), name=names.ACC)
    terms = sorted(g.terms[0, 0], key=lambda t: (t.row, t.col % v, t.col))  # neighbours share vectors
    where = [sums.shape_of.place(t.col) for t in terms]
    rows, phases, shifts = constants([t.row + sums.shape_of.top for t in terms]), constants([p for p, _ in where]), constants([s for _, s in where])
    folded = te.compute((channels, len(terms)), lambda c, t: pick(t, [sums.weight_of(c, term) for term in terms]), name=names.FOLDED)
    tap = te.reduce_axis((0, len(terms)), "tap")

    def summed(a: Any, c: Any, h: Any, b: Any, jo: Any, ji: Any) -> Any:
        column = jo * v + ji + pick(tap, shifts)
        return te.sum(folded[c, tap] * sums.stage[a, c, h * g.step[0] + pick(tap, rows), pick(tap, phases), column // quad, column % quad], axis=tap)

    return te.compute(shape, summed, name=names.ACC)
