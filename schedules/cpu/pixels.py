"""CPU templates for channels_last: lanes are channels, so that every load of a tap is an aligned vector.

A task is a band of rows of one block of channels of an image. It is staged with its halo; sums of a few pixels of a row are kept in
registers while the taps pass over them.
"""

from __future__ import annotations

from typing import Any

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.codegen.tir.vectorize_pieces import cut
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import stencil

from ..base import Decisions
from ..tiling import divisors
from .base_unrolled import MOST_UNROLLED, Unrolled, vectors

_CACHE = 1 << 18  # bytes of a staged band that stay near


def _vector(spec: ConvSpec, device: Device) -> int:
    """The widest vector that the channels of a group fill."""
    lanes = vectors(spec, device)
    return next((v for v in lanes if spec.channels % v == 0), next((v for v in reversed(lanes) if v >= spec.channels), lanes[0]))


def _lanes(func: Any, block: str, vector: int, channels: int) -> Any:
    """A staged block by whole vectors, where the last one lacks channels."""
    return cut(func, block, 4, (0, channels % vector, vector), vector) if channels % vector else func


class Pixels(Unrolled):
    """Computes conv and conv_dx of channels_last images on a CPU, any stride.

    The lanes of a vector are channels, which all have the same offsets, so every load of a tap is an aligned vector. A task is a band of rows of
    one vector of channels, staged with its halo. Sums of several pixels of a row are kept in registers. Channels that do not fill the last vector
    are cut at compile time.
    """

    name, version, ops, layouts = "cpu_pixels", 1, ("conv", "conv_dx"), ("nhwc",)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        g = stencil(spec)
        rows = -(-g.output[0] // g.phases[0])
        bands = tuple(sorted({min(rows, r) * g.phases[0] for r in (4, 7, 8, 14, 16, 28, 32, 64, rows)}))
        pixels = tuple(p for p in (1, 2, 4, 6, 7, 8, 12, 14) if p % g.phases[1] == 0) or (g.phases[1],)
        return {"vector": vectors(spec, device), "rows": bands, "pixels": pixels}

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        knobs, g, vector = self.knobs(spec, device), stencil(spec), _vector(spec, device)
        fits = [p for p in knobs["pixels"] if p <= 8 and g.output[1] % p == 0] or [knobs["pixels"][0]]
        row = (g.low(1) + g.source[1] + g.high(1)) * vector * DTYPES[spec.sums]
        bands = [r for r in knobs["rows"] if ((r // g.phases[0] - 1) * g.step[0] + g.span()) * row <= _CACHE] or [knobs["rows"][0]]
        decisions = {"vector": vector, "rows": bands[-1], "pixels": fits[-1]}
        return decisions if self._invalid(spec, device, decisions) is None else {**decisions, "pixels": knobs["pixels"][0]}

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        work = len(spec.taps.distinct(0)) * decisions["pixels"]
        if work > MOST_UNROLLED and decisions["pixels"] > stencil(spec).phases[1]:
            return f"{decisions['pixels']} pixels unroll to {work} multiply-adds, at most {MOST_UNROLLED}"
        return None

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(vector=decisions["vector"], vector_math=True)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        g, vector = stencil(spec), decisions["vector"]
        y, acc, stage = (sch.get_sblock(name) for name in ("y", "acc", "stage"))
        n, h, w, c = sch.get_loops(y)
        whole = int(sch.get(c).extent) % vector == 0
        band, row = sch.split(h, [None, decisions["rows"]])
        row, phase = sch.split(row, [None, g.phases[0]])
        across, pixel = sch.split(w, [None, decisions["pixels"]])
        block, lane = sch.split(c, [None, vector if whole else int(sch.get(c).extent)])
        sch.reorder(n, band, block, row, across, phase, pixel, lane)
        task = sch.fuse(n, band, block)
        sch.compute_at(acc, across, preserve_unit_loops=True)
        sch.compute_at(stage, task, preserve_unit_loops=True)
        if g.every:
            folded = sch.get_sblock("folded")
            sch.compute_at(folded, task, preserve_unit_loops=True)
            sch.unroll(sch.get_loops(folded)[1])
        rows, pixels, blocks, lanes, *tap = sch.get_loops(acc)[4:]
        sch.reorder(blocks, *tap, rows, pixels, lanes)
        for loop in (rows, pixels, *tap):
            sch.unroll(loop)
        sch.vectorize(lanes)
        sch.unroll(phase)
        sch.unroll(pixel)
        if tap:
            init = sch.decompose_reduction(acc, tap[0])
            *unrolled, last = sch.get_loops(init)[-3:]
            for loop in unrolled:
                sch.unroll(loop)
            sch.vectorize(last)
        if whole:
            sch.vectorize(lane)
            sch.vectorize(sch.get_loops(stage)[-1])

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        vector, channels = decisions["vector"], int(func.params[1].shape[0])
        func = _lanes(func, "stage", vector, channels)
        return cut(func, "y", 3, (0, channels), vector) if channels % vector else func


class PixelsDw(Unrolled):
    """Computes conv_dw of channels_last images on a CPU, any stride.

    A task is a band of rows of one vector of channels, as in `cpu_pixels`. The sums of a block of taps stay in registers while the band passes; a
    second pass adds bands and images in order.
    """

    name, version, ops, layouts = "cpu_pixels_dw", 1, ("conv_dw",), ("nhwc",)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"vector": vectors(spec, device), "rows": divisors(spec.out_height, 64), "taps": (4, 8, 16, 24, 32)}

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        g, vector = stencil(spec), _vector(spec, device)
        row = (g.low(1) + g.source[1] + g.high(1)) * vector * DTYPES[spec.sums]
        bands = [r for r in self.knobs(spec, device)["rows"] if ((r - 1) * g.step[0] + g.span()) * row <= _CACHE] or [1]
        return {"vector": vector, "rows": bands[-1], "taps": 16}

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(vector=decisions["vector"], rows=decisions["rows"])

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        vector = decisions["vector"]
        part, acc, stage, dys, y = (sch.get_sblock(name) for name in ("part", "acc", "stage", "dys", "y"))
        n, band, tap, c = sch.get_loops(part)
        whole = int(sch.get(c).extent) % vector == 0
        block, lane = sch.split(c, [None, vector if whole else int(sch.get(c).extent)])
        sch.reorder(n, band, block, tap, lane)
        task = sch.fuse(n, band, block)
        sch.compute_at(acc, task, preserve_unit_loops=True)
        sch.compute_at(stage, task, preserve_unit_loops=True)
        taps, blocks, lanes, row, column = sch.get_loops(acc)[3:]
        outer, inner = sch.split(taps, [None, decisions["taps"]])
        sch.reorder(blocks, outer, row, column, inner, lanes)
        sch.compute_at(dys, column, preserve_unit_loops=True)
        sch.unroll(outer)
        sch.unroll(inner)
        sch.vectorize(lanes)
        init = sch.decompose_reduction(acc, row)
        sch.unroll(sch.get_loops(init)[-2])
        sch.vectorize(sch.get_loops(init)[-1])
        sch.unroll(sch.get_loops(y)[1])  # one tap a statement: its place among the sums is then a constant
        if whole:
            sch.vectorize(lane)
            for staged in (stage, dys):
                sch.vectorize(sch.get_loops(staged)[-1])

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        from tvm_orient.codegen.tir.confine_nonfinite import confined  # which needs the compiler

        vector, channels = decisions["vector"], int(func.params[0].shape[3])
        for block in ("stage", "dys"):
            func = _lanes(func, block, vector, channels)
        return confined(func, spec)


TEMPLATE, DW_TEMPLATE = Pixels(), PixelsDw()
