"""CUDA: the lanes of a warp are planes, and a warp owns some columns of them that lean along the taps, so that all its taps are known at compile time.

`whole_plane` for planes that are too large for one thread. No halo: planes are copied as they lie in memory, and taps that land outside are
not computed at all. A value in shared memory is one pass for the planes of a warp, which begin in banks of their own, and serves
outputs that lie along the line in one thread.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import clocks
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import held
from tvm_orient.problem.device import Device
from tvm_orient.problem.shear import shear_of
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MOST, ONE_OFFSET, Decisions, Template
from ..default import least_estimate
from ..staging import by_rows, cooperate, cooperate_by_rows
from ..tiling import divisors, most_dividing

_MOST_OUTPUTS, _MOST_SOURCE = 64, 256  # of a thread, whose sums are in registers; of a plane
_MOST_UNROLLED = 4096  # multiply-adds of a plane
_MOST_SHARED = MOST.staged + MOST.weights  # bytes of a block: merged angles may add what another template collects
_BANK = 4  # bytes
_COPY = 4  # instructions of a copy: addresses only grow


class _Work(NamedTuple):
    """Of all warps of a plane: multiply-adds, loads, and the most values that one holds at once."""

    products: int
    loads: int
    held: int


class PlaneLanes(Template):
    """Computes conv and conv_dx as `whole_plane` does, for planes of at most 256 inputs, such as 14x14, any stride.

    The lanes of a warp are planes, and several warps own the outputs of a plane between them: some of its columns each (rows, where the line is
    shallow), which lean along the line of the taps and leave the plane at one side to come back at the other. Each warp takes a branch of its own
    (`tvm_orient/codegen/tir/warp_specialize.py`), so that all its taps are known: none outside the plane is computed, and there is no halo. What
    neighbouring outputs along a line read is what the thread has already, so that two columns of 14x14 need 1 to 1.5 values from shared memory
    for each output, at any angle. Planes lie an odd number of words apart, so that a load of 32 planes is one pass.

    Images and results are staged as they lie in memory, which is why it is for half precision above all: in float32 a 14x14 plane takes twice the
    room, and half the lanes would idle. The code of a block is that of a whole plane, a few thousand multiply-adds, parted among its warps; what
    the instruction cache makes of that the model does not know.
    """

    name, version, kind, ops = "plane_lanes", 1, "cuda", ("conv", "conv_dx")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if len(stencil(spec).every) == 1:
            return ONE_OFFSET
        g = stencil(spec)
        if math.prod(g.source) > _MOST_SOURCE:
            return f"for planes of at most {_MOST_SOURCE} inputs, got {math.prod(g.source)}"
        if not self._parts(spec):
            return f"no number of warps from 2 to {WARP} parts its columns into at most {_MOST_OUTPUTS} outputs each"
        least = self._least(spec, device)
        if (work := _work(spec, least["parts"]).products) > _MOST_UNROLLED:
            return f"a block would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        return self._invalid(spec, device, least)

    def _parts(self, spec: ConvSpec) -> tuple[int, ...]:
        """Warps that may part a plane: each owns as many leaning columns."""
        g = stencil(spec)
        across = g.output[shear_of(spec).axis]
        return tuple(p for p in divisors(across, WARP) if p > 1 and math.prod(g.output) // p <= _MOST_OUTPUTS)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"planes": (16, 32, 64), "parts": self._parts(spec), "vector": self._vectors(spec), "weights_shared": (0, 1)}

    def _vectors(self, spec: ConvSpec) -> tuple[int, ...]:
        """Values of half precision that are copied at once, most first: whole words, of rows of whole words."""
        g = stencil(spec)
        return (2, 1) if spec.itemsize < _BANK and g.source[1] % 2 == g.output[1] % 2 == 0 else (1,)

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        return {"planes": 16, "parts": self._parts(spec)[0], "vector": self._vectors(spec)[0], "weights_shared": 0}

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        return dict(least_estimate(self, spec, device))

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """All but narrower copies; staged weights first."""
        knobs = self.knobs(spec, device)
        for values in itertools.product(knobs["planes"], knobs["parts"], knobs["vector"][:1], (1, 0)):
            yield dict(zip(knobs, values, strict=True))

    def _planes(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Planes of a block: what divides the channels, so that a block has one image."""
        return most_dividing(spec.channels, decisions["planes"])

    def _threads(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Whole warps for each part, so that none has two."""
        return round_up(self._planes(spec, decisions), WARP) * decisions["parts"]

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Bytes of a block: source, results and weights."""
        g = stencil(spec)
        weights = spec.kernel_size if decisions["weights_shared"] else 0
        return self._planes(spec, decisions) * (_pitch(spec, g.source) + _pitch(spec, g.output) + weights) * spec.itemsize

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        if (threads := self._threads(spec, decisions)) > 1024:
            return f"a block would have {threads} threads, at most 1024"
        if (shared := self._shared(spec, decisions)) > min(device.shared_memory, _MOST_SHARED):
            return f"a block would use {shared} bytes of shared memory, at most {min(device.shared_memory, _MOST_SHARED)}"
        return None

    def unrolled(self, spec: ConvSpec, decisions: Decisions) -> int:
        return _work(spec, decisions["parts"]).products // decisions["parts"]

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 outputs by resource, before anything is compiled."""
        g, figure, d = stencil(spec), nearest(device.arch), decisions
        planes, parts, threads, work = self._planes(spec, d), d["parts"], self._threads(spec, d), _work(spec, d["parts"])
        size, warps, live = math.prod(g.output), threads // parts // WARP, len({s for t in g.every for s in t.taps})
        weights = live * (1 if d["weights_shared"] else min(WARP, planes))
        pixels = math.prod(g.source) + size
        each = 1.0 if size * spec.itemsize % (WARP * _BANK) == 0 else 1.9  # passes of a warp's copy: of planes that are no whole lines, it begins anywhere
        memory = warps * (work.loads + size + parts * weights) + 2 * each * planes * pixels / d["vector"] / WARP
        turns = sum(by_rows(planes, height, width // d["vector"], threads)[2] for height, width in (g.source, g.output))
        halves = work.loads + live * parts + size if spec.itemsize < _BANK else 0  # that are converted
        others = (work.loads + live * parts + size + halves) / parts
        dram = spec.itemsize * planes * pixels
        shared, alive = self._shared(spec, d), work.held + live
        return clocks(figure, threads, planes * size, shared, alive, memory, work.products / parts, others, turns, dram, dram, _COPY, branches=parts)

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(bare=True, lean=shear_of(spec))

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        own, y, lean, vector = sch.get_sblock("own"), sch.get_sblock("y"), shear_of(spec), decisions["vector"]
        reads = [region.source.name for region in sch.get(own).reads]
        images, weights = sch.cache_read(own, reads.index("x"), "shared"), None
        if decisions["weights_shared"] and "w" in reads:
            weights = sch.cache_read(own, reads.index("w"), "shared")
        sch.set_scope(own, 0, "shared")
        n, c, *_ = sch.get_loops(y)
        chunk, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), decisions["planes"])])
        block = sch.fuse(n, chunk)
        sch.bind(block, "blockIdx.x")
        sch.add_unit_loop(plane)
        sch.compute_at(own, block, preserve_unit_loops=True)
        *_, own_plane, row, column = sch.get_loops(own)
        _, lane = sch.split(own_plane, [None, round_up(int(sch.get(own_plane).extent), WARP)])
        part, inner = sch.split((row, column)[lean.axis], [decisions["parts"], None])
        pixels = (column, inner) if lean.axis == 0 else (row, inner)
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

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        from tvm_orient.codegen.tir.restore_layout import in_place
        from tvm_orient.codegen.tir.warp_specialize import by_warp

        return by_warp(in_place(func, shear_of(spec), stencil(spec).output), decisions["parts"])


def _apart(spec: ConvSpec) -> tuple[int, int]:
    """Planes in shared memory lie an odd number of words apart: so many values but for multiples of the first."""
    return (2, 1) if spec.itemsize == _BANK else (4, 2)


def _pitch(spec: ConvSpec, plane: tuple[int, int]) -> int:
    factor, odd = _apart(spec)
    return round_up(math.prod(plane) - odd, factor) + odd


@functools.lru_cache(maxsize=1024)
def _work(spec: ConvSpec, parts: int) -> _Work:
    g, lean = stencil(spec), shear_of(spec)
    along, across = g.output[1 - lean.axis], g.output[lean.axis] // parts
    own = []
    for part in range(parts):
        where = []
        for i, v in itertools.product(range(along), range(part * across, (part + 1) * across)):
            row, column = lean.place(g.output, *((i, v) if lean.axis else (v, i)))
            where.append(np.array([(y, 0, x) for y, x in g.reads(row, column)], np.int64).reshape(-1, 3))
        own.append(held(where, 1))
    return _Work(sum(o.products for o in own), sum(o.loads[1] for o in own), max(o.alive for o in own))


TEMPLATE = PlaneLanes()
