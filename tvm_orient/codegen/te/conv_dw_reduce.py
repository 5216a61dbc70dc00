"""Builds the TE of the end of conv_dw: sums of lanes, of bands and of images, and the weights that they belong to. Every order is fixed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...problem.spec import ConvSpec
from ...problem.stencil import StencilTap
from ...toolchain.tvm import load_tvm
from .. import names
from .config import DwStageConfig
from .expr import steps

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


def by_tap(spec: ConvSpec, terms: Sequence[StencilTap], of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Returns of(term) as a function of the tap: colliding taps get the same, taps that never land zeros. One value once the loop over taps is unrolled."""
    home, taps = {s: i for i, t in enumerate(terms) for s in t.taps}, range(spec.kernel_size)
    places, alive = [home.get(s, 0) for s in taps], [int(s in home) for s in taps]
    for s in taps[1:]:  # a tap that never lands may stand anywhere: beside its neighbour it makes no step
        places[s] = home.get(s, places[s - 1])

    def value(s: Any) -> Any:
        one = of(s if places == list(taps) else steps(s, places))
        return one if len(home) == len(taps) else tirx.Select(steps(s, alive) == 1, one, tirx.const(0, spec.sums))

    return value


def joined(lanes: Any, groups: int, name: str) -> Any:
    """Returns lanes (n, c, band, lane, tap) summed in `groups` runs of neighbours."""
    *outer, many, count = lanes.shape
    each = int(many) // groups
    rl = te.reduce_axis((0, each), "rl")
    return te.compute((*outer, groups, count), lambda a, c, band, g, t: te.sum(lanes[a, c, band, g * each + rl, t], axis=rl), name=name)


def part_of(lanes: Any, joins: int) -> Any:
    """Returns PART (n, c, band, tap): lanes (n, c, band, lane, tap) summed, first in `joins` runs of neighbours, where that is more than 1, as GROUPS."""
    sums = joined(lanes, joins, names.GROUPS) if joins > 1 else lanes
    n, channels, bands, many, count = sums.shape
    rl = te.reduce_axis((0, many), "rl")
    return te.compute((n, channels, bands, count), lambda a, c, band, t: te.sum(sums[a, c, band, rl, t], axis=rl), name=names.PART)


def sliced_sums(spec: ConvSpec, channels: int, terms: Sequence[StencilTap], config: DwStageConfig, part: Any) -> Any:
    """Returns `weight_sums` of part (n, c, bands, terms), by way of SLICES.

    Images s, s + slices, ... are summed apart, `images_in_flight` of them in one step.
    """
    n, many, zero = part.shape[0], config.slices, tirx.const(0, spec.sums)
    together = config.images_in_flight
    ro = te.reduce_axis((0, (n + many * together - 1) // (many * together)), "ro")
    ri = te.reduce_axis((0, together), "ri")
    rb, rs = te.reduce_axis((0, part.shape[2]), "rb"), te.reduce_axis((0, many), "rs")

    def total(slice: Any, c: Any, t: Any) -> Any:
        image = (ro * together + ri) * many + slice
        return te.sum(te.if_then_else(image < n, part[image, c, rb, t], zero), axis=[ro, ri, rb])

    slices = te.compute((many, channels, len(terms)), total, name=names.SLICES)
    return te.compute((channels, spec.kernel_size), lambda c, s: te.sum(by_tap(spec, terms, lambda t: slices[rs, c, t])(s), axis=rs), name=names.Y)


def weight_sums(spec: ConvSpec, channels: int, terms: Sequence[StencilTap], n: Any, bands: int, part: Any) -> Any:
    """Returns dw (channels, K) as the sum of part(image, band, term, channel); colliding taps get the same, taps that never land zeros."""
    rn, rb = te.reduce_axis((0, n), "rn"), te.reduce_axis((0, bands), "rb")

    def total(c: Any, s: Any) -> Any:
        return te.sum(by_tap(spec, terms, lambda t: part(rn, rb, t, c))(s), axis=[rn, rb])

    return te.compute((channels, spec.kernel_size), total, name=names.Y)
