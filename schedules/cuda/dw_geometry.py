"""CUDA: the shape of a block of the first pass of a weight gradient, derived once from a problem and a config of `two_pass_dw` or `strips_dw`.

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
from tvm_orient.sass.bank_conflicts import WARP

from ..base import Config
from ..staging import apart
from . import plane_dw_cost
from .costs import VECTOR


@dataclass(frozen=True, order=True)
class TwoPassDwConfig(Config):
    """The decisions of `two_pass_dw`: how the blocks of its first pass are cut and staged."""

    patch_h: int  #: rows of pixels of dy of a patch
    patch_w: int  #: columns of pixels of dy of a patch
    lanes_w: int  #: threads of a block side by side
    lanes_h: int  #: threads of a block one below the other
    patches_per_lane: int  #: patches of a thread one below the other
    channels_per_block: int  #: channels of a block
    vector: int  #: values of x that a thread copies into shared memory at once
    dy_shared: int = 0  #: 1: dy passes through shared memory; 0: each thread loads its own
    row_pad: int = 0  #: values by which a staged row of x is longer than it must be, so that the lanes of a warp meet in no bank
    whole: int = 0  #: 1: a thread owns a whole plane, and the knobs of patches and lanes say nothing; 0: patches
    tile: int = 0  #: columns of dy of a block; 0: whole rows


@dataclass(frozen=True, order=True)
class StripsDwConfig(Config):
    """The decisions of `strips_dw`: the strips of its first pass, and in which order the lanes of a warp own them."""

    patch_h: int  #: rows of pixels of dy of a thread's strip
    patch_w: int  #: columns of pixels of dy of a thread's strip
    channels_per_block: int  #: channels of a block
    vector: int  #: values of x that a thread copies into shared memory at once
    lanes_across_channels: int = 0  #: 1: consecutive lanes own strips of consecutive channels; 0: of one channel


@dataclass(frozen=True, eq=False)
class TwoPassDwGeometry:
    """A block of the first pass of `two_pass_dw`; sizes in shared memory are in values, if they are not called bytes."""

    spec: ConvSpec
    config: TwoPassDwConfig
    g: Stencil
    lanes: int  #: threads of a plane
    band: int  #: rows of dy
    columns: int  #: columns of dy, rounded up to whole patches of all lanes
    stage: Stage  #: the staged x, with its padding
    rows: int  #: rows of the stage
    row: int  #: a row of the stage, all column phases
    dy_quad: int  #: columns of dy that are loaded at once: by a thread for itself, or by the block for all
    x_bytes: int  #: staged x; the sums of lanes lie where it did
    dy_bytes: int  #: staged dy

    @property
    def threads(self) -> int:
        """Returns the number of threads of a block."""
        return self.config.channels_per_block * self.lanes

    @property
    def patches(self) -> int:
        """Returns the number of patches of a thread."""
        return self.config.patches_per_lane * self.columns // (self.config.lanes_w * self.config.patch_w)

    def _places(self) -> tuple[Any, Any, Any]:
        """Returns the plane, row and column of each thread in the block: three arrays."""
        shape = (self.config.channels_per_block, self.config.lanes_h, self.config.lanes_w)
        plane, row, column = np.indices(shape).reshape(3, -1)
        return plane, row * (self.config.patches_per_lane * self.config.patch_h), column * self.config.patch_w

    def first_x(self) -> Any:
        """Returns the value of the staged x that each thread's first patch begins at: an array."""
        plane, row, column = self._places()
        return plane * (self.rows * self.row) + row * (self.g.step[0] * self.row) + column * self.stage.across

    def first_dy(self, staged: bool) -> Any:
        """Returns the value of the staged dy, or of dy itself, that each thread's first patch begins at: an array."""
        plane, row, column = self._places()
        pitch, tall = (self.columns, self.band) if staged else (self.spec.out_width, self.spec.out_height)
        return plane * (tall * pitch) + row * pitch + column


