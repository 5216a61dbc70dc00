"""CPU templates for channels_last: lanes are channels, so that every load of a tap is an aligned vector.

A task is a band of rows of one block of channels of an image. It is staged with its halo; sums of a few pixels of a row are kept in
registers while the taps pass over them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import DwStageConfig, StageConfig
from tvm_orient.codegen.tir.vectorize_pieces import cut
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import stencil

from ..base import Config
from ..tiling import divisors
from .base_unrolled import MAX_UNROLLED, BaseUnrolled, vectors

MAX_BAND = 1 << 18  # bytes of a staged band that stay near
MAX_DEFAULT_PIXELS = 8  # pixels of an untuned patch
MAX_DW_ROWS = 64  # rows of dy of a band
_ROWS = (4, 7, 8, 14, 16, 28, 32, 64)  # rows of a band, of each phase
_PIXELS = (1, 2, 4, 6, 7, 8, 12, 14)  # pixels of a patch
_TAPS = (4, 8, 16, 24, 32)  # taps whose sums stay in registers
_DEFAULT_TAPS = 16  # the same without tuning


@dataclass(frozen=True)
class PixelsConfig(Config):
    """The decisions of `cpu_pixels`."""

    vector: int  #: channels of a vector
    rows: int  #: rows of outputs of a band, which is staged at once
    pixels: int  #: pixels of a row whose sums stay in registers


@dataclass(frozen=True)
class PixelsDwConfig(Config):
    """The decisions of `cpu_pixels_dw`."""

    vector: int  #: channels of a vector
    rows: int  #: rows of dy of a band, which is summed apart
    taps: int  #: taps whose sums stay in registers while a band passes


def _vector(spec: ConvSpec, device: Device) -> int:
    """Returns the widest vector that the channels of a group fill."""
    lanes = vectors(spec, device)
    return next((v for v in lanes if spec.channels % v == 0), next((v for v in reversed(lanes) if v >= spec.channels), lanes[0]))


def _lanes(func: Any, block: str, vector: int, channels: int) -> Any:
    """Returns the function with a staged block by whole vectors, where the last one lacks channels."""
    return cut(func, block, 4, (0, channels % vector, vector), vector) if channels % vector else func


def _staged_row(spec: ConvSpec, vector: int) -> int:
    """Returns the bytes of a staged row of one vector of channels, with its halo."""
    g = stencil(spec)
    return (g.low(1) + g.source[1] + g.high(1)) * vector * DTYPES[spec.sums]


class Pixels(BaseUnrolled[PixelsConfig]):
    """Computes conv and conv_dx of channels_last images on a CPU, any stride.

    The lanes of a vector are channels, which all have the same offsets, so every load of a tap is an aligned vector. A task is a band of rows of
    one vector of channels, staged with its halo. Sums of several pixels of a row are kept in registers. Channels that do not fill the last vector
    are cut at compile time.
    """

    name = "cpu_pixels"
    version = 1
    ops = ("conv", "conv_dx")
    layouts = ("nhwc",)
    config_type = PixelsConfig

    def _bands(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the rows that a band may have, ascending."""
        g = stencil(spec)
        rows = -(-g.output[0] // g.phases[0])
        return tuple(sorted({min(rows, r) * g.phases[0] for r in (*_ROWS, rows)}))

    def _widths(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the pixels that a patch may have, ascending."""
        phases = stencil(spec).phases[1]
        return tuple(p for p in _PIXELS if p % phases == 0) or (phases,)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"vector": vectors(spec, device), "rows": self._bands(spec), "pixels": self._widths(spec)}

    def default(self, spec: ConvSpec, device: Device) -> PixelsConfig:
        g, vector, bands, widths = stencil(spec), _vector(spec, device), self._bands(spec), self._widths(spec)
        row = _staged_row(spec, vector)
        pixels = max((p for p in widths if p <= MAX_DEFAULT_PIXELS and g.output[1] % p == 0), default=widths[0])
        rows = max((r for r in bands if ((r // g.phases[0] - 1) * g.step[0] + g.span()) * row <= MAX_BAND), default=bands[0])
        config = PixelsConfig(vector, rows, pixels)
        return config if self._invalid(spec, device, config) is None else replace(config, pixels=widths[0])

    def _invalid(self, spec: ConvSpec, device: Device, config: PixelsConfig) -> str | None:
        work = len(spec.taps.distinct(0)) * config.pixels
        if work > MAX_UNROLLED and config.pixels > stencil(spec).phases[1]:
            return f"{config.pixels} pixels unroll to {work} multiply-adds, at most {MAX_UNROLLED}"
        return None

    def stage_config(self, spec: ConvSpec, config: PixelsConfig) -> StageConfig:
        return StageConfig(vector=config.vector, vector_math=True)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: PixelsConfig) -> None:
        g, vector = stencil(spec), config.vector
        y, acc, stage = (sch.get_sblock(name) for name in (names.Y, names.ACC, names.STAGE))
        n, h, w, c = sch.get_loops(y)
        whole = int(sch.get(c).extent) % vector == 0
        band, row = sch.split(h, [None, config.rows])
        row, phase = sch.split(row, [None, g.phases[0]])
        across, pixel = sch.split(w, [None, config.pixels])
        block, lane = sch.split(c, [None, vector if whole else int(sch.get(c).extent)])
        sch.reorder(n, band, block, row, across, phase, pixel, lane)
        task = sch.fuse(n, band, block)
        sch.compute_at(acc, across, preserve_unit_loops=True)
        sch.compute_at(stage, task, preserve_unit_loops=True)
        if g.every:
            folded = sch.get_sblock(names.FOLDED)
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

    def finish(self, func: Any, spec: ConvSpec, config: PixelsConfig) -> Any:
        vector, channels = config.vector, int(func.params[1].shape[0])
        func = _lanes(func, names.STAGE, vector, channels)
        return cut(func, names.Y, 3, (0, channels), vector) if channels % vector else func


class PixelsDw(BaseUnrolled[PixelsDwConfig]):
    """Computes conv_dw of channels_last images on a CPU, any stride.

    A task is a band of rows of one vector of channels, as in `cpu_pixels`. The sums of a block of taps stay in registers while the band passes; a
    second pass adds bands and images in order.
    """

    name = "cpu_pixels_dw"
    version = 1
    ops = ("conv_dw",)
    layouts = ("nhwc",)
    config_type = PixelsDwConfig

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"vector": vectors(spec, device), "rows": divisors(spec.out_height, MAX_DW_ROWS), "taps": _TAPS}

    def default(self, spec: ConvSpec, device: Device) -> PixelsDwConfig:
        g, vector = stencil(spec), _vector(spec, device)
        row, bands = _staged_row(spec, vector), divisors(spec.out_height, MAX_DW_ROWS)
        rows = max((r for r in bands if ((r - 1) * g.step[0] + g.span()) * row <= MAX_BAND), default=1)
        return PixelsDwConfig(vector, rows, _DEFAULT_TAPS)

    def stage_config(self, spec: ConvSpec, config: PixelsDwConfig) -> DwStageConfig:
        return DwStageConfig(vector=config.vector, rows=config.rows)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: PixelsDwConfig) -> None:
        vector = config.vector
        part, acc, stage, dys, y = (sch.get_sblock(name) for name in (names.PART, names.ACC, names.STAGE, names.DYS, names.Y))
        n, band, tap, c = sch.get_loops(part)
        whole = int(sch.get(c).extent) % vector == 0
        block, lane = sch.split(c, [None, vector if whole else int(sch.get(c).extent)])
        sch.reorder(n, band, block, tap, lane)
        task = sch.fuse(n, band, block)
        sch.compute_at(acc, task, preserve_unit_loops=True)
        sch.compute_at(stage, task, preserve_unit_loops=True)
        taps, blocks, lanes, row, column = sch.get_loops(acc)[3:]
        outer, inner = sch.split(taps, [None, config.taps])
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

    def finish(self, func: Any, spec: ConvSpec, config: PixelsDwConfig) -> Any:
        from tvm_orient.codegen.tir.confine_nonfinite import confined  # which needs the compiler

        vector, channels = config.vector, int(func.params[0].shape[3])
        for block in (names.STAGE, names.DYS):
            func = _lanes(func, block, vector, channels)
        return confined(func, spec)


TEMPLATE = Pixels()
DW_TEMPLATE = PixelsDw()
