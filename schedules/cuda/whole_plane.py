"""CUDA, small planes: a thread owns all outputs of a plane, so that it is known at compile time which taps land inside.

No halo exists: planes lie one after another in memory and are copied to shared memory and back as they are, by vectors, and taps
that land outside are not computed at all. A shared load is one pass for the 32 planes of a warp, since planes of odd size begin in
banks of their own.
"""

from __future__ import annotations

import math
from typing import Any

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import clocks
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stencil, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MOST, ONE_OFFSET, Decisions, Template
from ..tiling import most_dividing

_MOST_OUTPUTS, _MOST_SOURCE = 64, 256  # values of a plane: sums are kept in registers
_MOST_UNROLLED = 4096  # multiply-adds of one thread
_MOST_SHARED = MOST.staged + MOST.weights  # bytes of a block: merged angles may add what another template collects
_COPY = 4  # instructions of a copy: addresses only grow


def _products(g: Stencil) -> int:
    """Multiply-adds of a plane: taps that land inside, output by output."""
    return sum(len(g.reads(row, column)) for row in range(g.output[0]) for column in range(g.output[1]))


class WholePlane(Template):
    """Computes conv and conv_dx of planes of at most 64 outputs and 256 inputs, any stride.

    A thread owns all outputs of a plane, so the compiler knows which taps land inside, and there is no halo: taps outside are not computed. A
    block copies its planes to shared memory, and their results back, as they lie in memory. With `weights_shared` weights are copied so as well.
    """

    name, version, kind, ops = "whole_plane", 1, "cuda", ("conv", "conv_dx")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if len(stencil(spec).every) == 1:
            return ONE_OFFSET
        g = stencil(spec)
        outputs, source = math.prod(g.output), math.prod(g.source)
        if outputs > _MOST_OUTPUTS or source > _MOST_SOURCE:
            return f"for planes of at most {_MOST_OUTPUTS} outputs and {_MOST_SOURCE} inputs, got {outputs} and {source}"
        if (work := _products(g)) > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        return self._invalid(spec, device, self._least(spec))

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"planes": (32, 64, 128), "vector": self._vectors(spec), "weights_shared": (0, 1)}

    def _least(self, spec: ConvSpec) -> Decisions:
        return {"planes": 32, "vector": self._vectors(spec)[0], "weights_shared": 0}

    def _threads(self, spec: ConvSpec, planes: int) -> int:
        """Planes of a block: what divides the channels, so that a block has one image."""
        return most_dividing(spec.channels, planes)

    def _vectors(self, spec: ConvSpec) -> tuple[int, ...]:
        """Vectors that part every plane evenly, widest first: the channels of one angle may begin at any plane of a layer."""
        g = stencil(spec)
        return tuple(v for v in (4, 2, 1) if v == 1 or (spec.dtype == "float32" and all(math.prod(plane) % v == 0 for plane in (g.source, g.output))))

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        trials = [{"planes": p, "vector": self._vectors(spec)[0], "weights_shared": w} for p in (64, 32) for w in (1, 0)]
        fitting = [trial for trial in trials if self._invalid(spec, device, trial) is None]
        return min(fitting, key=lambda trial: max(self.estimate(spec, device, trial).values()), default=self._least(spec))

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Bytes of a block: source, results and weights."""
        g, threads = stencil(spec), self._threads(spec, decisions["planes"])
        weights = spec.kernel_size if decisions["weights_shared"] else 0
        return threads * (math.prod(g.source) + math.prod(g.output) + weights) * DTYPES[spec.sums]

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        if (shared := self._shared(spec, decisions)) > min(device.shared_memory, _MOST_SHARED):
            return f"a block would use {shared} bytes of shared memory, at most {min(device.shared_memory, _MOST_SHARED)}"
        return None

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 outputs by resource, before anything is compiled."""
        g, figure, d = stencil(spec), nearest(device.arch), decisions
        source, size, taps, threads = math.prod(g.source), math.prod(g.output), spec.kernel_size, self._threads(spec, d["planes"])
        live = len({s for t in g.every for s in t.taps})
        ways, products, warps = math.gcd(source, WARP), _products(g), -(-threads // WARP)
        lines = min(WARP, taps)  # lanes read weights that lie K floats apart
        weights = 2 * taps + live * math.gcd(taps, WARP) if d["weights_shared"] else live * lines
        memory = warps * (2 * source + source * ways + size * math.gcd(size, WARP) + 2 * size + weights)
        copies = (source + size + (taps if d["weights_shared"] else 0)) / d["vector"]
        others = source + size + 2 * live + _COPY * copies
        dram = spec.itemsize * threads * (source + size)
        return clocks(figure, threads, threads * size, self._shared(spec, d), size + live + 24, memory, products, others, 0, dram, dram)

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(bare=True)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y = sch.get_sblock("y")
        reads = [region.source.name for region in sch.get(y).reads]
        staged = [(sch.cache_read(y, reads.index("x"), "shared"), decisions["vector"])]
        if decisions["weights_shared"] and "w" in reads:
            staged.append((sch.cache_read(y, reads.index("w"), "shared"), 1))
        out = sch.cache_write(y, 0, "shared")
        n, c, *pixels = sch.get_loops(out)
        chunk, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), decisions["planes"])])
        threads = int(sch.get(plane).extent)
        sch.reorder(n, chunk, plane, *pixels)
        block = sch.fuse(n, chunk)
        sch.bind(block, "blockIdx.x")
        sch.compute_at(y, block, preserve_unit_loops=True)
        *_, thread, row, column = sch.get_loops(y)
        sch.bind(thread, "threadIdx.x")
        for loop in (row, column):
            sch.unroll(loop)
        _in_line(sch, sch.fuse(plane, *sch.get_loops(out)[2:]), threads, decisions["vector"])
        for copy, vector in staged:
            sch.compute_at(copy, block, preserve_unit_loops=True)
            _in_line(sch, sch.fuse(*sch.get_loops(copy)[1:]), threads, vector)


def _in_line(sch: Any, loop: Any, threads: int, vector: int) -> None:
    """All threads of the block copy what lies in one piece, a vector each."""
    if vector > 1:
        loop, lanes = sch.split(loop, [None, vector])
        sch.vectorize(lanes)
    _, thread = sch.split(loop, [None, threads])
    sch.bind(thread, "threadIdx.x")


TEMPLATE = WholePlane()
