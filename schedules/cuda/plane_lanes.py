"""CUDA: the lanes of a warp are planes, and a warp owns some columns of them that lean along the taps, so that all its taps are known at compile time.

`whole_plane` for planes that are too large for one thread. No halo: planes are copied as they lie in memory, and taps that land outside are
not computed at all. A value in shared memory is one wavefront for the planes of a warp, which begin in banks of their own, and serves
outputs that lie along the line in one thread.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import BlockLoad, ThreadWork, clocks
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import held
from tvm_orient.problem.device import Device
from tvm_orient.problem.shear import shear_of
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MAX_USE, ONE_OFFSET, Config, Template
from ..default import least_estimate
from ..staging import by_rows, cooperate, cooperate_by_rows
from ..tiling import divisors, most_dividing, too_many_threads  # fmt: skip

MAX_OUTPUTS = 64  # outputs of a thread, whose sums are in registers
MAX_SOURCE = 256  # values of a plane of the source
MAX_UNROLLED = 4096  # multiply-adds of a plane
MAX_SHARED = MAX_USE.staged + MAX_USE.weights  # bytes of a block: merged angles may add what another template collects
CHANNELS_PER_BLOCK = (16, 32, 64)  # channels of a block
_BANK = 4  # bytes of a bank of shared memory
_COPY = 4  # instructions of a copy: addresses only grow
_UNALIGNED = 1.9  # wavefronts of a warp's copy where planes are no whole lines, so that it begins anywhere


@dataclass(frozen=True)
class PlaneLanesConfig(Config):
    """The decisions of `plane_lanes`."""

    channels_per_block: int  #: channels of a block at most, a lane each; as many as part the channels evenly
    warps_per_plane: int  #: warps that part a plane, by columns that lean along the taps
    vector: int  #: values that a thread copies at once
    weights_shared: int  #: 1: weights pass through shared memory; 0: each thread loads its own


@dataclass(frozen=True)
class _Work:
    """The cost of a plane in all of its warps."""

    products: int  #: multiply-adds
    loads: int  #: of shared memory
    held: int  #: values that one warp holds at once, at most


@dataclass(frozen=True)
class PlaneLanesGeometry:
    """A block of `plane_lanes`."""

    planes: int  #: as many as part the channels evenly, so that a block has one image
    threads: int  #: whole warps for each part of the planes, so that none has two
    shared_bytes: int  #: source, results and weights


def plane_lanes_geometry(spec: ConvSpec, config: PlaneLanesConfig) -> PlaneLanesGeometry:
    """Returns the block of a config."""
    g, planes = stencil(spec), most_dividing(spec.channels, config.channels_per_block)
    weights = spec.kernel_size if config.weights_shared else 0
    shared = planes * (_pitch(spec, g.source) + _pitch(spec, g.output) + weights) * spec.itemsize
    return PlaneLanesGeometry(planes, round_up(planes, WARP) * config.warps_per_plane, shared)


class PlaneLanes(Template[PlaneLanesConfig]):
    """Computes conv and conv_dx as `whole_plane` does, for planes of at most 256 inputs, such as 14x14, any stride.

    The lanes of a warp are planes, and several warps own the outputs of a plane between them: some of its columns each (rows, where the line is
    shallow), which lean along the line of the taps and leave the plane at one side to come back at the other. Each warp takes a branch of its own
    (`tvm_orient/codegen/tir/warp_specialize.py`), so that all its taps are known: none outside the plane is computed, and there is no halo. What
    neighbouring outputs along a line read is what the thread has already, so that two columns of 14x14 need 1 to 1.5 values from shared memory
    for each output, at any angle. Planes lie an odd number of words apart, so that a load of 32 planes is one wavefront.

    Images and results are staged as they lie in memory, which is why it is for half precision above all: in float32 a 14x14 plane takes twice the
    room, and half the lanes would idle. The code of a block is that of a whole plane, a few thousand multiply-adds, parted among its warps; what
    the instruction cache makes of that the model does not know.
    """

    name = "plane_lanes"
    version = 2
    kind = "cuda"
    ops = ("conv", "conv_dx")
    config_type = PlaneLanesConfig

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if len(stencil(spec).every) == 1:
            return ONE_OFFSET
        g = stencil(spec)
        if math.prod(g.source) > MAX_SOURCE:
            return f"for planes of at most {MAX_SOURCE} inputs, got {math.prod(g.source)}"
        if not self._warps(spec):
            return f"no number of warps from 2 to {WARP} parts its columns into at most {MAX_OUTPUTS} outputs each"
        least = self._least(spec, device)
        if (work := _work(spec, least.warps_per_plane).products) > MAX_UNROLLED:
            return f"a block would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return self._invalid(spec, device, least)

    def _warps(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the warps that may part a plane: each owns as many leaning columns."""
        g = stencil(spec)
        across = g.output[shear_of(spec).axis]
        return tuple(p for p in divisors(across, WARP) if p > 1 and math.prod(g.output) // p <= MAX_OUTPUTS)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {
            "channels_per_block": CHANNELS_PER_BLOCK, "warps_per_plane": self._warps(spec), "vector": self._vectors(spec), "weights_shared": (0, 1),
        }  # fmt: skip

    def _vectors(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the values of half precision that are copied at once, most first: whole words, of rows of whole words."""
        g, packed = stencil(spec), spec.values_per_word
        return (packed, 1) if packed > 1 and g.source[1] % packed == g.output[1] % packed == 0 else (1,)

    def _least(self, spec: ConvSpec, device: Device) -> PlaneLanesConfig:
        return PlaneLanesConfig(CHANNELS_PER_BLOCK[0], self._warps(spec)[0], self._vectors(spec)[0], weights_shared=0)

    def default(self, spec: ConvSpec, device: Device) -> PlaneLanesConfig:
        return least_estimate(self, spec, device)

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[PlaneLanesConfig]:
        """Yields all configs but narrower copies; staged weights first."""
        for channels, warps, weights in itertools.product(CHANNELS_PER_BLOCK, self._warps(spec), (1, 0)):
            yield PlaneLanesConfig(channels, warps, self._vectors(spec)[0], weights)

    def _invalid(self, spec: ConvSpec, device: Device, config: PlaneLanesConfig) -> str | None:
        block, most = plane_lanes_geometry(spec, config), min(device.shared_memory, MAX_SHARED)
        if reason := too_many_threads(block.threads):
            return reason
        if block.shared_bytes > most:
            return f"a block would use {block.shared_bytes} bytes of shared memory, at most {most}"
        return None

    def unrolled(self, spec: ConvSpec, config: PlaneLanesConfig) -> int:
        return _work(spec, config.warps_per_plane).products // config.warps_per_plane

    def estimate(self, spec: ConvSpec, device: Device, config: PlaneLanesConfig) -> Mapping[str, float]:
        g, block, parts, own = stencil(spec), plane_lanes_geometry(spec, config), config.warps_per_plane, _work(spec, config.warps_per_plane)
        planes, threads, size, live = block.planes, block.threads, math.prod(g.output), len({s for t in g.every for s in t.taps})
        warps, pixels = threads // parts // WARP, math.prod(g.source) + math.prod(g.output)
        weights = live * (1 if config.weights_shared else min(WARP, planes))
        each = 1.0 if size * spec.itemsize % (WARP * _BANK) == 0 else _UNALIGNED  # wavefronts of a warp's copy
        memory = warps * (own.loads + size + parts * weights) + 2 * each * planes * pixels / config.vector / WARP
        turns = sum(by_rows(planes, height, width // config.vector, threads)[2] for height, width in (g.source, g.output))
        halves = own.loads + live * parts + size if spec.is_half else 0  # values that are converted
        others = (own.loads + live * parts + size + halves) / parts
        dram = spec.itemsize * planes * pixels
        work = ThreadWork(own.products / parts, others, turns, _COPY, branches=parts)
        return clocks(nearest(device.arch), BlockLoad(threads, planes * size, block.shared_bytes, own.held + live, memory, dram, dram, work))

    def channel_blocks(self, channels: int, config: PlaneLanesConfig) -> int:
        return channels // most_dividing(channels, config.channels_per_block)

    def stage_config(self, spec: ConvSpec, config: PlaneLanesConfig) -> StageConfig:
        return StageConfig(bare=True, shear=shear_of(spec))

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: PlaneLanesConfig) -> None:
        own, y, shear, vector = sch.get_sblock(names.OWN), sch.get_sblock(names.Y), shear_of(spec), config.vector
        reads = [region.source.name for region in sch.get(own).reads]
        images, weights = sch.cache_read(own, reads.index(names.X), "shared"), None
        if config.weights_shared and names.W in reads:
            weights = sch.cache_read(own, reads.index(names.W), "shared")
        sch.set_scope(own, 0, "shared")
        n, c, *_ = sch.get_loops(y)
        chunk, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), config.channels_per_block)])
        block = sch.fuse(n, chunk)
        sch.bind(block, "blockIdx.x")
        sch.add_unit_loop(plane)
        sch.compute_at(own, block, preserve_unit_loops=True)
        *_, own_plane, row, column = sch.get_loops(own)
        _, lane = sch.split(own_plane, [None, round_up(int(sch.get(own_plane).extent), WARP)])
        part, inner = sch.split((row, column)[shear.axis], [config.warps_per_plane, None])
        pixels = (column, inner) if shear.axis == 0 else (row, inner)
        sch.reorder(part, lane, *pixels)
        thread = sch.fuse(part, lane)
        threads = int(sch.get(thread).extent)
        sch.bind(thread, "threadIdx.x")
        for loop in pixels:
            sch.unroll(loop)
        for copy in (images, weights):
            if copy is not None:
                sch.compute_at(copy, block, preserve_unit_loops=True)
        for copy, scope in ((images, "shared"), (y, "global")):
            if vector > 1:
                sch.split(sch.get_loops(copy)[-1], [None, vector])
            cooperate_by_rows(sch, copy, threads, vector, scope=scope)
        for buffer in (images, own):
            sch.storage_align(buffer, 0, 1, *_apart(spec))
        if weights is not None:
            cooperate(sch, weights, threads, 1)

    def finish(self, func: Any, spec: ConvSpec, config: PlaneLanesConfig) -> Any:
        from tvm_orient.codegen.tir.restore_layout import in_place
        from tvm_orient.codegen.tir.warp_specialize import warp_specialized

        return warp_specialized(in_place(func, shear_of(spec), stencil(spec).output), config.warps_per_plane)


def _apart(spec: ConvSpec) -> tuple[int, int]:
    """Planes in shared memory lie an odd number of words apart: so many values but for multiples of the first."""
    return (2, 1) if spec.itemsize == _BANK else (4, 2)


def _pitch(spec: ConvSpec, plane: tuple[int, int]) -> int:
    factor, odd = _apart(spec)
    return round_up(math.prod(plane) - odd, factor) + odd


@functools.lru_cache(maxsize=1024)
def _work(spec: ConvSpec, parts: int) -> _Work:
    g, shear = stencil(spec), shear_of(spec)
    along, across = g.output[1 - shear.axis], g.output[shear.axis] // parts
    own = []
    for part in range(parts):
        where = []
        for i, v in itertools.product(range(along), range(part * across, (part + 1) * across)):
            row, column = shear.place(g.output, *((i, v) if shear.axis else (v, i)))
            where.append(np.array([(y, 0, x) for y, x in g.reads(row, column)], np.int64).reshape(-1, 3))
        own.append(held(where, 1))
    return _Work(sum(o.products for o in own), sum(o.loads[1] for o in own), max(o.alive for o in own))


TEMPLATE = PlaneLanes()
