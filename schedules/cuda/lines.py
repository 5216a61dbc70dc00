"""CUDA: a thread owns a line of the plane along the taps: a column, or a diagonal that leaves the plane at one side and comes back at the other.

For taps on a line of whole slope (45, 90 and 135 degrees). Every pixel belongs to one thread, which loads it once, in rows that
neighbouring lanes share, and keeps it in a register for all its taps: no halo. With `staged` the planes pass through shared memory as they
lie, so that one wait serves all loads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import clocks, passes, soft_maximum
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.shear import line_slope
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MOST, ONE_TILE, Decisions, Template
from ..staging import cooperate, cooperate_by_rows, in_turn
from ..tiling import idle_stages

_VECTOR = 4
_MOST_ROWS = 64  # of a plane: all pixels of a line are kept in registers
_MOST_UNROLLED = 4096  # multiply-adds of one thread
_MOST_THREADS = 128  # of an untuned block
_HELD = 16  # registers beside the pixels of a line and its results, as nvcc takes them
_PIXEL = 6  # instructions of a pixel beside its multiply-adds: address, load, store and the side that it is on
_PIXEL_OF_HALF = 12  # the same with conversions


class Lines(Template):
    """Computes conv and conv_dx with stride 1 for taps on a line of whole slope: 45, 90 and 135 degrees.

    A thread owns a line of the plane along the taps. Taken modulo the width, the lines that begin in the top row hold every pixel once, so
    nothing is read twice and there is no halo; K multiply-adds need one value more for each output, not K. A diagonal leaves the plane at one
    side and comes back at the other. Its two parts are summed apart, which doubles the multiply-adds and still leaves them below DRAM. A block
    may pass over several tiles with two `stages`, as in `shared_patch`. Up to 64 rows.
    """

    name, version, kind, ops = "lines", 2, "cuda", ("conv", "conv_dx")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if line_slope(spec) is None:
            return "for stride 1, and taps on a line of whole slope that leaves the plane at most once"
        if spec.height > _MOST_ROWS:
            return f"keeps a line of at most {_MOST_ROWS} rows in registers, got {spec.height}"
        if (work := self._products(spec)) > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        return self._invalid(spec, device, {"planes": 1, "staged": 0, "weights_shared": 0, **ONE_TILE})

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        stages = (1, 2) if spec.dtype == "float32" else (1,)
        return {"planes": (1, 2, 4, 8, 16, 32), "staged": (0, 1), "weights_shared": (0, 1), "turns": (1, 2, 4), "stages": stages}

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        fitting = self.worth_estimating(spec, device)
        least = {"planes": 1, "staged": 0, "weights_shared": 0, **ONE_TILE}
        return min(fitting, key=lambda trial: soft_maximum(self.estimate(spec, device, trial)), default=least)

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """Blocks of a few warps, staged: where the lanes of a warp load a diagonal each from memory, L1 lost most of it on an H200."""
        planes = [p for p in self.knobs(spec, device)["planes"] if spec.channels % p == 0 and p * spec.width <= _MOST_THREADS]
        for number, weights in itertools.product(planes, (0, 1)):
            yield {"planes": number, "staged": 1, "weights_shared": weights, **ONE_TILE}

    def _products(self, spec: ConvSpec) -> int:
        """Multiply-adds of a line: both of its parts are summed over all of it."""
        g = stencil(spec)
        inside = [1 for t in g.every for i in range(spec.height) if g.wrap or 0 <= i + t.row < spec.height]
        return len(inside) * (2 if line_slope(spec) and not g.wrap else 1)

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Bytes of the staged planes and weights of all stages; consecutive lanes read consecutive banks, from one plane to the next as well."""
        ahead = round_up(spec.width, _VECTOR) % WARP
        plane = round_up(spec.height * spec.width - ahead, WARP) + ahead if decisions["staged"] else 0
        return decisions["stages"] * decisions["planes"] * (plane + self._weights(spec, decisions)) * DTYPES[spec.sums]

    def _weights(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Staged weights of a plane."""
        return spec.kernel_size if decisions["weights_shared"] else 0

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        if (threads := decisions["planes"] * spec.width) > 1024:
            return f"a block would have {threads} threads, at most 1024"
        if decisions["stages"] > 1 and not decisions["staged"]:
            return "only planes that are staged can be copied ahead: stages must be 1 where staged is 0"
        if (weights := decisions["stages"] * decisions["planes"] * self._weights(spec, decisions) * DTYPES[spec.sums]) > MOST.weights:
            return f"a block would stage {weights} bytes of weights, at most {MOST.weights}"
        if (staged := self._shared(spec, decisions) - weights) > MOST.staged:
            return f"a block would stage {staged} bytes, at most {MOST.staged}"
        return idle_stages(decisions)

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 outputs by resource, before anything is compiled."""
        g, figure, planes = stencil(spec), nearest(device.arch), decisions["planes"]
        pixels, threads = spec.height * spec.width, planes * spec.width
        plane, column = np.indices((planes, spec.width)).reshape(2, -1)
        warps, live = -(-threads // WARP), len([s for t in g.every for s in t.taps])
        row = passes(plane * pixels + column, 1, lines=True)
        if decisions["staged"]:
            loads, copies = spec.height * 1.2 + 2.3 * planes * pixels / threads, pixels / spec.width / _VECTOR
        else:
            loads, copies = spec.height * row, 0.0
        if decisions["weights_shared"]:
            loads += live * passes(plane * spec.kernel_size, 1) + 2 * spec.kernel_size * planes / threads
        else:
            loads += live * passes(plane * WARP, 1, lines=True)
        memory = warps * (loads + 1.2 * spec.height * row)
        moved = spec.itemsize * planes * 2 * pixels
        held = 2 * spec.height + _HELD
        others = 2 * live + (_PIXEL if spec.dtype == "float32" else _PIXEL_OF_HALF) * spec.height
        shared = self._shared(spec, decisions)
        waits = 2 if decisions["staged"] else max(2, spec.height / 2)  # the compiler puts off loads that it has no registers for
        tiles = decisions["turns"] if decisions["stages"] > 1 else 1
        if tiles > 1:  # weights that are staged are copied ahead too
            waits = 2 - decisions["weights_shared"]
        return clocks(figure, threads, planes * pixels, shared, held, memory, self._products(spec), others, copies, moved, moved, waits=waits, tiles=tiles)

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(line=True, narrow=True, bare=not decisions["staged"])

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y, first = sch.get_sblock("y"), sch.get_sblock("first_sum")
        reads = [region.source.name for region in sch.get(first).reads]
        weights = sch.cache_read(first, reads.index("w"), "shared") if decisions["weights_shared"] and "w" in reads else None
        n, c, row, line = sch.get_loops(y)
        block_c, turn, plane = in_turn(sch, c, decisions)
        sch.reorder(n, block_c, turn, plane, line, row)
        thread = sch.fuse(plane, line)
        block = sch.fuse(n, block_c)
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        sch.unroll(row)
        two = bool(line_slope(spec)) and not stencil(spec).wrap
        parts = [("second_sum", row), ("first_sum", row), ("second", thread), ("first", thread)] if two else [("first_sum", row), ("first", thread)]
        for name, where in [*parts, *([] if decisions["staged"] else [("stage", thread)])]:
            part = sch.get_sblock(name)
            sch.set_scope(part, 0, "local")
            sch.compute_at(part, where, preserve_unit_loops=True)
            for loop in sch.get_loops(part)[-4:]:
                sch.unroll(loop)
        threads = int(sch.get(thread).extent)
        if weights is not None:
            sch.compute_at(weights, turn, preserve_unit_loops=True)
            cooperate(sch, weights, threads, 1, around=2)
        if decisions["staged"]:
            stage = sch.get_sblock("stage")
            sch.compute_at(stage, turn, preserve_unit_loops=True)
            cooperate_by_rows(sch, stage, threads, int(sch.get(sch.get_loops(stage)[-1]).extent), around=2, unroll=spec.dtype == "float32")
            sch.storage_align(stage, 0, 1, WARP, round_up(spec.width, _VECTOR) % WARP)

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        from tvm_orient.codegen.te.conv_lines_nchw import in_place
        from tvm_orient.codegen.tir.double_buffer import pipelined

        return pipelined(in_place(func, spec))


TEMPLATE = Lines()