@functools.lru_cache(maxsize=4096)
def two_pass_dw_geometry(spec: ConvSpec, config: TwoPassDwConfig) -> TwoPassDwGeometry:
    """Returns the block of the first pass of a config of `two_pass_dw`."""
    g, chunk = stencil(spec), config.lanes_w * config.patch_w
    band, columns = config.patch_h * config.lanes_h * config.patches_per_lane, config.tile or round_up(spec.out_width, chunk)
    stage = g.stage(columns, VECTOR, VECTOR, config.tile)
    stage = dataclasses.replace(stage, columns=stage.columns + config.row_pad)
    rows, row = min((band - 1) * g.step[0] + g.span(), max(stage.rows, band)), stage.phases * stage.columns
    run, size = chunk if config.dy_shared else config.patch_w, config.channels_per_block * DTYPES[spec.sums]
    x_bytes, dy_bytes = size * rows * row, size * (band * columns if config.dy_shared else 0)
    if config.whole:
        x_bytes, dy_bytes = plane_dw_cost.staged(spec, config.channels_per_block)
    return TwoPassDwGeometry(
        spec=spec,
        config=config,
        g=g,
        lanes=1 if config.whole else config.lanes_w * config.lanes_h,
        band=band,
        columns=columns,
        stage=stage,
        rows=rows,
        row=row,
        dy_quad=next(q for q in (4, 2, 1) if spec.out_width % q == 0 and run % q == 0),
        x_bytes=x_bytes,
        dy_bytes=dy_bytes,
    )


@dataclass(frozen=True, eq=False)
class StripsDwGeometry:
    """A block of the first pass of `strips_dw`; sizes in shared memory are in values, if they are not called bytes."""

    spec: ConvSpec
    config: StripsDwConfig
    g: Stencil
    pruned: int  #: axis that a strip runs along: 0 down, 1 across
    run: int  #: rows or columns of a strip
    lanes: int  #: strips of a plane
    stage: Stage  #: the staged x
    row: int  #: a row of the stage, all column phases
    apart: tuple[int, int]  #: planes lie (second) values apart, but for multiples of (first)
    x: int  #: from one staged plane of x to the next
    dy: int  #: from one staged plane of dy to the next

    @property
    def threads(self) -> int:
        """Returns the number of threads of a block, one a strip."""
        return self.config.channels_per_block * self.lanes

    @property
    def x_bytes(self) -> int:
        """Returns the bytes of staged x; the sums of lanes lie where it did."""
        return self.config.channels_per_block * DTYPES[self.spec.sums] * self.x

    @property
    def dy_bytes(self) -> int:
        """Returns the bytes of staged dy."""
        return self.config.channels_per_block * DTYPES[self.spec.sums] * self.dy

    def places(self) -> tuple[Any, Any]:
        """Returns the plane, and strip of it, of each thread of a block, in the order of the threads: two arrays."""
        if self.config.lanes_across_channels:
            lane, plane = np.indices((self.lanes, self.config.channels_per_block)).reshape(2, -1)
        else:
            plane, lane = np.indices((self.config.channels_per_block, self.lanes)).reshape(2, -1)
        return plane, lane


@functools.lru_cache(maxsize=4096)
def strips_dw_geometry(spec: ConvSpec, config: StripsDwConfig) -> StripsDwGeometry:
    """Returns the block of the first pass of a config of `strips_dw`.

    Planes lie apart so that lanes of several read banks of their own, and copies stay aligned.
    """
    g = stencil(spec)
    height, width = g.output
    pruned = int(config.patch_w == width)
    run, stage = config.patch_h if pruned else config.patch_w, g.stage(width, VECTOR, VECTOR, pruned=pruned)
    x, dy = stage.rows * stage.phases * stage.columns, height * width
    quad = VECTOR if dy % VECTOR == 0 and x % VECTOR == 0 else config.vector
    factor, skew = apart(quad if config.lanes_across_channels else round_up(width, quad) % WARP)
    return StripsDwGeometry(
        spec=spec,
        config=config,
        g=g,
        pruned=pruned,
        run=run,
        lanes=g.output[1 - pruned] // run,
        stage=stage,
        row=stage.phases * stage.columns,
        apart=(factor, skew),
        x=round_up(x - skew, factor) + skew,
        dy=round_up(dy - skew, factor) + skew,
    )
