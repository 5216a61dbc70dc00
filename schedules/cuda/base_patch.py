"""CUDA: how blocks of register patches are scheduled, whatever the patches are: staging, threads, results, and tiles in turn."""

from __future__ import annotations

from typing import Any

from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil

from ..base import Decisions, Template
from ..staging import apart, cooperate, cooperate_by_rows, in_turn


class Patches(Template):
    """The schedule of a template whose threads own patches of outputs, `patch_h` x `patch_w` each, `row_patches` of them one below the other."""

    results_apart = False  # whether a skew keeps collected planes apart too

    def _across(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Columns of outputs that a block owns."""
        return decisions["tile"] or stencil(spec).output[1]

    def _vector_store(self, spec: ConvSpec, decisions: Decisions) -> bool:
        """Whether a thread's row of outputs is stored as one vector: rows must part into whole ones."""
        width = decisions["patch_w"]
        return width in (2, 4) and stencil(spec).output[1] % width == 0

    def _stored_at_once(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Collected results that a thread stores as one vector."""
        return next(v for v in (4, 2, 1) if self._across(spec, decisions) % v == 0 == stencil(spec).output[1] % v)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y, stage = sch.get_sblock("y"), sch.get_sblock("stage")
        reads = [region.source.name for region in sch.get(y).reads]
        weights = sch.cache_read(y, reads.index("w"), "shared") if decisions["weights_shared"] and "w" in reads else None
        turn, threads = self._collected(sch, y, spec, decisions) if decisions["collect"] else self._direct(sch, y, spec, decisions)
        sch.compute_at(stage, turn, preserve_unit_loops=True)
        asynchronous = spec.dtype == "float32" or bool(decisions["raw"])  # copies that convert are batched instead, which unrolling would hide
        cooperate_by_rows(sch, stage, threads, decisions["vector"], around=2, unroll=asynchronous)
        if skew := decisions["skew"]:
            sch.storage_align(stage, 0, 1, *apart(skew))
        if weights is not None:
            sch.compute_at(weights, turn, preserve_unit_loops=True)
            cooperate(sch, weights, threads, 1, around=2)

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        from tvm_orient.codegen.tir.double_buffer import pipelined

        return pipelined(func)

    def _thread(self, sch: Any, plane: Any, row: Any, column: Any, decisions: Decisions) -> Any:
        """The loop over a block's threads, in the order of `_order`."""
        return sch.fuse(plane, row, column)

    def _direct(self, sch: Any, y: Any, spec: ConvSpec, decisions: Decisions) -> tuple[Any, int]:
        """Each thread stores its own patch: (loop over tiles, threads)."""
        out = sch.cache_write(y, 0, "local") if self._vector_store(spec, decisions) else y
        n, c, h, w = sch.get_loops(out)
        block_c, turn, plane = in_turn(sch, c, decisions)
        band, row, pixel_h = sch.split(h, [None, decisions["row_patches"], decisions["patch_h"]])
        tile, column, pixel_w = sch.split(w, [None, -(-self._across(spec, decisions) // decisions["patch_w"]), decisions["patch_w"]])
        sch.reorder(n, block_c, band, tile, turn, plane, row, column, pixel_h, pixel_w)
        block, thread = sch.fuse(n, block_c, band, tile), self._thread(sch, plane, row, column, decisions)
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        if out != y:
            sch.compute_at(y, thread, preserve_unit_loops=True)
            for loop in sch.get_loops(y)[-2:]:
                sch.unroll(loop)
            sch.vectorize(pixel_w)
        else:
            sch.unroll(pixel_w)
        sch.unroll(pixel_h)
        return turn, int(sch.get(thread).extent)

    def _collected(self, sch: Any, y: Any, spec: ConvSpec, decisions: Decisions) -> tuple[Any, int]:
        """Patches meet in shared memory, and the block stores whole rows: (loop over tiles, threads)."""
        out = sch.cache_write(y, 0, "shared")
        own = sch.cache_write(y, 0, "local")  # stores between the loads would keep the compiler from joining them
        n, c, h, w = sch.get_loops(out)
        block_c, turn, plane = in_turn(sch, c, decisions)
        band, row = sch.split(h, [None, decisions["row_patches"] * decisions["patch_h"]])
        tile, w = sch.split(w, [None, self._across(spec, decisions)])
        sch.reorder(n, block_c, band, tile, turn, plane, row, w)
        block = sch.fuse(n, block_c, band, tile)
        sch.bind(block, "blockIdx.x")
        sch.compute_at(own, turn, preserve_unit_loops=True)
        *_, y_plane, y_row, y_w = sch.get_loops(own)
        patch, pixel_h = sch.split(y_row, [None, decisions["patch_h"]])
        column, pixel_w = sch.split(y_w, [None, decisions["patch_w"]])
        sch.reorder(y_plane, patch, column, pixel_h, pixel_w)
        thread = self._thread(sch, y_plane, patch, column, decisions)
        threads = int(sch.get(thread).extent)
        sch.bind(thread, "threadIdx.x")
        sch.compute_at(y, thread, preserve_unit_loops=True)
        for loop in sch.get_loops(y)[-2:]:
            sch.unroll(loop)
        if self.results_apart and (skew := decisions["skew"]):
            sch.storage_align(own, 0, 1, *apart(skew))
        for loop in (pixel_h, pixel_w):
            sch.unroll(loop)
        vector = self._stored_at_once(spec, decisions)
        group, lanes = sch.split(w, [None, vector])
        _, inner = sch.split(sch.fuse(plane, row, group), [None, threads])
        sch.bind(inner, "threadIdx.x")
        if vector > 1:
            sch.vectorize(lanes)
        return turn, threads
