"""CUDA templates for channels_last: a warp is 32 channels of one pixel, which all have the same offsets.

Every load of a warp is then whole lines, and no two lanes share a value, so that shared memory would help nobody: a thread keeps what
its patch of pixels reads in registers, and the L1 cache serves what neighbouring patches share.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import DwStageConfig, StageConfig
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil

from ..base import Config, Template
from ..staging import cooperate
from ..tiling import divisors, most_dividing
from .reach import pixels_read, too_far

MAX_TERMS = 160  # live terms of one output: beyond, the unrolled patch spills
MAX_UNROLLED = 4096  # multiply-adds of one thread
MAX_STAGED = 4096  # values in the box around what a patch reads; nvcc drops those that no tap reads
MAX_TAPS = 64  # sums of one thread of conv_dw, all in registers
MAX_READ = 230  # values that an untuned patch reads: nvcc loads most of them first, and beyond this it spills
MAX_SUMMED = 190  # values and sums of an untuned patch of conv_dw
MAX_OUTPUTS = 32  # outputs of an untuned patch
MAX_DEFAULT_THREADS = 128  # threads of an untuned block
MIN_BAND = 14  # rows and columns of an untuned band of conv_dw
LANES = (8, 16, 32, 64)  # channels of a block
PATCHES = (1, 2, 4, 7, 8, 16)  # patches of a block
BANDS = (1, 2, 4, 8)  # bands of a block
_SIDES = (1, 2, 4, 7, 8, 14)  # rows or columns of a patch
_DW_HEIGHTS = (1, 2, 4, 7, 14)  # rows of a patch of conv_dw
_DW_WIDTHS = (1, 2, 4, 7, 8, 14)  # columns of a patch of conv_dw
_DOWN = (1, 2, 4)  # rows of patches of a block
_L2 = 2.3  # bytes that L2 moves for each that DRAM does
_SLOPE = 0.2  # part by which a load costs more for each doubling of a patch's longer side over the other, on a slope
_LANES = 32  # channels of a block of the second pass
_SLICES = 16  # threads of a channel in the second pass
_SUMS_IN_FLIGHT = 8  # sums that a thread of the second pass loads at once


@dataclass(frozen=True)
class PixelsConfig(Config):
    """The decisions of `pixels`."""

    patch_h: int  #: rows of outputs of a thread's patch
    patch_w: int  #: columns of outputs of a thread's patch
    lanes: int  #: channels of a block at most
    patches: int  #: patches of a block at most; a group of fewer channels has as many more
    down: int  #: rows of patches of a block at most


@dataclass(frozen=True)
class PixelsDwConfig(Config):
    """The decisions of `pixels_dw`."""

    rows: int  #: rows of dy that a thread sums
    columns: int  #: columns of dy that a thread sums
    patch_h: int  #: rows of the patches in which it does
    patch_w: int  #: columns of these patches
    lanes: int  #: channels of a block at most
    bands: int  #: bands of a block at most; a group of fewer channels has as many more


def _read(spec: ConvSpec, height: int, width: int) -> int:
    """Returns the number of distinct source pixels that a patch of outputs reads; where it spans the plane, those inside."""
    g = stencil(spec)
    rows, columns = (range(n) if patch >= out else None for n, patch, out in zip(g.source, (height, width), g.output, strict=True))
    return sum((rows is None or i in rows) and (columns is None or j in columns) for i, j in pixels_read(spec, height, width))


def _cost(spec: ConvSpec, height: int, width: int) -> float:
    """Returns the loads of an output that is wanted.

    Patches that overhang the plane cost; so do long ones on a slope, whose every load tests a row and a column.
    """
    g = stencil(spec)
    wanted = math.prod(size / (-(-size // patch) * patch) for size, patch in zip(g.output, (height, width), strict=True))
    sloped = all(len({(t.row, t.col)[axis] for t in g.every}) > 1 for axis in (0, 1))
    long = 1 + _SLOPE * abs(math.log2(height / width)) if sloped else 1.0
    return (_read(spec, height, width) / (height * width) + 1) * long / wanted


def _least_band(size: int, patch: int) -> int:
    """Returns the least divisor of a plane's side that whole patches fill and that is not short; the side where there is none."""
    return next((d for d in divisors(size, size) if d >= MIN_BAND and d % patch == 0), size)


