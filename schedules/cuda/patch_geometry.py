"""CUDA: the shape of a block of register patches, derived once from a problem and a config of `shared_patch` or `strips`.

Estimates, reasons, forms and schedules all read it, so that none of them can think of another block than the rest.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stage, Stencil, round_up, stencil

from ..base import Config
from ..staging import apart
from ..tiling import quads
from .costs import VECTOR


@dataclass(frozen=True, order=True)
class SharedPatchConfig(Config):
    """The decisions of `shared_patch`: how its blocks are cut, staged and stored."""

    patch_h: int  #: rows of outputs of a thread's patch
    patch_w: int  #: columns of outputs of a thread's patch
    patches_h: int  #: patches of a block, one below the other
    channels_per_block: int  #: channels of a tile of a block
    vector: int  #: values that a thread copies into shared memory at once
    weights_shared: int = 0  #: 1: weights pass through shared memory; 0: each thread loads its own
    store_via_smem: int = 0  #: 1: results meet in shared memory and are stored as whole rows; 0: each thread stores its own
    row_pad: int = 0  #: values by which a staged row is longer than it must be, so that the lanes of a warp meet in no bank
    tile: int = 0  #: columns of outputs of a block; 0: whole rows
    plane_skew: int = 0  #: values that staged planes lie apart, but for multiples (`staging.apart`); 0: one after the other
    smem_native_dtype: int = 0  #: 1: images are staged in their own dtype, converted where they are used; 0: as float32
    tiles_per_block: int = 1  #: tiles, of other channels each, that a block computes in turn
    stages: int = 1  #: tiles in shared memory at once: with 2 one is copied while the other is computed


@dataclass(frozen=True, order=True)
class StripsConfig(SharedPatchConfig):
    """The decisions of `strips`: those of `shared_patch`, and in which order the lanes of a warp own patches."""

    lanes_across_channels: int = 0  #: 1: consecutive lanes own patches of consecutive channels; 0: of one channel


@dataclass(frozen=True, eq=False)
class PatchGeometry:
    """A block of register patches; sizes in shared memory are in values of the stage, if they are not called bytes."""

    spec: ConvSpec
    config: SharedPatchConfig
    g: Stencil
    stage: Stage  #: the staged source, with its padding
    pruned: int | None  #: axis that patches run along from end to end, which then has no halo; None: neither
    lanes_across_channels: bool  #: whether consecutive lanes own patches of consecutive channels
    across: int  #: columns of outputs
    patches_w: int  #: patches side by side
    band: int  #: rows of outputs
    rows: int  #: rows of the stage
    row: int  #: a row of the stage, all column phases
    step: int  #: from a patch to the next one in a row of the stage
    plane: int  #: from a staged plane to the next
    results: int  #: from a plane of collected results to the next, 0 where they are not
    staged_bytes: int  #: images and weights in shared memory, all stages
    result_bytes: int  #: collected results in shared memory

    @property
    def threads(self) -> int:
        """Returns the number of threads of a block, one a patch."""
        return self.config.channels_per_block * self.config.patches_h * self.patches_w

    @property
    def shared_bytes(self) -> int:
        """Returns the bytes of shared memory of a block."""
        return self.staged_bytes + self.result_bytes

    @property
    def area(self) -> int:
        """Returns the number of outputs of a patch."""
        return self.config.patch_h * self.config.patch_w

    @property
    def vector_store(self) -> bool:
        """Tells whether a thread's row of outputs is stored as one vector."""
        return stores_vectors(self.g, self.config.patch_w)

    @property
    def stored_at_once(self) -> int:
        """Returns the number of collected results that a thread stores as one vector."""
        return next(v for v in (4, 2, 1) if self.across % v == 0 == self.g.output[1] % v)

    def places(self) -> tuple[Any, Any, Any]:
        """Returns the plane, row and column in the block of the patch that each thread owns, in the order of the threads: three arrays."""
        if self.lanes_across_channels:
            row, column, plane = np.indices((self.config.patches_h, self.patches_w, self.config.channels_per_block)).reshape(3, -1)
        else:
            plane, row, column = np.indices((self.config.channels_per_block, self.config.patches_h, self.patches_w)).reshape(3, -1)
        return plane, row, column

    def first_values(self) -> Any:
        """Returns the value of the stage that each thread's patch begins at, in the order of the threads: an array."""
        plane, row, column = self.places()
        down = row * (self.config.patch_h // self.g.phases[0] * self.g.step[0]) * self.row
        return plane * self.plane + down + column * self.step

    def first_results(self, plane_pitch: int) -> Any:
        """Returns the place of the first result of each thread's patch, where planes of results lie so far apart, in the order of the threads: an array."""
        plane, row, column = self.places()
        return plane * plane_pitch + row * (self.config.patch_h * self.g.output[1]) + column * self.config.patch_w


@functools.lru_cache(maxsize=4096)
def shared_patch_geometry(spec: ConvSpec, config: SharedPatchConfig) -> PatchGeometry:
    """Returns the block of a config of `shared_patch`."""
    stage = unpadded_stage(spec, config.tile)
    return _derived(spec, config, dataclasses.replace(stage, columns=stage.columns + config.row_pad), None, False)


@functools.lru_cache(maxsize=4096)
def strips_geometry(spec: ConvSpec, config: StripsConfig) -> PatchGeometry:
    """Returns the block of a config of `strips`, whose patches run across the plane and whose collected results lie apart as the stage does."""
    g = stencil(spec)
    pruned = int(config.patch_w == g.output[1])
    stage = g.stage(-(-g.output[1] // g.phases[1]), VECTOR, VECTOR, pruned=pruned)
    return _derived(spec, config, stage, pruned, bool(config.lanes_across_channels))


def _derived(spec: ConvSpec, config: SharedPatchConfig, stage: Stage, pruned: int | None, lanes_across_channels: bool) -> PatchGeometry:
    g = stencil(spec)
    across, band, row = config.tile or g.output[1], config.patches_h * config.patch_h, stage.phases * stage.columns
    rows = min((-(-band // g.phases[0]) - 1) * g.step[0] + g.span(), stage.rows)
    plane = skewed(rows * row, config.plane_skew)
    results = band * across if config.store_via_smem else 0
    if pruned is not None:
        results = skewed(results, config.plane_skew)
    image = plane * (spec.itemsize if config.smem_native_dtype else DTYPES[spec.sums])
    weights = (spec.kernel_size if config.weights_shared else 0) * DTYPES[spec.sums]
    return PatchGeometry(
        spec=spec,
        config=config,
        g=g,
        stage=stage,
        pruned=pruned,
        lanes_across_channels=lanes_across_channels,
        across=across,
        patches_w=-(-across // config.patch_w),
        band=band,
        rows=rows,
        row=row,
        step=patch_step(g, config.patch_w, config.tile),
        plane=plane,
        results=results,
        staged_bytes=config.channels_per_block * config.stages * (image + weights),
        result_bytes=config.channels_per_block * results * spec.itemsize,
    )


@functools.lru_cache(maxsize=1024)
def unpadded_stage(spec: ConvSpec, tile: int) -> Stage:
    """Returns the staged source of tiles of so many columns (0: of whole rows), without padding against bank conflicts."""
    g = stencil(spec)
    return g.stage(-(-g.output[1] // g.phases[1]), VECTOR, VECTOR, tile // g.phases[1])


def patch_step(g: Stencil, patch_w: int, tile: int) -> int:
    """Returns the values of a staged row from one patch of so many columns to the next."""
    return patch_w // g.phases[1] * (g.step[1] if tile else 1)


def skewed(size: int, plane_skew: int) -> int:
    """Returns the values from one plane of this size in shared memory to the next."""
    factor, skew = apart(plane_skew)
    return round_up(size - skew, factor) + skew if skew else size


def stores_vectors(g: Stencil, patch_w: int) -> bool:
    """Tells whether a row of so many outputs is stored as one vector: rows of the plane must part into whole ones."""
    return patch_w in (2, 4) and g.output[1] % patch_w == 0


def by_words(spec: ConvSpec, patch_w: int, tile: int) -> bool:
    """Tells whether half precision may be staged as it lies: whole words are copied, and patches begin where `packed_reads` reads four values at once."""
    return quads(spec, tile > 0)[0] == VECTOR and patch_step(stencil(spec), patch_w, tile) % VECTOR == 0
