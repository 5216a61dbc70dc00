"""CUDA templates for channels_last: a warp is 32 channels of one pixel, which all have the same offsets.

Every load of a warp is then whole lines, and no two lanes share a value, so that shared memory would help nobody: a thread keeps what
its patch of pixels reads in registers, and the L1 cache serves what neighbouring patches share.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil

from ..base import Decisions, Template
from ..staging import cooperate
from ..tiling import divisors, most_dividing

_MOST_TERMS = 160  # live terms of one output: beyond, the unrolled patch spills
_MOST_UNROLLED = 4096  # multiply-adds of one thread
_MOST_STAGED = 4096  # values in the box around what a patch reads; nvcc drops those that no tap reads
_MOST_TAPS = 64  # sums of one thread of conv_dw, all in registers
_L2 = 2.3  # bytes that L2 moves for each that DRAM does
_LEAST_BAND = 14  # rows and columns of an untuned band of conv_dw
_LANES, _SLICES, _AHEAD = 32, 16, 8  # of a block of the second pass: channels, threads of each, sums that one of them loads at once
_MOST_READ, _MOST_SUMMED = 230, 190  # values that a patch reads (conv_dw: and sums): nvcc loads most of them first, and beyond this it spills


def _box(spec: ConvSpec, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the source that a patch of outputs reaches."""
    g = stencil(spec)
    ends = []
    for axis, outputs in ((0, height), (1, width)):
        offsets = [(t.row, t.col)[axis] for t in g.every] or [0]
        ends.append((-(-outputs // g.phases[axis]) - 1) * g.step[axis] + max(offsets) - min(offsets) + 1)
    return ends[0], ends[1]


def _read(spec: ConvSpec, height: int, width: int) -> int:
    """Distinct source pixels that a patch of outputs reads; where it spans the plane, those inside."""
    g = stencil(spec)
    rows, columns = (range(n) if patch >= out else None for n, patch, out in zip(g.source, (height, width), g.output, strict=True))
    found = {
        (i // g.phases[0] * g.step[0] + t.row, j // g.phases[1] * g.step[1] + t.col)
        for i in range(height) for j in range(width) for t in g.terms.get((i % g.phases[0], j % g.phases[1]), ())
    }  # fmt: skip
    return sum((rows is None or i in rows) and (columns is None or j in columns) for i, j in found)


def _cost(spec: ConvSpec, height: int, width: int) -> float:
    """Loads of an output that is wanted. Patches that overhang the plane cost; so do long ones on a slope, whose every load tests a row and a column."""
    g = stencil(spec)
    wanted = math.prod(size / (-(-size // patch) * patch) for size, patch in zip(g.output, (height, width), strict=True))
    sloped = all(len({(t.row, t.col)[axis] for t in g.every}) > 1 for axis in (0, 1))
    long = 1 + 0.2 * abs(math.log2(height / width)) if sloped else 1.0
    return (_read(spec, height, width) / (height * width) + 1) * long / wanted


def _least_band(size: int, patch: int) -> int:
    """The least divisor of a plane's side that whole patches fill and that is not short; the side where there is none."""
    return next((d for d in divisors(size, size) if d >= _LEAST_BAND and d % patch == 0), size)


class Pixels(Template):
    """Computes conv and conv_dx of channels_last images on a GPU, any stride.

    A warp is 32 channels of one pixel. Every load of a warp is whole lines, and no two lanes share a value of an image, so images are not staged:
    a thread loads what its patch of `patch_h` x `patch_w` pixels reads into registers, and the L1 cache serves what neighbouring patches share. A
    block is several patches, in several rows: untuned, as many rows, and if need be twice as many patches, as keep L2 faster than DRAM. Loads
    that may lie outside the plane are predicated by inline PTX (`tvm_orient/codegen/cuda/predicated_loads.py`): nvcc kept a branch for each, and
    a patch on a slope then waited for one load after the other. Weights are staged: rows of them lie K floats apart, so that a warp that loads
    them from global memory touches 32 lines for each tap, and from shared memory 32 banks where K is odd.

    nvcc loads most of a patch first; the default keeps to 230 values a patch, beyond which it spills. Where an angle has fewer than 32 channels a
    warp is several patches, and each of its loads touches a line for each of them: with 8 channels an angle (64 channels, eight angles) that is
    four times the passes of a load of one angle alone.
    """

    name, version, kind, ops, layouts = "pixels", 2, "cuda", ("conv", "conv_dx"), ("nhwc",)

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        terms = max(len(t) for t in stencil(spec).terms.values())
        if terms > _MOST_TERMS:
            return f"unrolls at most {_MOST_TERMS} taps per output, got {terms}"
        return self._invalid(spec, device, self._least(spec, device))

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        g = stencil(spec)
        heights = tuple(p for p in (1, 2, 4, 7, 8, 14) if p % g.phases[0] == 0) or (g.phases[0],)
        widths = tuple(p for p in (1, 2, 4, 7, 8, 14) if p % g.phases[1] == 0) or (g.phases[1],)
        return {"patch_h": heights, "patch_w": widths, "lanes": (8, 16, 32, 64), "patches": (1, 2, 4, 7, 8, 16), "down": (1, 2, 4)}

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        knobs, best = self.knobs(spec, device), self._least(spec, device)
        for patch_h, patch_w in itertools.product(knobs["patch_h"], knobs["patch_w"]):
            trial = {**best, "patch_h": patch_h, "patch_w": patch_w}
            fits = patch_h * patch_w <= 32 and _read(spec, patch_h, patch_w) <= _MOST_READ and self._invalid(spec, device, trial) is None
            if fits and _cost(spec, patch_h, patch_w) < _cost(spec, best["patch_h"], best["patch_w"]):
                best = trial
        wider = [{**best, "down": down} for down in knobs["down"]]
        if 2 * best["patches"] in knobs["patches"]:
            wider += [{**best, "patches": 2 * best["patches"], "down": down} for down in knobs["down"][1:]]
        return next((d for d in wider if self._shared_reads(spec, d) <= 1), min(wider, key=lambda d: self._shared_reads(spec, d)))

    def _beside(self, spec: ConvSpec, decisions: Decisions, patches: int) -> tuple[int, int]:
        """Rows and columns of patches of a block: `down` rows where they fit, else what makes up their number."""
        rows, columns = (-(-size // decisions[name]) for size, name in zip(stencil(spec).output, ("patch_h", "patch_w"), strict=True))
        beside = most_dividing(columns, max(1, patches // decisions["down"]))
        return most_dividing(rows, max(1, patches // beside)), beside

    def _shared_reads(self, spec: ConvSpec, decisions: Decisions) -> float:
        """What a block reads from the L2 cache and writes, in parts of what L2 moves while DRAM moves its share."""
        g, (above, beside) = stencil(spec), self._beside(spec, decisions, decisions["patches"])
        height, width = above * decisions["patch_h"], beside * decisions["patch_w"]
        return (_read(spec, height, width) / (height * width) + 1) / (_L2 * (math.prod(g.source) / math.prod(g.output) + 1))

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        """The decisions that need the least of everything: valid wherever any are."""
        knobs = self.knobs(spec, device)
        lanes = next((n for n in (32, 16) if spec.channels >= n), 8)
        patches = max((n for n in knobs["patches"] if n * lanes <= 128), default=1)
        return {"patch_h": knobs["patch_h"][0], "patch_w": knobs["patch_w"][0], "lanes": lanes, "patches": patches, "down": 1}

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        height, width = decisions["patch_h"], decisions["patch_w"]
        work = max(len(t) for t in stencil(spec).terms.values()) * height * width
        if work > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        rows, columns = _box(spec, height, width)
        if rows * columns > _MOST_STAGED:
            return f"a patch reaches {rows} x {columns} pixels, at most {_MOST_STAGED}"
        return None

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig()

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y, stage = sch.get_sblock("y"), sch.get_sblock("stage")
        # rows of weights lie K apart: lanes would touch a line each, and by way of shared memory they touch banks of their own where K is odd
        reads = [region.source.name for region in sch.get(y).reads]
        weights = sch.cache_read(y, reads.index("w"), "shared") if "w" in reads else None
        n, h, w, c = sch.get_loops(y)
        down, pixel_h = sch.split(h, [None, decisions["patch_h"]])
        across, pixel_w = sch.split(w, [None, decisions["patch_w"]])
        chunk, lane = sch.split(c, [None, min(decisions["lanes"], int(sch.get(c).extent))])
        # a group of few channels has more patches a block, and as many threads
        above, beside = self._beside(spec, decisions, decisions["patches"] * max(1, decisions["lanes"] // int(sch.get(lane).extent)))
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
    sch.set_scope(stage, 0, "local")
    sch.compute_at(stage, place, preserve_unit_loops=True)
    for loop in sch.get_loops(stage)[-5:]:
        sch.unroll(loop)


class PixelsDw(Template):
    """Computes conv_dw of channels_last images on a GPU, any stride.

    A thread sums a band of pixels of one channel, with one sum a tap in registers, and loads as `pixels` does. Untuned, a band is 14 x 14 pixels
    or a little more: larger ones leave too few warps to hide what a patch waits for. In the second pass a block sums one tap of 32 channels: 16
    threads a channel each sum every sixteenth band of all images, eight loads at a time, and one sums the sixteen. All sums are in a fixed order,
    and there are no atomics.
    """

    name, version, kind, ops, layouts = "pixels_dw", 2, "cuda", ("conv_dw",), ("nhwc",)

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        taps = len(stencil(spec).every)
        if taps > _MOST_TAPS:
            return f"keeps at most {_MOST_TAPS} sums in registers, got {taps} live taps"
        return None

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {
            "rows": divisors(spec.out_height, spec.out_height), "columns": divisors(spec.out_width, spec.out_width),
            "patch_h": (1, 2, 4, 7, 14), "patch_w": (1, 2, 4, 7, 8, 14), "lanes": (8, 16, 32, 64), "bands": (1, 2, 4, 8),
        }  # fmt: skip

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        knobs, g = self.knobs(spec, device), stencil(spec)
        lanes = next((n for n in (32, 16) if spec.channels >= n), 8)
        best = {
            "rows": _least_band(spec.out_height, 1),
            "columns": _least_band(spec.out_width, 1),
            "patch_h": 1,
            "patch_w": 1,
            "lanes": lanes,
            "bands": max((n for n in knobs["bands"] if n * lanes <= 128), default=1),
        }
        for patch_h, patch_w in itertools.product(knobs["patch_h"], knobs["patch_w"]):
            # bands that are wide enough for their sums to cost little, narrow enough for many to be on their way
            rows, columns = (_least_band(size, patch) for size, patch in ((spec.out_height, patch_h), (spec.out_width, patch_w)))
            trial = {**best, "rows": rows, "columns": columns, "patch_h": patch_h, "patch_w": patch_w}
            fits = _read(spec, patch_h, patch_w) + len(g.every) <= _MOST_SUMMED and self._invalid(spec, device, trial) is None
            if fits and _cost(spec, patch_h, patch_w) < _cost(spec, best["patch_h"], best["patch_w"]):
                best = trial
        return best

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        for patch, size in (("patch_h", decisions["rows"]), ("patch_w", decisions["columns"])):
            if size % decisions[patch]:
                return f"{patch} must divide {size}, got {decisions[patch]}"
        work = len(stencil(spec).every) * decisions["patch_h"] * decisions["patch_w"]
        if work > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        rows, columns = _box(spec, decisions["patch_h"], decisions["patch_w"])
        if rows * columns > _MOST_STAGED and decisions["patch_h"] * decisions["patch_w"] > 1:
            return f"a patch reaches {rows} x {columns} pixels, at most {_MOST_STAGED}"
        return None

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(rows=decisions["rows"], tile=decisions["columns"], slices=_SLICES, ahead=_AHEAD)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        part, acc, stage, dys = (sch.get_sblock(name) for name in ("part", "acc", "stage", "dys"))
        n, band, tap, c = sch.get_loops(part)
        chunk, lane = sch.split(c, [None, min(decisions["lanes"], int(sch.get(c).extent))])
        many = decisions["bands"] * max(1, decisions["lanes"] // int(sch.get(lane).extent))  # a group of few channels has as many threads
        bands, one = sch.split(band, [None, most_dividing(int(sch.get(band).extent), many)])
        sch.reorder(n, bands, chunk, one, lane, tap)
        sch.bind(sch.fuse(n, bands, chunk), "blockIdx.x")
        thread = sch.fuse(one, lane)
        sch.bind(thread, "threadIdx.x")
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, thread, preserve_unit_loops=True)
        *_, taps, blocks, lanes, row, column = sch.get_loops(acc)
        down, pixel_h = sch.split(row, [None, decisions["patch_h"]])
        across, pixel_w = sch.split(column, [None, decisions["patch_w"]])
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
        """A block sums one tap of some channels: each of its threads a slice of the bands, then one thread a channel the slices, in order.

        A cross-thread reduction would not survive the merge of angles.
        """
        y, slices = sch.get_sblock("y"), sch.get_sblock("slices")
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


TEMPLATE, DW_TEMPLATE = Pixels(), PixelsDw()
