"""CUDA: no staging and no barrier; a thread loads what its small patch of outputs reads through the L1 cache.

For few taps, where a halo in shared memory costs more than it saves. The box that a patch reaches is staged in local scope and
unrolled, so that it lives in registers and nvcc drops the values that no tap reads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import BlockLoad, ThreadWork, clocks, global_wavefronts, soft_maximum
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MAX_THREADS, Config, Template
from ..tiling import most_dividing, too_many_threads
from .costs import SECTOR
from .reach import pixels_read, too_far

MAX_TERMS = 64  # live terms of one output
MAX_UNROLLED = 1024  # multiply-adds of one thread
MAX_STAGED = 1024  # values in the box around what a patch reads
MAX_READ = 96  # values that an untuned patch reads: nvcc loads most of them first
MAX_OUTPUTS = 32  # outputs of an untuned patch
MAX_DEFAULT_THREADS = 256  # threads of an untuned block
MIN_DEFAULT_THREADS = 64  # threads of an untuned block
PATCHES_H = (1, 2, 4, 7, 8, 14, 28, 56)  # patches of a block, one below the other
CHANNELS_PER_BLOCK = (1, 2, 4, 8, 16)  # channels of a block
_SIDES = (1, 2, 4, 7, 8)  # rows or columns of a patch
_TEST = 6  # instructions of a load that may lie outside the plane: its address and its tests


@dataclass(frozen=True)
class DirectConfig(Config):
    """The decisions of `direct`."""

    patch_h: int  #: rows of outputs of a thread's patch
    patch_w: int  #: columns of outputs of a thread's patch
    patches_h: int  #: patches of a block, one below the other
    channels_per_block: int  #: channels of a block


class Direct(Template[DirectConfig]):
    """Computes conv and conv_dx of few taps, any stride, without shared memory and without a barrier.

    A thread owns `patch_h` x `patch_w` outputs and loads what they read into registers, through the L1 cache; what lies outside the plane is
    tested for. At most 64 live taps per output and 1024 multiply-adds a thread.
    """

    name = "direct"
    version = 2
    kind = "cuda"
    ops = ("conv", "conv_dx")
    config_type = DirectConfig

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
        sides = {"patch_h": self._sides(spec, 0), "patch_w": self._sides(spec, 1)}
        return {**sides, "patches_h": PATCHES_H, "channels_per_block": CHANNELS_PER_BLOCK}

    def _least(self, spec: ConvSpec, device: Device) -> DirectConfig:
        widths, across = self._sides(spec, 1), stencil(spec).output[1]
        narrow = next((w for w in widths if -(-across // w) <= MAX_THREADS), widths[-1])
        return DirectConfig(self._sides(spec, 0)[0], narrow, patches_h=1, channels_per_block=1)

    def default(self, spec: ConvSpec, device: Device) -> DirectConfig:
        best = self._least(spec, device)
        least = soft_maximum(self.estimate(spec, device, best))
        height, width = stencil(spec).output
        for patch_h, patch_w in itertools.product(self._sides(spec, 0), self._sides(spec, 1)):
            if patch_h >= 2 * height or patch_w >= 2 * width or patch_h * patch_w > MAX_OUTPUTS or len(pixels_read(spec, patch_h, patch_w)) > MAX_READ:
                continue
            rows = next((r for r in PATCHES_H if r * patch_h >= height), PATCHES_H[-1])
            across = rows * -(-width // patch_w)
            channels = next((p for p in CHANNELS_PER_BLOCK if spec.channels % p == 0 and p * across >= MIN_DEFAULT_THREADS), 1)
            trial = DirectConfig(patch_h, patch_w, rows, channels)
            if _threads(spec, trial) <= MAX_DEFAULT_THREADS and self._invalid(spec, device, trial) is None:
                score = soft_maximum(self.estimate(spec, device, trial))
                if score < least:
                    best, least = trial, score
        return best

    def _invalid(self, spec: ConvSpec, device: Device, config: DirectConfig) -> str | None:
        if reason := too_many_threads(_threads(spec, config)):
            return reason
        work = max(len(t) for t in stencil(spec).terms.values()) * config.patch_h * config.patch_w
        if work > MAX_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return too_far(spec, config.patch_h, config.patch_w, MAX_STAGED)

    def estimate(self, spec: ConvSpec, device: Device, config: DirectConfig) -> Mapping[str, float]:
        g, threads, planes = stencil(spec), _threads(spec, config), config.channels_per_block
        (height, width), area = g.output, config.patch_h * config.patch_w
        plane, row, column = np.indices((planes, config.patches_h, -(-width // config.patch_w))).reshape(3, -1)
        down, across = config.patch_h // g.phases[0] * g.step[0], config.patch_w // g.phases[1] * g.step[1]
        first = plane * math.prod(g.source) + row * down * g.source[1] + column * across
        stored = plane * (height * width) + row * config.patch_h * width + column * config.patch_w
        read, weights = len(pixels_read(spec, config.patch_h, config.patch_w)), sum(len(t.taps) for t in g.every)
        band = min(height, config.patches_h * config.patch_h)
        outputs, warps = planes * band * width, -(-threads // WARP)
        memory = warps * (read * global_wavefronts(first, 1) + area * global_wavefronts(stored, 1) + weights * max(1.0, WARP * planes / threads))
        work = ThreadWork(area * sum(map(len, g.terms.values())) / len(g.terms), read * _TEST + 2 * weights + 2 * area)
        fetched = planes * min((band - 1) * g.step[0] // g.phases[0] + g.span(), g.source[0]) * g.source[1]
        dram = spec.itemsize * outputs * (1 + math.prod(g.source) / (height * width))
        l2 = spec.itemsize * (fetched + min(float(SECTOR), config.patch_w) * outputs)
        return clocks(nearest(device.arch), BlockLoad(threads, outputs, 0, read + weights + area, memory, dram, l2, work))

    def channel_blocks(self, channels: int, config: DirectConfig) -> int:
        return channels // most_dividing(channels, config.channels_per_block)

    def stage_config(self, spec: ConvSpec, config: DirectConfig) -> StageConfig:
        return StageConfig(sweep=True, narrow=True)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: DirectConfig) -> None:
        y, stage = sch.get_sblock(names.Y), sch.get_sblock(names.STAGE)
        n, c, h, w = sch.get_loops(y)
        block_c, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), config.channels_per_block)])
        band, row, pixel_h = sch.split(h, [None, config.patches_h, config.patch_h])
        column, pixel_w = sch.split(w, [None, config.patch_w])
        sch.reorder(n, block_c, band, plane, row, column, pixel_h, pixel_w)
        sch.bind(sch.fuse(n, block_c, band), "blockIdx.x")
        thread = sch.fuse(plane, row, column)
        sch.bind(thread, "threadIdx.x")
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        for loop in (*sch.get_loops(stage)[-4:], pixel_h, pixel_w):
            sch.unroll(loop)


def _threads(spec: ConvSpec, config: DirectConfig) -> int:
    """Returns the number of threads of a block, one a patch."""
    return config.channels_per_block * config.patches_h * -(-stencil(spec).output[1] // config.patch_w)


TEMPLATE = Direct()