def _lanes(spec: ConvSpec) -> int:
    """Returns the number of channels of an untuned block."""
    return next((n for n in (32, 16) if spec.channels >= n), LANES[0])


class Pixels(Template[PixelsConfig]):
    """Computes conv and conv_dx of channels_last images on a GPU, any stride.

    A warp is 32 channels of one pixel. Every load of a warp is whole lines, and no two lanes share a value of an image, so images are not staged:
    a thread loads what its patch of `patch_h` x `patch_w` pixels reads into registers, and the L1 cache serves what neighbouring patches share. A
    block is several patches, in several rows: untuned, as many rows, and if need be twice as many patches, as keep L2 faster than DRAM. Loads
    that may lie outside the plane are predicated by inline PTX (`tvm_orient/codegen/cuda/predicated_loads.py`): nvcc kept a branch for each, and
    a patch on a slope then waited for one load after the other. Weights are staged: rows of them lie K floats apart, so that a warp that loads
    them from global memory touches 32 lines for each tap, and from shared memory 32 banks where K is odd.

    nvcc loads most of a patch first; the default keeps to 230 values a patch, beyond which it spills. Where an angle has fewer than 32 channels a
    warp is several patches, and each of its loads touches a line for each of them: with 8 channels an angle (64 channels, eight angles) that is
    four times the wavefronts of a load of one angle alone.
    """

    name = "pixels"
    version = 2
    kind = "cuda"
    ops = ("conv", "conv_dx")
    layouts = ("nhwc",)
    config_type = PixelsConfig

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        terms = max(len(t) for t in stencil(spec).terms.values())
        if terms > MAX_TERMS:
            return f"unrolls at most {MAX_TERMS} taps per output, got {terms}"
        return self._invalid(spec, device, self._least(spec, device))

    def _sides(self, spec: ConvSpec, axis: int) -> tuple[int, ...]:
        """Returns the rows (axis 0) or columns (1) that a patch may have, ascending."""
        phases = stencil(spec).phases[axis]
        return tuple(p for p in _SIDES if p % phases == 0) or (phases,)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"patch_h": self._sides(spec, 0), "patch_w": self._sides(spec, 1), "lanes": LANES, "patches": PATCHES, "down": _DOWN}

    def default(self, spec: ConvSpec, device: Device) -> PixelsConfig:
        best = self._least(spec, device)
        for patch_h, patch_w in itertools.product(self._sides(spec, 0), self._sides(spec, 1)):
            trial = replace(best, patch_h=patch_h, patch_w=patch_w)
            fits = patch_h * patch_w <= MAX_OUTPUTS and _read(spec, patch_h, patch_w) <= MAX_READ and self._invalid(spec, device, trial) is None
            if fits and _cost(spec, patch_h, patch_w) < _cost(spec, best.patch_h, best.patch_w):
                best = trial
        wider = [replace(best, down=down) for down in _DOWN]
        if 2 * best.patches in PATCHES:
            wider += [replace(best, patches=2 * best.patches, down=down) for down in _DOWN[1:]]
        return next((d for d in wider if self._shared_reads(spec, d) <= 1), min(wider, key=lambda d: self._shared_reads(spec, d)))

    def _beside(self, spec: ConvSpec, config: PixelsConfig, patches: int) -> tuple[int, int]:
        """Returns the rows and columns of patches of a block: `down` rows where they fit, else what makes up their number."""
        rows, columns = (-(-size // patch) for size, patch in zip(stencil(spec).output, (config.patch_h, config.patch_w), strict=True))
        beside = most_dividing(columns, max(1, patches // config.down))
        return most_dividing(rows, max(1, patches // beside)), beside

    def _shared_reads(self, spec: ConvSpec, config: PixelsConfig) -> float:
        """Returns the bytes that a block reads from the L2 cache and writes, in parts of what L2 moves while DRAM moves its share."""
        g, (above, beside) = stencil(spec), self._beside(spec, config, config.patches)
        height, width = above * config.patch_h, beside * config.patch_w
        return (_read(spec, height, width) / (height * width) + 1) / (_L2 * (math.prod(g.source) / math.prod(g.output) + 1))

    def _least(self, spec: ConvSpec, device: Device) -> PixelsConfig:
        lanes = _lanes(spec)
        patches = max((n for n in PATCHES if n * lanes <= MAX_DEFAULT_THREADS), default=1)
        return PixelsConfig(self._sides(spec, 0)[0], self._sides(spec, 1)[0], lanes, patches, down=1)

    def _invalid(self, spec: ConvSpec, device: Device, config: PixelsConfig) -> str | None:
        work = max(len(t) for t in stencil(spec).terms.values()) * config.patch_h * config.patch_w
        if work > MAX_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return too_far(spec, config.patch_h, config.patch_w, MAX_STAGED)

    def channel_blocks(self, channels: int, config: PixelsConfig) -> int:
        return -(-channels // min(channels, config.lanes))

    def stage_config(self, spec: ConvSpec, config: PixelsConfig) -> StageConfig:
        return StageConfig()

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: PixelsConfig) -> None:
        y, stage = sch.get_sblock(names.Y), sch.get_sblock(names.STAGE)
        # rows of weights lie K apart: lanes would touch a line each, and by way of shared memory they touch banks of their own where K is odd
        reads = [region.source.name for region in sch.get(y).reads]
        weights = sch.cache_read(y, reads.index(names.W), "shared") if names.W in reads else None
        n, h, w, c = sch.get_loops(y)
        down, pixel_h = sch.split(h, [None, config.patch_h])
        across, pixel_w = sch.split(w, [None, config.patch_w])
        chunk, lane = sch.split(c, [None, min(config.lanes, int(sch.get(c).extent))])
        # a group of few channels has more patches a block, and as many threads
        above, beside = self._beside(spec, config, config.patches * max(1, config.lanes // int(sch.get(lane).extent)))
        (down, row), (across, column) = (sch.split(loop, [None, many]) for loop, many in ((down, above), (across, beside)))
        sch.reorder(n, down, across, chunk, row, column, lane, pixel_h, pixel_w)
        block = sch.fuse(n, down, across, chunk)
        sch.bind(block, "blockIdx.x")
        thread = sch.fuse(row, column, lane)
        threads = int(sch.get(thread).extent)
        sch.bind(thread, "threadIdx.x")
        _stage_in_registers(sch, stage, thread)
        if weights is not None:
            sch.compute_at(weights, block, preserve_unit_loops=True)
            cooperate(sch, weights, threads, 1)
        sch.unroll(pixel_h)
        sch.unroll(pixel_w)


def _stage_in_registers(sch: Any, stage: Any, place: Any) -> None:
    """Lets each thread load what its patch reads into registers of its own."""
    sch.set_scope(stage, 0, "local")
    sch.compute_at(stage, place, preserve_unit_loops=True)
    for loop in sch.get_loops(stage)[-5:]:
        sch.unroll(loop)


class PixelsDw(Template[PixelsDwConfig]):
    """Computes conv_dw of channels_last images on a GPU, any stride.

    A thread sums a band of pixels of one channel, with one sum a tap in registers, and loads as `pixels` does. Untuned, a band is 14 x 14 pixels
    or a little more: larger ones leave too few warps to hide what a patch waits for. In the second pass a block sums one tap of 32 channels: 16
    threads a channel each sum every sixteenth band of all images, eight loads at a time, and one sums the sixteen. All sums are in a fixed order,
    and there are no atomics.
    """

    name = "pixels_dw"
    version = 2
    kind = "cuda"
    ops = ("conv_dw",)
    layouts = ("nhwc",)
    config_type = PixelsDwConfig

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        taps = len(stencil(spec).every)
        if taps > MAX_TAPS:
            return f"keeps at most {MAX_TAPS} sums in registers, got {taps} live taps"
        return None

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {
            "rows": divisors(spec.out_height, spec.out_height), "columns": divisors(spec.out_width, spec.out_width),
            "patch_h": _DW_HEIGHTS, "patch_w": _DW_WIDTHS, "lanes": LANES, "bands": BANDS,
        }  # fmt: skip

    def _least(self, spec: ConvSpec, device: Device) -> PixelsDwConfig:
        lanes = _lanes(spec)
        bands = max((n for n in BANDS if n * lanes <= MAX_DEFAULT_THREADS), default=1)
        return PixelsDwConfig(_least_band(spec.out_height, 1), _least_band(spec.out_width, 1), 1, 1, lanes, bands)

    def default(self, spec: ConvSpec, device: Device) -> PixelsDwConfig:
        best, taps = self._least(spec, device), len(stencil(spec).every)
        for patch_h, patch_w in itertools.product(_DW_HEIGHTS, _DW_WIDTHS):
            # bands that are wide enough for their sums to cost little, narrow enough for many to be on their way
            rows, columns = (_least_band(size, patch) for size, patch in ((spec.out_height, patch_h), (spec.out_width, patch_w)))
            trial = replace(best, rows=rows, columns=columns, patch_h=patch_h, patch_w=patch_w)
            fits = _read(spec, patch_h, patch_w) + taps <= MAX_SUMMED and self._invalid(spec, device, trial) is None
            if fits and _cost(spec, patch_h, patch_w) < _cost(spec, best.patch_h, best.patch_w):
                best = trial
        return best

    def _invalid(self, spec: ConvSpec, device: Device, config: PixelsDwConfig) -> str | None:
        for name, patch, size in (("patch_h", config.patch_h, config.rows), ("patch_w", config.patch_w, config.columns)):
            if size % patch:
                return f"{name} must divide {size}, got {patch}"
        work = len(stencil(spec).every) * config.patch_h * config.patch_w
        if work > MAX_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return too_far(spec, config.patch_h, config.patch_w, MAX_STAGED) if config.patch_h * config.patch_w > 1 else None

    def channel_blocks(self, channels: int, config: PixelsDwConfig) -> int:
        return -(-channels // min(channels, config.lanes))

    def stage_config(self, spec: ConvSpec, config: PixelsDwConfig) -> DwStageConfig:
        return DwStageConfig(rows=config.rows, tile=config.columns, slices=_SLICES, images_in_flight=_SUMS_IN_FLIGHT)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: PixelsDwConfig) -> None:
        part, acc, stage, dys = (sch.get_sblock(name) for name in (names.PART, names.ACC, names.STAGE, names.DYS))
        n, band, tap, c = sch.get_loops(part)
        chunk, lane = sch.split(c, [None, min(config.lanes, int(sch.get(c).extent))])
        many = config.bands * max(1, config.lanes // int(sch.get(lane).extent))  # a group of few channels has as many threads
        bands, one = sch.split(band, [None, most_dividing(int(sch.get(band).extent), many)])
        sch.reorder(n, bands, chunk, one, lane, tap)
        sch.bind(sch.fuse(n, bands, chunk), "blockIdx.x")
        thread = sch.fuse(one, lane)
        sch.bind(thread, "threadIdx.x")
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, thread, preserve_unit_loops=True)
        *_, taps, blocks, lanes, row, column = sch.get_loops(acc)
        down, pixel_h = sch.split(row, [None, config.patch_h])
        across, pixel_w = sch.split(column, [None, config.patch_w])
        sch.reorder(blocks, lanes, down, across, pixel_h, pixel_w, taps)
        for block in (stage, dys):
            _stage_in_registers(sch, block, across)
        for loop in (pixel_h, pixel_w, taps, tap):
            sch.unroll(loop)
        init = sch.decompose_reduction(acc, down)
        for loop in sch.get_loops(init)[-3:]:
            sch.unroll(loop)
        self._second_pass(sch)

    def _second_pass(self, sch: Any) -> None:
        """Schedules the second pass.

        A block sums one tap of some channels: each of its threads a slice of the bands, then one thread a channel the slices, in order.

        A cross-thread reduction would not survive the merge of angles.
        """
        y, slices = sch.get_sblock(names.Y), sch.get_sblock(names.SLICES)
        channel, tap, join = sch.get_loops(y)
        chunk, lane = sch.split(channel, [None, min(_LANES, int(sch.get(channel).extent))])
        sch.reorder(tap, chunk, lane, join)
        block = sch.fuse(tap, chunk)
        sch.bind(block, "blockIdx.x")
        sch.bind(lane, "threadIdx.x")
        sch.unroll(join)
        sch.set_scope(slices, 0, "shared")
        held = sch.cache_write(slices, 0, "local")
        sch.compute_at(held, block, preserve_unit_loops=True)
        thread = sch.fuse(*sch.get_loops(held)[1:])
        sch.bind(thread, "threadIdx.x")
        sch.compute_at(slices, thread, preserve_unit_loops=True)
        *_, bands, ahead = sch.get_loops(slices)
        sch.unroll(ahead)
        sch.decompose_reduction(slices, bands)
        sch.decompose_reduction(y, join)


TEMPLATE = Pixels()
DW_TEMPLATE = PixelsDw()
