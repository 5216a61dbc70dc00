"""CUDA: `two_pass_dw` for planes that are small beside the line of taps: a thread owns whole rows of dy, or whole columns.

Where along them a tap leaves the plane is then known at compile time: those products are left out, and x has no halo on that side.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import DwStageConfig
from tvm_orient.perf_model.block_cost import ALONE, BlockLoad, ThreadWork, clocks, shared_wavefronts
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import Patch, held
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stage, Stencil, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..default import CLOSE, least_estimate
from ..staging import cooperate, cooperate_by_rows
from ..tiling import divisors, most_dividing, quads
from .base_dw import IMAGES_IN_FLIGHT, SLICES, BaseDw
from .costs import FETCHED, VECTOR
from .dw_geometry import StripsDwConfig, strips_dw_geometry

MAX_RUN = 8  # rows or columns of a strip
MAX_ALIVE = 200  # values, sums and dy at once of an untuned strip
MIN_DEFAULT_THREADS = 24  # threads of an untuned block
MAX_DEFAULT_THREADS = 256  # threads of an untuned block
CHANNELS_PER_BLOCK = (1, 2, 4, 8, 16, 32)  # channels of a block
_SUM_BYTES = 4  # bytes of a partial sum, which is written once and read once


class StripsDw(BaseDw[StripsDwConfig]):
    """Computes conv_dw as `two_pass_dw` does, by threads that own whole rows of dy, or whole columns.

    As in `strips`, products with what lies outside the plane along them are left out, and x has no halo there. Pixels are taken along the strip,
    all rows (or columns) of it at each place, so that a value of x is needed for a short time and by several of them. Planes of x and dy are
    staged, at most 64 sums a thread, and the passes are those of `two_pass_dw`. Untuned, of strips of equal estimates the thinnest is taken,
    which has the least code.
    """

    name = "strips_dw"
    version = 2
    config_type = StripsDwConfig

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {
            "patch_h": _sides(spec, 0), "patch_w": _sides(spec, 1), "channels_per_block": CHANNELS_PER_BLOCK, "vector": quads(spec),
            "lanes_across_channels": (0, 1),
        }  # fmt: skip

    def default(self, spec: ConvSpec, device: Device) -> StripsDwConfig:
        return least_estimate(self, spec, device, CLOSE)

    def _invalid(self, spec: ConvSpec, device: Device, config: StripsDwConfig) -> str | None:
        height, width = stencil(spec).output
        if config.patch_h != height and config.patch_w != width:
            return f"a strip must run across all {height} rows or all {width} columns, got {config.patch_h} x {config.patch_w}"
        block = strips_dw_geometry(spec, config)
        return self._unfit(spec, block.threads, block.x_bytes, block.dy_bytes, self.unrolled(spec, config))

    def unrolled(self, spec: ConvSpec, config: StripsDwConfig) -> int:
        block = strips_dw_geometry(spec, config)
        return _products(spec, block.pruned, block.run)

    def _least(self, spec: ConvSpec, device: Device) -> StripsDwConfig:
        """Returns the thinnest strips of one plane that serve, or rows where none do."""
        height, width = stencil(spec).output
        strips = [*((p, width) for p in _sides(spec, 0)), *((height, p) for p in _sides(spec, 1))]
        trials = [StripsDwConfig(h, w, channels_per_block=1, vector=quads(spec)[0]) for h, w in strips]
        return next((trial for trial in trials if self._invalid(spec, device, trial) is None), trials[0])

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[StripsDwConfig]:
        """Yields the configs worth an estimate, those of least code first: strips whose values fit the registers, in blocks of a few warps."""
        (height, width), taps = stencil(spec).output, len(stencil(spec).every)
        strips = [*((p, width) for p in _sides(spec, 0) if p < height), *((height, p) for p in _sides(spec, 1) if p < width)]
        for (patch_h, patch_w), channels, across in itertools.product(sorted(strips, key=math.prod), CHANNELS_PER_BLOCK, (0, 1)):
            config = StripsDwConfig(patch_h, patch_w, channels, quads(spec)[0], across)
            block = strips_dw_geometry(spec, config)
            if spec.channels % channels or (channels == 1 and across) or not MIN_DEFAULT_THREADS <= block.threads <= MAX_DEFAULT_THREADS:
                continue
            if self._invalid(spec, device, config) is not None:  # asked first: a long strip takes seconds to look at
                continue
            if _strip(spec, block.pruned, block.run)[0].alive + taps + 2 * block.run <= MAX_ALIVE:
                yield config

    def estimate(self, spec: ConvSpec, device: Device, config: StripsDwConfig) -> Mapping[str, float]:
        """Returns the clocks of an SM for 32 pixels of dy by resource, of the first pass, before anything is compiled."""
        block, planes = strips_dw_geometry(spec, config), config.channels_per_block
        g, stage, row, run, pruned, threads = block.g, block.stage, block.row, block.run, block.pruned, block.threads
        own, taps, (height, width) = _strip(spec, pruned, run)[0], max(1, len(g.every)), g.output
        warps, pixels, area = -(-threads // WARP), height * width, run * g.output[pruned]
        plane, lane = block.places()
        across, down = lane * run * (row * g.step[0] if pruned else 1), lane * run * (width if pruned else 1)
        loads = sum(count * shared_wavefronts(plane * block.x + across, words) for words, count in own.loads.items() if count)
        quad = math.gcd(width if pruned else run, VECTOR)
        loads += area / quad * shared_wavefronts(plane * block.dy + down, quad)
        staged = planes * (stage.rows * row + pixels)
        part = spec.itemsize / DTYPES[spec.sums]
        fetched = planes * (g.source[0] * g.source[1] + pixels)
        memory = warps * (loads + taps) + (staged + FETCHED * part * fetched + threads * taps) / WARP
        copies = (planes * stage.rows * row / config.vector + planes * pixels / (VECTOR if pixels % VECTOR == 0 else 1)) / threads
        work = ThreadWork(own.products, sum(own.loads.values()) + area / quad + 3 * taps, copies)
        moved = spec.itemsize * fetched + _SUM_BYTES * planes * taps
        shared, l2 = block.x_bytes + block.dy_bytes, moved + _SUM_BYTES * planes * taps
        load = BlockLoad(threads, planes * pixels, shared, own.alive + taps + 2 * run, memory, moved, l2, work)
        return clocks(nearest(device.arch), load, least=ALONE)

    def channel_blocks(self, channels: int, config: StripsDwConfig) -> int:
        return channels // most_dividing(channels, config.channels_per_block)

    def stage_config(self, spec: ConvSpec, config: StripsDwConfig) -> DwStageConfig:
        block = strips_dw_geometry(spec, config)
        return DwStageConfig(
            pruned=block.pruned, run=block.run, halo=VECTOR, pitch=VECTOR, quad=config.vector, joins=self._joins(spec, block.lanes), slices=SLICES,
            images_in_flight=IMAGES_IN_FLIGHT,
        )  # fmt: skip

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: StripsDwConfig) -> None:
        shape = strips_dw_geometry(spec, config)
        block, threads = self._first_pass(sch, spec, config.channels_per_block, shape.lanes)
        self._sum_unrolled(sch, block, _strip(spec, shape.pruned, shape.run)[1], bool(config.lanes_across_channels))
        for name, vector in ((names.STAGE, config.vector), (names.DYS, 0)):
            staged = sch.get_sblock(name)
            sch.compute_at(staged, block, preserve_unit_loops=True)
            vector = vector or int(sch.get(sch.get_loops(staged)[-1]).extent)
            if spec.is_half and name == names.DYS:
                cooperate(sch, staged, threads, vector)
            else:
                cooperate_by_rows(sch, staged, threads, vector, unroll=not spec.is_half)
            sch.storage_align(staged, 0, 1, *shape.apart)
        self._second_pass(sch)

    def finish(self, func: Any, spec: ConvSpec, config: StripsDwConfig) -> Any:
        from tvm_orient.codegen.names import SKIP_RENORMALIZE

        return func if spec.is_half else func.with_attr(SKIP_RENORMALIZE, True)  # in half precision the pass finds something


def _sides(spec: ConvSpec, axis: int) -> tuple[int, ...]:
    """Returns the rows (axis 0) or columns (1) that a strip may have: those of a thin strip, or the whole side; ascending."""
    size = stencil(spec).output[axis]
    return tuple(sorted({*divisors(size, MAX_RUN), size}))


def _products(spec: ConvSpec, pruned: int, run: int) -> int:
    """Returns the number of multiply-adds of a strip."""
    g = stencil(spec)
    places = np.arange(g.output[pruned])[:, None] * g.step[pruned] + np.array([(t.row, t.col)[pruned] for t in g.every], np.int64)
    return run * (places.size if g.wrap else int(((places >= 0) & (places < g.source[pruned])).sum()))


@functools.lru_cache(maxsize=4096)
def _strip(spec: ConvSpec, pruned: int, run: int) -> tuple[Patch, bool]:
    """Returns the cost of a strip, and whether fewer values are held at once with the loop along it outside the one across it."""
    g, found = stencil(spec), []
    stage, along = g.stage(g.output[1], VECTOR, VECTOR, pruned=pruned), g.output[pruned]
    align = math.gcd(stage.columns, VECTOR if pruned else run, VECTOR)
    for along_first in (True, False):
        order = itertools.product(range(along), range(run)) if along_first else ((q, p) for p in range(run) for q in range(along))
        found.append((held([_reads(g, stage, pruned, q, p) for q, p in order], align), along_first))
    return min(found, key=lambda pair: pair[0].alive)


def _reads(g: Stencil, stage: Stage, pruned: int, along: int, across: int) -> Any:
    """Returns (row, column phase, column) of the stage that a pixel of a strip reads."""
    taps = np.array([(t.row, t.col, *stage.place(t.col)) for t in g.every], np.int64).reshape(-1, 4)
    place = taps[:, pruned] + along * g.step[pruned]
    live = np.full(len(taps), True) if g.wrap else (place >= 0) & (place < g.source[pruned])
    row, _, phase, shift = taps[live].T
    place = place[live] % g.source[pruned]
    if pruned:
        return np.stack([row + across * g.step[0] + stage.top, np.zeros_like(place), place], axis=1)
    return np.stack([place, phase, shift + across], axis=1)


TEMPLATE = StripsDw()
