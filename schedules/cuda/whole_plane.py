"""CUDA, small planes: a thread owns all outputs of a plane, so that it is known at compile time which taps land inside.

No halo exists: planes lie one after another in memory and are copied to shared memory and back as they are, by vectors, and taps
that land outside are not computed at all. A shared load is one pass for the 32 planes of a warp, since planes of odd size begin in
banks of their own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import BlockLoad, ThreadWork, clocks
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stencil, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MAX_USE, ONE_OFFSET, Config, Template
from ..tiling import most_dividing

MAX_OUTPUTS = 64  # outputs of a plane: sums are kept in registers
MAX_SOURCE = 256  # values of a plane of the source
MAX_UNROLLED = 4096  # multiply-adds of one thread
MAX_SHARED = MAX_USE.staged + MAX_USE.weights  # bytes of a block: merged angles may add what another template collects
_COPY = 4  # instructions of a copy: addresses only grow
_HELD = 24  # registers beside results and weights, as nvcc takes them


@dataclass(frozen=True)
class WholePlaneConfig(Config):
    """The decisions of `whole_plane`."""

    channels_per_block: int  #: channels of a block at most, a thread each; as many as part the channels evenly
    vector: int  #: values that a thread copies at once
    weights_shared: int  #: 1: weights pass through shared memory; 0: each thread loads its own


def _products(g: Stencil) -> int:
    """Returns the number of multiply-adds of a plane: taps that land inside, output by output."""
    return sum(len(g.reads(row, column)) for row in range(g.output[0]) for column in range(g.output[1]))


class WholePlane(Template[WholePlaneConfig]):
    """Computes conv and conv_dx of planes of at most 64 outputs and 256 inputs, any stride.

    A thread owns all outputs of a plane, so the compiler knows which taps land inside, and there is no halo: taps outside are not computed. A
    block copies its planes to shared memory, and their results back, as they lie in memory. With `weights_shared` weights are copied so as well.
    """

    name = "whole_plane"
    version = 2
    kind = "cuda"
    ops = ("conv", "conv_dx")
    config_type = WholePlaneConfig

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if len(stencil(spec).every) == 1:
            return ONE_OFFSET
        g = stencil(spec)
        outputs, source = math.prod(g.output), math.prod(g.source)
        if outputs > MAX_OUTPUTS or source > MAX_SOURCE:
            return f"for planes of at most {MAX_OUTPUTS} outputs and {MAX_SOURCE} inputs, got {outputs} and {source}"
        if (work := _products(g)) > MAX_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return self._invalid(spec, device, self._least(spec, device))

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"channels_per_block": (32, 64, 128), "vector": self._vectors(spec), "weights_shared": (0, 1)}

    def _least(self, spec: ConvSpec, device: Device) -> WholePlaneConfig:
        return WholePlaneConfig(32, self._vectors(spec)[0], weights_shared=0)

    def _threads(self, spec: ConvSpec, config: WholePlaneConfig) -> int:
        """Returns the number of threads of a block, one a plane: as many as part the channels evenly, so that a block has one image."""
        return most_dividing(spec.channels, config.channels_per_block)

    def _vectors(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the vectors that part every plane evenly, widest first: the channels of one angle may begin at any plane of a layer."""
        g = stencil(spec)
        return tuple(v for v in (4, 2, 1) if v == 1 or (not spec.is_half and all(math.prod(plane) % v == 0 for plane in (g.source, g.output))))

    def default(self, spec: ConvSpec, device: Device) -> WholePlaneConfig:
        trials = [WholePlaneConfig(channels, self._vectors(spec)[0], weights) for channels in (64, 32) for weights in (1, 0)]
        fitting = [trial for trial in trials if self._invalid(spec, device, trial) is None]
        return min(fitting, key=lambda trial: max(self.estimate(spec, device, trial).values()), default=self._least(spec, device))

    def _shared(self, spec: ConvSpec, config: WholePlaneConfig) -> int:
        """Returns the bytes of a block: source, results and weights."""
        g, weights = stencil(spec), spec.kernel_size if config.weights_shared else 0
        return self._threads(spec, config) * (math.prod(g.source) + math.prod(g.output) + weights) * DTYPES[spec.sums]

    def _invalid(self, spec: ConvSpec, device: Device, config: WholePlaneConfig) -> str | None:
        most = min(device.shared_memory, MAX_SHARED)
        if (shared := self._shared(spec, config)) > most:
            return f"a block would use {shared} bytes of shared memory, at most {most}"
        return None

    def estimate(self, spec: ConvSpec, device: Device, config: WholePlaneConfig) -> Mapping[str, float]:
        g, threads = stencil(spec), self._threads(spec, config)
        source, size, taps = math.prod(g.source), math.prod(g.output), spec.kernel_size
        live = len({s for t in g.every for s in t.taps})
        ways, warps = math.gcd(source, WARP), -(-threads // WARP)
        lines = min(WARP, taps)  # lanes read weights that lie K floats apart
        weights = 2 * taps + live * math.gcd(taps, WARP) if config.weights_shared else live * lines
        memory = warps * (2 * source + source * ways + size * math.gcd(size, WARP) + 2 * size + weights)
        copies = (source + size + (taps if config.weights_shared else 0)) / config.vector
        work = ThreadWork(_products(g), source + size + 2 * live + _COPY * copies)
        dram = spec.itemsize * threads * (source + size)
        return clocks(nearest(device.arch), BlockLoad(threads, threads * size, self._shared(spec, config), size + live + _HELD, memory, dram, dram, work))

    def channel_blocks(self, channels: int, config: WholePlaneConfig) -> int:
        return channels // most_dividing(channels, config.channels_per_block)

    def stage_config(self, spec: ConvSpec, config: WholePlaneConfig) -> StageConfig:
        return StageConfig(bare=True)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: WholePlaneConfig) -> None:
        y = sch.get_sblock(names.Y)
        reads = [region.source.name for region in sch.get(y).reads]
        staged = [(sch.cache_read(y, reads.index(names.X), "shared"), config.vector)]
        if config.weights_shared and names.W in reads:
            staged.append((sch.cache_read(y, reads.index(names.W), "shared"), 1))
        out = sch.cache_write(y, 0, "shared")
        n, c, *pixels = sch.get_loops(out)
        chunk, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), config.channels_per_block)])
        threads = int(sch.get(plane).extent)
        sch.reorder(n, chunk, plane, *pixels)
        block = sch.fuse(n, chunk)
        sch.bind(block, "blockIdx.x")
        sch.compute_at(y, block, preserve_unit_loops=True)
        *_, thread, row, column = sch.get_loops(y)
        sch.bind(thread, "threadIdx.x")
        for loop in (row, column):
            sch.unroll(loop)
        _in_line(sch, sch.fuse(plane, *sch.get_loops(out)[2:]), threads, config.vector)
        for copy, vector in staged:
            sch.compute_at(copy, block, preserve_unit_loops=True)
            _in_line(sch, sch.fuse(*sch.get_loops(copy)[1:]), threads, vector)


def _in_line(sch: Any, loop: Any, threads: int, vector: int) -> None:
    """Lets all threads of the block copy what lies in one piece, a vector each."""
    if vector > 1:
        loop, lanes = sch.split(loop, [None, vector])
        sch.vectorize(lanes)
    _, thread = sch.split(loop, [None, threads])
    sch.bind(thread, "threadIdx.x")


TEMPLATE = WholePlane()
