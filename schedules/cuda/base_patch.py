"""CUDA: how blocks of register patches are scheduled, whatever the patches are: staging, threads, results, and tiles in turn."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, TypeVar

from tvm_orient.codegen import names
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec

from ..base import Template
from ..staging import apart, cooperate, cooperate_by_rows, in_turn
from ..tiling import parted
from .patch_geometry import PatchGeometry, SharedPatchConfig

P = TypeVar("P", bound=SharedPatchConfig)


class BasePatch(Template[P]):
    """The schedule of a template whose threads own patches of outputs, `patch_h` x `patch_w` each, `patches_h` of them one below the other."""

    @abstractmethod
    def _geometry(self, spec: ConvSpec, config: P) -> PatchGeometry:
        """Returns the shape of a block."""

    def channel_blocks(self, channels: int, config: P) -> int:
        return channels // math.prod(parted(channels, config.channels_per_block, config.tiles_per_block))

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: P) -> None:
        y, stage, block = sch.get_sblock(names.Y), sch.get_sblock(names.STAGE), self._geometry(spec, config)
        reads = [region.source.name for region in sch.get(y).reads]
        weights = sch.cache_read(y, reads.index(names.W), "shared") if config.weights_shared and names.W in reads else None
        turn, threads = self._collected(sch, y, block) if config.store_via_smem else self._direct(sch, y, block)
        sch.compute_at(stage, turn, preserve_unit_loops=True)
        asynchronous = not spec.is_half or bool(config.smem_native_dtype)  # copies that convert are batched instead, which unrolling would hide
        cooperate_by_rows(sch, stage, threads, config.vector, around=2, unroll=asynchronous)
        if config.plane_skew:
            sch.storage_align(stage, 0, 1, *apart(config.plane_skew))
        if weights is not None:
            sch.compute_at(weights, turn, preserve_unit_loops=True)
            cooperate(sch, weights, threads, 1, around=2)

    def finish(self, func: Any, spec: ConvSpec, config: P) -> Any:
        from tvm_orient.codegen.tir.double_buffer import pipelined

        return pipelined(func)

    def _thread(self, sch: Any, plane: Any, row: Any, column: Any, block: PatchGeometry) -> Any:
        """Returns the loop over a block's threads, in the order of `PatchGeometry.places`."""
        if not block.lanes_across_channels:
            return sch.fuse(plane, row, column)
        sch.reorder(row, column, plane)
        return sch.fuse(row, column, plane)

    def _in_turn(self, sch: Any, channels: Any, config: SharedPatchConfig) -> Any:
        return in_turn(sch, channels, config.channels_per_block, config.tiles_per_block, config.stages)

    def _direct(self, sch: Any, y: Any, block: PatchGeometry) -> tuple[Any, int]:
        """Lets each thread store its own patch; returns (loop over tiles, threads)."""
        config = block.config
        out = sch.cache_write(y, 0, "local") if block.vector_store else y
        n, c, h, w = sch.get_loops(out)
        block_c, turn, plane = self._in_turn(sch, c, config)
        band, row, pixel_h = sch.split(h, [None, config.patches_h, config.patch_h])
        tile, column, pixel_w = sch.split(w, [None, block.patches_w, config.patch_w])
        sch.reorder(n, block_c, band, tile, turn, plane, row, column, pixel_h, pixel_w)
        blocks, thread = sch.fuse(n, block_c, band, tile), self._thread(sch, plane, row, column, block)
        sch.bind(blocks, "blockIdx.x")
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

    def _collected(self, sch: Any, y: Any, block: PatchGeometry) -> tuple[Any, int]:
        """Lets patches meet in shared memory, from where the block stores whole rows; returns (loop over tiles, threads)."""
        config = block.config
        out = sch.cache_write(y, 0, "shared")
        own = sch.cache_write(y, 0, "local")  # stores between the loads would keep the compiler from joining them
        n, c, h, w = sch.get_loops(out)
        block_c, turn, plane = self._in_turn(sch, c, config)
        band, row = sch.split(h, [None, block.band])
        tile, w = sch.split(w, [None, block.across])
        sch.reorder(n, block_c, band, tile, turn, plane, row, w)
        blocks = sch.fuse(n, block_c, band, tile)
        sch.bind(blocks, "blockIdx.x")
        sch.compute_at(own, turn, preserve_unit_loops=True)
        *_, y_plane, y_row, y_w = sch.get_loops(own)
        patch, pixel_h = sch.split(y_row, [None, config.patch_h])
        column, pixel_w = sch.split(y_w, [None, config.patch_w])
        sch.reorder(y_plane, patch, column, pixel_h, pixel_w)
        thread = self._thread(sch, y_plane, patch, column, block)
        threads = int(sch.get(thread).extent)
        sch.bind(thread, "threadIdx.x")
        sch.compute_at(y, thread, preserve_unit_loops=True)
        for loop in sch.get_loops(y)[-2:]:
            sch.unroll(loop)
        if block.pruned is not None and config.plane_skew:
            sch.storage_align(own, 0, 1, *apart(config.plane_skew))
        for loop in (pixel_h, pixel_w):
            sch.unroll(loop)
        group, lanes = sch.split(w, [None, block.stored_at_once])
        _, inner = sch.split(sch.fuse(plane, row, group), [None, threads])
        sch.bind(inner, "threadIdx.x")
        if block.stored_at_once > 1:
            sch.vectorize(lanes)
        return turn, threads
