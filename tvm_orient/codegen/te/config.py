"""The layout that a template asks of the TE stages: StageConfig for conv and conv_dx, DwStageConfig for conv_dw.

Choosing a kernel needs these classes, and no compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...problem.shear import Shear


@dataclass(frozen=True)
class StageConfig:
    """How a template wants the stages laid out; never changes what is computed."""

    vector: int = 0  #: sums are kept for rows rounded up to this many outputs (0: no stage of sums)
    halo: int = 1  #: columns of the left halo are a multiple of this
    pitch: int = 1  #: columns of a staged row are a multiple of this
    quad: int = 1  #: columns are staged in groups of this many, loaded as one vector
    reduce: bool = False  #: sums over taps by a loop, so that taps can stand outside the patch
    smem_native_dtype: bool = False  #: stages images as they lie in memory, and converts a value where it is used, not where it is staged
    sweep: bool = False  #: adds the taps of an output from the topmost row down, so that a patch needs few values of the stage at once
    bare: bool = False  #: no stage; a tap outside the plane is left out by a test, which a template must make constant
    narrow: bool = False  #: the stage holds the columns that are read, not whole rows
    #: axis (0: rows, 1: columns) along which the stage has no halo; a tap outside there is left out by a test, which a template must make constant
    pruned: int | None = None
    line: bool = False  #: y and the stage are by line of the plane along the taps instead of by column (`lines`)
    shear: Shear | None = None  #: results lean in a stage of their own before y, until `restore_layout.in_place` moves them (None: no such stage)
    #: outputs of each phase in a tile that the stage is cut into, with columns as they lie in memory (0: whole rows, parted by stride); columns of a band
    tile: int = 0
    rows: int = 0  #: rows of outputs are rounded up to a multiple of this (0: as they are); rows of a band of conv_dw (0: all)
    vector_math: bool = False  #: exponentials as polynomials, which vectorise, in place of calls
    batch: Any = None  #: a fixed N, a TVM variable, or None for a new one


@dataclass(frozen=True)
class DwStageConfig(StageConfig):
    """How a template of conv_dw wants the stages laid out; never changes what is computed."""

    run: int = 1  #: contiguous columns of a lane
    row_lanes: int = 1  #: lanes that part a band's rows
    dy_quad: int = 0  #: columns of dy in groups of this many, loaded as one vector, and sums with taps innermost (0: neither)
    joins: int = 0  #: with dy_quad: groups in which a band's lanes are summed first (0: all lanes at once)
    slices: int = 0  #: parts of the images that are summed apart (0: one after the other)
    images_in_flight: int = 1  #: images of one slice (with channels last, bands) that are loaded together
    whole: bool = False  #: with dy_quad: a lane owns a whole plane; nothing is padded, products with zeros outside are left out
