"""CUDA: weight gradient in two fixed-order passes, no atomics.

First pass: a block owns a band of rows of `channels_per_block` channels; a thread owns patches of pixels and keeps one sum per distinct
tap in registers, so that each staged value serves every tap that needs it. Second pass: sums over bands and images.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import DwStageConfig
from tvm_orient.perf_model.block_cost import ALONE, BlockLoad, ThreadWork, clocks, global_wavefronts, shared_wavefronts
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import Patch, cells, patch
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..default import least_estimate
from ..staging import by_rows, cooperate_by_rows, copied_by_rows
from ..tiling import most_dividing, quads, tiles
from . import plane_dw_cost
from .base_dw import IMAGES_IN_FLIGHT, MAX_UNROLLED, SLICES, BaseDw
from .costs import FETCHED, MISALIGNED, STAGED, UNALIGNED, VECTOR
from .dw_geometry import TwoPassDwConfig, TwoPassDwGeometry, two_pass_dw_geometry

MAX_DEFAULT_THREADS = 256  # threads of an untuned block
MIN_TILE_THREADS = 48  # threads of an untuned block of a strided or wide plane
MAX_PATCHES = 8  # patches that are estimated
MAX_CUTS = 12  # blocks of strided or wide planes that are estimated
MAX_ALIVE = 180  # values, sums and dy of a patch that is estimated, at once
CHANNELS_PER_BLOCK = (1, 2, 4, 8, 16, 32, 64)  # channels of a block
LANES_H = (1, 2, 4, 7, 8, 14)  # threads of a block, one below the other
PATCHES_PER_LANE = (1, 2, 4, 7, 14)  # patches of a thread, one below the other
_HEIGHTS = (1, 2, 4, 7, 8, 14)  # rows of a patch
_WIDTHS = (1, 2, 4, 7, 8)  # columns of a patch
_PADS = (0, 4, 8, 12, 16, 20, 24, 28)  # values by which a staged row is longer than it must be
_BANDS = (1, 2, 4)  # parts of a plane that a block may own
_WIDE = 7  # columns of a patch of a tile from which dy passes through shared memory
_SUM_BYTES = 4  # bytes of a partial sum, which is written once and read once


class TwoPassDw(BaseDw[TwoPassDwConfig]):
    """Computes conv_dw of contiguous images on a GPU, any stride, in two passes.

    First pass: a block stages a band of x of several channels as `shared_patch` does, most often the whole plane, or a tile of a strided or wide
    one. A thread owns a patch of `patch_h` x `patch_w` pixels, or several one below the other, and keeps one sum per distinct tap in registers,
    at most 64: a staged value serves every tap that needs it. A pixel of dy is read by one thread, which loads its own by vectors; where patches
    are 7 wide dy is staged (`dy_shared`), since lanes 7 floats apart would touch a line each. The lanes' sums meet in shared memory at an odd
    pitch and are summed in groups, then the groups. With `whole` a thread owns a whole plane, of at most 256 pixels: every index is then known
    when the loops are unrolled, so there is no halo, no product with a zero outside the plane, and no sum over lanes.

    Second pass: 16 threads a weight each sum every sixteenth image, four loads at a time, and one sums the sixteen. All sums are in a fixed
    order. There are no atomics.
    """

    name = "two_pass_dw"
    version = 4
    config_type = TwoPassDwConfig

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        cut = tiles(spec)
        return {
            "patch_h": _HEIGHTS,
            "patch_w": _WIDTHS,
            "lanes_w": _lanes_w(spec),
            "lanes_h": LANES_H,
            "patches_per_lane": PATCHES_PER_LANE,
            "channels_per_block": CHANNELS_PER_BLOCK,
            "vector": quads(spec, len(cut) > 1),
            "dy_shared": (0, 1),
            "row_pad": _PADS,
            "whole": (0, 1) if plane_dw_cost.serves(spec) else (0,),
            "tile": cut,
        }

    def default(self, spec: ConvSpec, device: Device) -> TwoPassDwConfig:
        return least_estimate(self, spec, device)

    def _least(self, spec: ConvSpec, device: Device) -> TwoPassDwConfig:
        return TwoPassDwConfig(
            patch_h=1, patch_w=1, lanes_w=_lanes_w(spec)[0], lanes_h=1, patches_per_lane=1, channels_per_block=1, vector=quads(spec)[0]
        )  # fmt: skip

    def _patches(self, spec: ConvSpec, tile: int) -> list[tuple[float, int, int]]:
        """Returns (wavefronts of a pixel, height, width) of those patches that load least, whose values fit the registers."""
        g, taps, ranked = stencil(spec), len(stencil(spec).every), []
        height, width = g.output
        for patch_h, patch_w in itertools.product(_HEIGHTS, _WIDTHS):
            area = patch_h * patch_w
            if area * taps > MAX_UNROLLED or patch_h >= 2 * height or patch_w >= 2 * width:
                continue
            own = _patch(spec, patch_h, patch_w, tile)
            if own.alive + taps + area <= MAX_ALIVE:
                covered = -(-height // patch_h) * -(-width // patch_w) * area / (height * width)
                if tile:
                    step = patch_w * g.step[1]
                    loads = sum(count * shared_wavefronts(np.arange(WARP) * step, words) for words, count in own.loads.items() if count)
                else:
                    loads = sum(count * (4 if patch_w % 4 == 0 else words) for words, count in own.loads.items()) + 2 * taps
                ranked.append((loads / area * covered, patch_h, patch_w))
        return sorted(ranked)[:MAX_PATCHES]

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[TwoPassDwConfig]:
        """Yields the configs worth an estimate: the best patches in bands that part the plane evenly, in blocks of a few warps; whole planes."""
        parting = [p for p in CHANNELS_PER_BLOCK if spec.channels % p == 0]
        for number in parting if plane_dw_cost.serves(spec) else ():
            yield replace(self._least(spec, device), channels_per_block=number, whole=1)
        if len(tiles(spec)) > 1:
            yield from self._cuts(spec, device)
            if quads(spec, True) != (1,):
                return
        for _, patch_h, patch_w in self._patches(spec, 0):
            rows, lanes = -(-spec.out_height // patch_h), -(-spec.out_width // patch_w)
            for parts, channels, dy_shared in itertools.product(_BANDS, parting, (0, 1)):
                lanes_h = min((r for r in LANES_H if r * parts >= rows), default=LANES_H[-1])
                below = min((t for t in PATCHES_PER_LANE if lanes_h * t * parts >= rows), default=PATCHES_PER_LANE[-1])
                trial = TwoPassDwConfig(patch_h, patch_w, lanes, lanes_h, below, channels, vector=quads(spec)[0], dy_shared=dy_shared)
                if channels * lanes * lanes_h <= MAX_DEFAULT_THREADS and (parts == 1 or lanes_h * parts < 2 * rows):
                    yield self._padded(spec, trial)

    def _cuts(self, spec: ConvSpec, device: Device) -> Iterator[TwoPassDwConfig]:
        """Yields the best patches in tiles of columns, in bands that part the plane evenly where any do; those that stage and sum least."""
        height, taps, vector = spec.out_height, len(stencil(spec).every), quads(spec, True)[0]
        found: list[tuple[float, TwoPassDwConfig]] = []
        cut = [t for t in tiles(spec) if t and spec.out_width % t == 0 and t * spec.stride[1] % vector == 0]
        for cost, patch_h, patch_w in self._patches(spec, cut[0]) if cut else ():
            for tile, lanes_h, below in itertools.product((t for t in cut if t % patch_w == 0), LANES_H, PATCHES_PER_LANE):
                lanes, band = tile // patch_w, patch_h * lanes_h * below
                channels = next((p for p in CHANNELS_PER_BLOCK if spec.channels % p == 0 and p * lanes * lanes_h >= MIN_TILE_THREADS), 1)
                trial = TwoPassDwConfig(patch_h, patch_w, lanes, lanes_h, below, channels, vector, dy_shared=int(patch_w == _WIDE), tile=tile)
                fits = band < height + patch_h and channels * lanes * lanes_h <= MAX_DEFAULT_THREADS
                if fits and self._invalid(spec, device, trial) is None:
                    block = two_pass_dw_geometry(spec, trial)
                    staging = STAGED * block.rows * block.stage.columns * -(-height // band) / (height * tile)
                    found.append((cost * -(-height // band) * band / height + staging + 2 * taps / (patch_h * patch_w * below), trial))
        for _, trial in sorted(found)[:MAX_CUTS]:
            yield self._padded(spec, trial)

    def _padded(self, spec: ConvSpec, config: TwoPassDwConfig) -> TwoPassDwConfig:
        """Returns the config with the least padding that keeps a warp's lanes in banks of their own, as far as any does."""
        words = config.patch_w if config.patch_w in (2, 4) else 1
        if config.tile:
            words = math.gcd(config.patch_w * spec.stride[1], VECTOR)
        best, fewest = config, math.inf
        for row_pad in _PADS:
            trial = replace(config, row_pad=row_pad)
            count = shared_wavefronts(two_pass_dw_geometry(spec, trial).first_x()[: 2 * WARP], words)
            if count < fewest:
                best, fewest = trial, count
            if count <= words:
                break
        return best

    def estimate(self, spec: ConvSpec, device: Device, config: TwoPassDwConfig) -> Mapping[str, float]:
        if config.whole:
            return plane_dw_cost.estimate(spec, nearest(device.arch), config.channels_per_block)
        block, planes = two_pass_dw_geometry(spec, config), config.channels_per_block
        g, own, taps, threads = block.g, _patch(spec, config.patch_h, config.patch_w, config.tile), max(1, len(block.g.every)), block.threads
        (height, width), area, warps = g.output, config.patch_h * config.patch_w, -(-threads // WARP)
        band = height / -(-height // block.band) if config.tile else min(height, block.band)  # wanted rows of a block, on average
        outputs = planes * band * (config.tile or width)
        padded = planes * block.band * block.columns if config.dy_shared else 0  # staged pixels of dy
        staged = planes * block.rows * block.stage.phases * block.stage.columns
        fetched = planes * min(block.rows, g.source[0]) * min(block.stage.columns if config.tile else g.source[1], g.source[1])
        part = spec.itemsize / DTYPES[spec.sums]  # of a word that a value takes in memory
        place = block.first_x()
        loads = sum(count * shared_wavefronts(place, words) for words, count in own.loads.items() if count)
        memory = warps * (block.patches * (loads + _dy_wavefronts(block, part)) + taps) + (staged + FETCHED * part * fetched + threads * taps) / WARP
        memory += (1 + FETCHED * part) * padded / WARP
        others = block.patches * (sum(own.loads.values()) + area / block.dy_quad) + 3 * taps
        dram = spec.itemsize * outputs * (1 + g.source[0] * g.source[1] / (height * width)) + _SUM_BYTES * planes * taps
        l2 = spec.itemsize * (fetched + outputs) + 2 * _SUM_BYTES * planes * taps
        registers, products, shared = own.alive + taps + area, block.patches * own.products, block.x_bytes + block.dy_bytes
        if not spec.is_half:
            copies = (staged / config.vector + padded / block.dy_quad) / threads
            load = BlockLoad(threads, outputs, shared, registers, memory, dram, l2, ThreadWork(products, others, copies))
            return clocks(nearest(device.arch), load, least=ALONE)
        *_, turns = by_rows(planes, block.rows, block.row // config.vector, threads)
        *_, again = by_rows(planes, block.band, block.columns // block.dy_quad, threads) if config.dy_shared else (0,)
        memory += UNALIGNED * warps * (turns + again) - MISALIGNED * part * (fetched + padded) / WARP  # loads begin anywhere in a line
        copy, waits = copied_by_rows(VECTOR, turns, again)
        load = BlockLoad(threads, outputs, shared, registers, memory, dram, l2, ThreadWork(products, others, turns + again, copy), waits=waits)
        return clocks(nearest(device.arch), load, least=ALONE)

    def _invalid(self, spec: ConvSpec, device: Device, config: TwoPassDwConfig) -> str | None:
        block, tile, chunk = two_pass_dw_geometry(spec, config), config.tile, config.lanes_w * config.patch_w
        if config.vector not in quads(spec, tile > 0) or tile * spec.stride[1] % config.vector:
            return f"vector: columns are parted by the stride, or tiles of {tile} do not part into groups of {config.vector}"
        if tile % chunk or (tile and config.whole):
            return f"lanes_w and patch_w must part the {tile} columns of a tile, which is no whole plane, got {chunk}"
        return self._unfit(spec, block.threads, block.x_bytes, block.dy_bytes, self.unrolled(spec, config))

    def unrolled(self, spec: ConvSpec, config: TwoPassDwConfig) -> int:
        return plane_dw_cost.products(spec) if config.whole else len(stencil(spec).every) * config.patch_h * config.patch_w

    def channel_blocks(self, channels: int, config: TwoPassDwConfig) -> int:
        return channels // most_dividing(channels, config.channels_per_block)

    def stage_config(self, spec: ConvSpec, config: TwoPassDwConfig) -> DwStageConfig:
        if config.whole:
            return DwStageConfig(dy_quad=1, slices=SLICES, images_in_flight=IMAGES_IN_FLIGHT, whole=True)
        block = two_pass_dw_geometry(spec, config)
        return DwStageConfig(
            vector=config.lanes_w, halo=VECTOR, pitch=block.stage.columns, quad=config.vector, rows=block.band, run=config.patch_w,
            row_lanes=config.lanes_h, dy_quad=block.dy_quad, joins=self._joins(spec, block.lanes), slices=SLICES, images_in_flight=IMAGES_IN_FLIGHT,
            tile=config.tile,
        )  # fmt: skip

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: TwoPassDwConfig) -> None:
        stage, dys, shape = sch.get_sblock(names.STAGE), sch.get_sblock(names.DYS), two_pass_dw_geometry(spec, config)
        block, threads = self._first_pass(sch, spec, config.channels_per_block, shape.lanes)
        if config.whole:
            self._sum_unrolled(sch, block, plane_dw_cost.by_columns(spec))
            self._stage_apart(sch, (stage, dys), block, threads)
            self._second_pass(sch)
            return
        self._sum(sch, block, config)
        sch.compute_at(stage, block, preserve_unit_loops=True)
        plain = not spec.is_half  # copies that convert are batched, which unrolling would hide
        cooperate_by_rows(sch, stage, threads, config.vector, unroll=plain)
        if config.dy_shared:
            sch.compute_at(dys, block, preserve_unit_loops=True)
            cooperate_by_rows(sch, dys, threads, shape.dy_quad, unroll=plain)
        self._second_pass(sch)

    def finish(self, func: Any, spec: ConvSpec, config: TwoPassDwConfig) -> Any:
        from tvm_orient.codegen.names import SKIP_RENORMALIZE

        return func.with_attr(SKIP_RENORMALIZE, True) if config.whole else func

    def _sum(self, sch: Any, block: Any, config: TwoPassDwConfig) -> None:
        """Gives each (plane, lane) a thread: its patches row by row, all taps unrolled inside."""
        lanes = self._by_lane(sch, block)
        *_, tap, row, column, pixel = sch.get_loops(lanes)
        outer, patch = sch.split(row, [None, config.patch_h])
        sch.reorder(outer, column, patch, pixel, tap)
        for loop in (patch, pixel, tap):
            sch.unroll(loop)
        if not config.dy_shared:
            self._own_dy(sch, column)
        init = sch.decompose_reduction(lanes, outer)
        for loop in sch.get_loops(init)[-5:]:
            sch.unroll(loop)

    def _own_dy(self, sch: Any, column: Any) -> None:
        """Lets a thread load the dy of its patch into registers: no other needs it."""
        dys = sch.get_sblock(names.DYS)
        sch.compute_at(dys, column, preserve_unit_loops=True)
        sch.set_scope(dys, 0, "local")
        *loops, last = sch.get_loops(dys)[-5:]
        for loop in loops:
            sch.unroll(loop)
        sch.vectorize(last)


def _lanes_w(spec: ConvSpec) -> tuple[int, ...]:
    """Returns the threads side by side by which patches of some width fill a row or a tile, ascending."""
    return tuple(sorted({-(-(tile or spec.out_width) // patch_w) for tile in tiles(spec) for patch_w in _WIDTHS}))


def _patch(spec: ConvSpec, patch_h: int, patch_w: int, tile: int) -> Patch:
    """Returns the cost of a patch that reads the staged x."""
    g = stencil(spec)
    key = cells(g, -(-g.output[1] // g.phases[1]), VECTOR, VECTOR, tile)
    return patch(key, patch_h, patch_w, math.gcd(patch_w * (g.step[1] if tile else 1), VECTOR), True)


def _dy_wavefronts(block: TwoPassDwGeometry, part: float) -> float:
    """Returns the wavefronts of a warp that load the dy of a patch; part: of a word that a value takes in memory."""
    area = block.config.patch_h * block.config.patch_w
    if block.config.dy_shared:
        return area * shared_wavefronts(block.first_dy(staged=True), 1)
    across = global_wavefronts((block.first_dy(staged=False) * part).astype(int), max(1, int(block.dy_quad * part)))
    return area / block.dy_quad * across


TEMPLATE = TwoPassDw()
