"""Form: what a template asks of the TE stages. Apart from compute, so that choosing a kernel needs no compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...problem.shear import Shear


@dataclass(frozen=True)
class StageConfig:
    """How a template wants the stages laid out; never changes what is computed.

    vector: sums are kept for rows rounded up to this many outputs (0: no "acc" stage).
    halo, pitch: columns of the left halo, and of a staged row, are a multiple of this.
    quad: columns are staged in groups of this many, loaded as one vector.
    reduce: sum over taps by a loop, so that taps can stand outside the patch.
    raw: images are staged as they lie in memory, and a value is converted where it is used, not where it is staged.
    sweep: add the taps of an output from the topmost row down, so that a patch needs few values of the stage at once.
    bare: no stage; a tap outside the plane is left out by a test, which a template must make constant.
    narrow: the stage holds the columns that are read, not whole rows.
    pruned: axis (0: rows, 1: columns) along which the stage has no halo; a tap outside the plane there is left out by a test, which a
        template must make constant.
    line: y and the stage are by line of the plane along the taps instead of by column (`lines`).
    lean: how outputs lean in a stage "own" before "y", stored by place on the leaning plane until `restore_layout.in_place` moves it (None: no such stage).
    tile: the stage is cut into tiles of this many outputs of each phase, with columns as they lie in memory (0: whole rows, parted by stride);
        bands of conv_dw are as wide.
    rows: conv_dw sums bands of this many rows apart (0: all).
    run, row_lanes: of conv_dw, contiguous columns per lane, and lanes that part a band's rows.
    dy_quad: of conv_dw, columns of dy in groups of this many, loaded as one vector, and sums with taps innermost (0: neither).
    joins: of conv_dw with dy_quad, groups in which a band's lanes are summed first (0: all lanes at once).
    slices, ahead: of conv_dw, that images are parted in to be summed apart, and images of one slice loaded together (0: one after the other).
    whole: of conv_dw with dy_quad, that a lane owns a whole plane: nothing is padded, products with zeros outside are left out.
    vector_math: exponentials as polynomials, which vectorise, in place of calls.
    batch: a fixed N, a TVM variable, or None for a new one.
    """

    vector: int = 0
    halo: int = 1
    pitch: int = 1
    quad: int = 1
    reduce: bool = False
    raw: bool = False
    sweep: bool = False
    bare: bool = False
    narrow: bool = False
    pruned: int | None = None
    line: bool = False
    lean: Shear | None = None
    tile: int = 0
    rows: int = 0
    run: int = 1
    row_lanes: int = 1
    dy_quad: int = 0
    joins: int = 0
    slices: int = 0
    ahead: int = 1
    whole: bool = False
    vector_math: bool = False
    batch: Any = None
