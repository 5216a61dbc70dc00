"""CUDA: a thread owns a line of the plane along the taps: a column, or a diagonal that leaves the plane at one side and comes back at the other.

For taps on a line of whole slope (45, 90 and 135 degrees). Every pixel belongs to one thread, which loads it once, in rows that
neighbouring lanes share, and keeps it in a register for all its taps: no halo. With `staged` the planes pass through shared memory as they
lie, so that one wait serves all loads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import BlockLoad, ThreadWork, clocks, global_wavefronts, shared_wavefronts, soft_maximum
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.shear import line_slope
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MAX_USE, Config, Template
from ..staging import cooperate, cooperate_by_rows, in_turn
from ..tiling import idle_stages, parted, too_many_threads
from .costs import STAGED, VECTOR

MAX_ROWS = 64  # rows of a plane: all pixels of a line are kept in registers
MAX_UNROLLED = 4096  # multiply-adds of one thread
MAX_DEFAULT_THREADS = 128  # threads of an untuned block
CHANNELS_PER_BLOCK = (1, 2, 4, 8, 16, 32)  # channels of a block, or of each of its tiles
_HELD = 16  # registers beside the pixels of a line and its results, as nvcc takes them
_PIXEL = 6  # instructions of a pixel beside its multiply-adds: address, load, store and the side that it is on
_PIXEL_OF_HALF = 12  # the same with conversions
_ALIGNED = 1.2  # wavefronts of a warp for a row of a line: now and then it goes on in the next row


@dataclass(frozen=True)
class LinesConfig(Config):
    """The decisions of `lines`."""

    channels_per_block: int  #: channels of a tile of a block
    staged: int  #: 1: planes pass through shared memory; 0: each thread loads its line from memory
    weights_shared: int  #: 1: weights pass through shared memory; 0: each thread loads its own
    tiles_per_block: int = 1  #: tiles, of other channels each, that a block computes in turn
    stages: int = 1  #: tiles in shared memory at once: with 2 one is copied while the other is computed


@dataclass(frozen=True)
class LinesGeometry:
    """A block of `lines`: a thread for each column of its planes."""

    threads: int  #: of the block
    image_bytes: int  #: staged planes in shared memory, all stages
    weight_bytes: int  #: staged weights in shared memory, all stages

    @property
    def shared_bytes(self) -> int:
        """Returns the bytes of shared memory of a block."""
        return self.image_bytes + self.weight_bytes


def lines_geometry(spec: ConvSpec, config: LinesConfig) -> LinesGeometry:
    """Returns the block of a config; consecutive lanes read consecutive banks, from one plane to the next as well."""
    on, size = round_up(spec.width, VECTOR) % WARP, DTYPES[spec.sums]
    plane = round_up(spec.height * spec.width - on, WARP) + on if config.staged else 0
    weights = spec.kernel_size if config.weights_shared else 0
    planes = config.stages * config.channels_per_block
    return LinesGeometry(config.channels_per_block * spec.width, planes * plane * size, planes * weights * size)


class Lines(Template[LinesConfig]):
    """Computes conv and conv_dx with stride 1 for taps on a line of whole slope: 45, 90 and 135 degrees.

    A thread owns a line of the plane along the taps. Taken modulo the width, the lines that begin in the top row hold every pixel once, so
    nothing is read twice and there is no halo; K multiply-adds need one value more for each output, not K. A diagonal leaves the plane at one
    side and comes back at the other. Its two parts are summed apart, which doubles the multiply-adds and still leaves them below DRAM. A block
    may pass over several tiles with two `stages`, as in `shared_patch`. Up to 64 rows.
    """

    name = "lines"
    version = 3
    kind = "cuda"
    ops = ("conv", "conv_dx")
    config_type = LinesConfig

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if line_slope(spec) is None:
            return "for stride 1, and taps on a line of whole slope that leaves the plane at most once"
        if spec.height > MAX_ROWS:
            return f"keeps a line of at most {MAX_ROWS} rows in registers, got {spec.height}"
        if (work := self._products(spec)) > MAX_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return self._invalid(spec, device, self._least(spec, device))

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        stages = (1,) if spec.is_half else (1, 2)
        return {"channels_per_block": CHANNELS_PER_BLOCK, "staged": (0, 1), "weights_shared": (0, 1), "tiles_per_block": (1, 2, 4), "stages": stages}

    def _least(self, spec: ConvSpec, device: Device) -> LinesConfig:
        return LinesConfig(channels_per_block=1, staged=0, weights_shared=0)

    def default(self, spec: ConvSpec, device: Device) -> LinesConfig:
        fitting = self.worth_estimating(spec, device)
        return min(fitting, key=lambda trial: soft_maximum(self.estimate(spec, device, trial)), default=self._least(spec, device))

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[LinesConfig]:
        """Yields blocks of a few warps, staged: where the lanes of a warp load a diagonal each from memory, L1 lost most of it on an H200."""
        channels = [p for p in CHANNELS_PER_BLOCK if spec.channels % p == 0 and p * spec.width <= MAX_DEFAULT_THREADS]
        for number, weights in itertools.product(channels, (0, 1)):
            yield LinesConfig(number, staged=1, weights_shared=weights)

    def _products(self, spec: ConvSpec) -> int:
        """Returns the number of multiply-adds of a line: both of its parts are summed over all of it."""
        g = stencil(spec)
        inside = [1 for t in g.every for i in range(spec.height) if g.wrap or 0 <= i + t.row < spec.height]
        return len(inside) * (2 if line_slope(spec) and not g.wrap else 1)

    def _invalid(self, spec: ConvSpec, device: Device, config: LinesConfig) -> str | None:
        block = lines_geometry(spec, config)
        if reason := too_many_threads(block.threads):
            return reason
        if config.stages > 1 and not config.staged:
            return "only planes that are staged can be copied ahead: stages must be 1 where staged is 0"
        if block.weight_bytes > MAX_USE.weights:
            return f"a block would stage {block.weight_bytes} bytes of weights, at most {MAX_USE.weights}"
        if block.image_bytes > MAX_USE.staged:
            return f"a block would stage {block.image_bytes} bytes, at most {MAX_USE.staged}"
        return idle_stages(config.tiles_per_block, config.stages)

    def estimate(self, spec: ConvSpec, device: Device, config: LinesConfig) -> Mapping[str, float]:
        g, planes, block = stencil(spec), config.channels_per_block, lines_geometry(spec, config)
        pixels, threads = spec.height * spec.width, block.threads
        plane, column = np.indices((planes, spec.width)).reshape(2, -1)
        warps, live = -(-threads // WARP), len([s for t in g.every for s in t.taps])
        row = global_wavefronts(plane * pixels + column, 1)
        if config.staged:
            loads, copies = spec.height * _ALIGNED + STAGED * planes * pixels / threads, pixels / spec.width / VECTOR
        else:
            loads, copies = spec.height * row, 0.0
        if config.weights_shared:
            loads += live * shared_wavefronts(plane * spec.kernel_size, 1) + 2 * spec.kernel_size * planes / threads
        else:
            loads += live * global_wavefronts(plane * WARP, 1)
        memory = warps * (loads + _ALIGNED * spec.height * row)
        moved = spec.itemsize * planes * 2 * pixels
        others = 2 * live + (_PIXEL_OF_HALF if spec.is_half else _PIXEL) * spec.height
        waits = 2 if config.staged else max(2, spec.height / 2)  # the compiler puts off loads that it has no registers for
        tiles = config.tiles_per_block if config.stages > 1 else 1
        if tiles > 1:  # weights that are staged are copied ahead too
            waits = 2 - config.weights_shared
        work, held = ThreadWork(self._products(spec), others, copies), 2 * spec.height + _HELD
        load = BlockLoad(threads, planes * pixels, block.shared_bytes, held, memory, moved, moved, work, waits=waits, tiles=tiles)
        return clocks(nearest(device.arch), load)

    def channel_blocks(self, channels: int, config: LinesConfig) -> int:
        return channels // math.prod(parted(channels, config.channels_per_block, config.tiles_per_block))

    def stage_config(self, spec: ConvSpec, config: LinesConfig) -> StageConfig:
        return StageConfig(line=True, narrow=True, bare=not config.staged)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: LinesConfig) -> None:
        y, first = sch.get_sblock(names.Y), sch.get_sblock(names.FIRST_SUM)
        reads = [region.source.name for region in sch.get(first).reads]
        weights = sch.cache_read(first, reads.index(names.W), "shared") if config.weights_shared and names.W in reads else None
        n, c, row, line = sch.get_loops(y)
        block_c, turn, plane = in_turn(sch, c, config.channels_per_block, config.tiles_per_block, config.stages)
        sch.reorder(n, block_c, turn, plane, line, row)
        thread = sch.fuse(plane, line)
        block = sch.fuse(n, block_c)
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        sch.unroll(row)
        two = bool(line_slope(spec)) and not stencil(spec).wrap
        both = [(names.SECOND_SUM, row), (names.FIRST_SUM, row), (names.SECOND, thread), (names.FIRST, thread)]
        parts = both if two else [(names.FIRST_SUM, row), (names.FIRST, thread)]
        for name, where in [*parts, *([] if config.staged else [(names.STAGE, thread)])]:
            part = sch.get_sblock(name)
            sch.set_scope(part, 0, "local")
            sch.compute_at(part, where, preserve_unit_loops=True)
            for loop in sch.get_loops(part)[-4:]:
                sch.unroll(loop)
        threads = int(sch.get(thread).extent)
        if weights is not None:
            sch.compute_at(weights, turn, preserve_unit_loops=True)
            cooperate(sch, weights, threads, 1, around=2)
        if config.staged:
            stage = sch.get_sblock(names.STAGE)
            sch.compute_at(stage, turn, preserve_unit_loops=True)
            cooperate_by_rows(sch, stage, threads, int(sch.get(sch.get_loops(stage)[-1]).extent), around=2, unroll=not spec.is_half)
            sch.storage_align(stage, 0, 1, WARP, round_up(spec.width, VECTOR) % WARP)

    def finish(self, func: Any, spec: ConvSpec, config: LinesConfig) -> Any:
        from tvm_orient.codegen.te.conv_lines_nchw import in_place
        from tvm_orient.codegen.tir.double_buffer import pipelined

        return pipelined(in_place(func, spec))


TEMPLATE = Lines()
