"""CUDA: the parts of weight gradients in two passes: sums of lanes in shared memory, and a second pass over images in a fixed order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from tvm_orient.codegen import names
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import Config, Template
from ..staging import cooperate
from ..tiling import most_dividing, too_many_threads

MAX_STAGED = 30720  # bytes of staged x of one angle: merged angles add the largest of each, and a kernel may have 48 KiB
MAX_DY = 13312  # bytes of staged dy of one angle
MAX_SUMS = 2048  # bytes of sums of lanes that may lie where neither x nor dy did
MAX_UNROLLED = 4096  # multiply-adds of one thread
MAX_TAPS = 64  # sums of one thread, all in registers
SLICES = 16  # threads of a weight in the second pass
IMAGES_IN_FLIGHT = 4  # images that a thread of the second pass loads at once
_UNROLLED_SUM = 16  # terms of a sum of sums that are loaded at once
_WEIGHTS = 32  # weights of a block of the second pass
_MAX_SECOND_THREADS = 512  # threads of a block of the second pass

D = TypeVar("D", bound=Config)


class BaseDw(Template[D]):
    """conv_dw: a thread keeps one sum per distinct tap in registers; lanes, then images are summed in a fixed order, without atomics."""

    kind = "cuda"
    ops = ("conv_dw",)

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if (taps := len(stencil(spec).every)) > MAX_TAPS:
            return f"keeps at most {MAX_TAPS} sums in registers, got {taps} live taps"
        return self._invalid(spec, device, self._least(spec, device))

    def _unfit(self, spec: ConvSpec, threads: int, staged: int, dy: int, work: int) -> str | None:
        """Returns why no block has so many threads, bytes of staged x and dy, or multiply-adds that a thread unrolls; or None."""
        taps = len(stencil(spec).every)
        if reason := too_many_threads(threads):
            return reason
        if staged > MAX_STAGED or dy > MAX_DY:
            return f"a block would stage {staged} bytes of x and {dy} of dy, at most {MAX_STAGED} and {MAX_DY}"
        if threads * (taps | 1) * DTYPES[spec.sums] > max(staged, dy, MAX_SUMS):
            return f"a block would keep {threads} x {taps} sums, more than lie where x and dy did"
        if work > MAX_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return None

    def _joins(self, spec: ConvSpec, lanes: int) -> int:
        """Returns the number of groups of a plane's lanes that are summed side by side before the groups are: as many as there are threads for."""
        return most_dividing(lanes, max(1, lanes // max(1, len(stencil(spec).every))))

    def _first_pass(self, sch: Any, spec: ConvSpec, planes: int, lanes: int) -> tuple[Any, int]:
        """Parts planes among blocks, and spreads the sums of their lanes over the threads; returns (loop over blocks, threads)."""
        part = sch.get_sblock(names.PART)
        held = sch.cache_write(part, 0, "local")
        n, c, band, tap = sch.get_loops(held)
        block_c, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), planes)])
        sch.reorder(n, block_c, band, plane, tap)
        block = sch.fuse(n, block_c, band)
        sch.bind(block, "blockIdx.x")
        threads = int(sch.get(plane).extent) * lanes
        wide = max(WARP, planes * lanes)
        own = self._spread(sch, [plane, tap], wide)
        self._sum_in_register(sch, part, own)
        if self._joins(spec, lanes) > 1:
            groups = sch.get_sblock(names.GROUPS)
            sch.set_scope(groups, 0, "shared")
            kept = sch.cache_write(groups, 0, "local")
            sch.compute_at(kept, block, preserve_unit_loops=True)
            self._sum_in_register(sch, groups, self._spread(sch, sch.get_loops(kept)[1:], wide))
        return block, threads

    def _spread(self, sch: Any, loops: Any, threads: int) -> Any:
        """Binds the loops to the threads of the block, in whole turns: TVM does not follow a reduction through a ragged one."""
        loop = sch.fuse(*loops)
        even = most_dividing(int(sch.get(loop).extent), threads)
        _, own = sch.split(loop, [None, even if 2 * even >= threads else most_dividing(int(sch.get(loop).extent), max(threads, MAX_TAPS))])
        sch.bind(own, "threadIdx.x")
        return own

    def _sum_in_register(self, sch: Any, block: Any, thread: Any) -> None:
        """Keeps a sum in a register, while several of its terms are loaded at once: TVM would add them up where the result is stored."""
        sch.compute_at(block, thread, preserve_unit_loops=True)
        loop = sch.get_loops(block)[-1]
        extent = int(sch.get(loop).extent)
        outer, inner = sch.split(loop, [None, most_dividing(extent, _UNROLLED_SUM)])
        sch.unroll(inner)
        sch.decompose_reduction(block, outer)

    def _by_lane(self, sch: Any, block: Any, across: bool = False) -> Any:
        """Gives each (plane, lane), or with `across` each (lane, plane), a thread, whose sums are copied to shared memory when all are there."""
        lanes = sch.get_sblock(names.LANES)
        sch.set_scope(lanes, 0, "shared")
        copy = sch.cache_write(lanes, 0, "local")
        sch.storage_align(copy, 0, 3, 2, 1)  # an odd pitch: neither those that write lanes nor those that read taps meet in a bank
        sch.compute_at(copy, block, preserve_unit_loops=True)
        *planes, lane, tap = sch.get_loops(copy)[1:]
        if across:
            sch.reorder(lane, *planes)
        thread = sch.fuse(*((lane, *planes) if across else (*planes, lane)))
        sch.bind(thread, "threadIdx.x")
        sch.unroll(tap)
        sch.compute_at(lanes, thread, preserve_unit_loops=True)
        return lanes

    def _sum_unrolled(self, sch: Any, block: Any, swapped: bool, across: bool = False) -> None:
        """Unrolls all pixels and taps of a lane: the first loop over pixels outside the second, or the second outside the first."""
        lanes = self._by_lane(sch, block, across)
        *_, tap, first, second = sch.get_loops(lanes)
        outer, inner = (second, first) if swapped else (first, second)
        sch.reorder(outer, inner, tap)
        for loop in (outer, inner, tap):
            sch.unroll(loop)
        init = sch.decompose_reduction(lanes, outer)
        sch.unroll(sch.get_loops(init)[-1])

    def _stage_apart(self, sch: Any, staged: Sequence[Any], block: Any, threads: int) -> None:
        """Copies whole planes as they lie; staged, they lie an odd number of vectors apart, so that lanes of several meet in no bank."""
        for planes in staged:
            quad = int(sch.get(sch.get_loops(planes)[-1]).extent)
            sch.compute_at(planes, block, preserve_unit_loops=True)
            cooperate(sch, planes, threads, quad)
            sch.storage_align(planes, 0, 1, 2 * quad, quad)

    def _second_pass(self, sch: Any) -> None:
        """Schedules the second pass: a thread sums a slice of the images for a weight, then one thread a weight the slices, in order.

        A cross-thread reduction would not survive the merge of angles.
        """
        y, slices = sch.get_sblock(names.Y), sch.get_sblock(names.SLICES)
        held = sch.cache_write(y, 0, "local")
        c, tap = sch.get_loops(held)
        taps = int(sch.get(tap).extent)
        block, channel = sch.split(c, [None, most_dividing(int(sch.get(c).extent), max(1, _WEIGHTS // taps))])
        weights = int(sch.get(channel).extent) * taps
        sch.bind(block, "blockIdx.x")
        self._sum_in_register(sch, y, self._spread(sch, [channel, tap], min(weights, _MAX_SECOND_THREADS)))
        sch.set_scope(slices, 0, "shared")
        kept = sch.cache_write(slices, 0, "local")
        sch.compute_at(kept, block, preserve_unit_loops=True)
        own = self._spread(sch, sch.get_loops(kept)[1:], min(SLICES * weights, _MAX_SECOND_THREADS))
        sch.compute_at(slices, own, preserve_unit_loops=True)
        *_, images, ahead, band = sch.get_loops(slices)
        for loop in (ahead, band) if int(sch.get(band).extent) <= _UNROLLED_SUM else (ahead,):
            sch.unroll(loop)
        sch.decompose_reduction(slices, images)
