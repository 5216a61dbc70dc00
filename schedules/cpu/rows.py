"""CPU templates that vectorise along the row.

A task is one plane. Bands of the plane are staged with their halo, so that every tap is an unaligned load without a
test; a patch of rows and vectors is kept in registers while the taps pass over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm_orient.codegen import names
from tvm_orient.codegen.te.config import DwStageConfig, StageConfig
from tvm_orient.codegen.tir.prefetch import prefetched
from tvm_orient.codegen.tir.vectorize_pieces import cut
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import round_up, stencil

from ..base import Config
from .base_unrolled import MAX_UNROLLED, BaseUnrolled, vectors

FEW_TAPS = 12  # taps up to which the cost is in moving rows, not in multiply-adds
MAX_DEFAULT_SUMS = 8  # vectors of sums of an untuned patch of many taps
MIN_FETCHED = 512  # bytes of a plane from which on the next one is fetched without tuning: less is a few lines
_HEIGHTS = (1, 2, 3, 4, 6, 7, 8)  # rows of a patch
_VECTORS = (1, 2, 3, 4, 7)  # vectors of a patch side by side
_BANDS = (1, 2, 4, 7, 8, 16, 32, 64, 128)  # parts of a plane that a band may be
_PREFETCH_PLANES = (0, 1, 2, 4)  # planes ahead that are fetched
_TAPS = (4, 8, 16, 24, 32)  # taps whose sums stay in registers
_NARROW_BYTES = 32  # bytes of a vector that straddles cache lines half as often as those of 64, and wastes less of a short row


@dataclass(frozen=True)
class RowsConfig(Config):
    """The decisions of `cpu_rows`."""

    vector: int  #: outputs of a vector of sums
    patch_h: int  #: rows of outputs of a patch
    patch_v: int  #: vectors of outputs of a patch, side by side
    band_patches: int  #: patches of a band, one below the other; a band is staged at once
    tap_outer: int  #: 1: taps are a loop outside the patch; 0: an expression of all taps inside it
    prefetch_planes: int  #: planes ahead that are fetched into the cache; 0: none


@dataclass(frozen=True)
class RowsDwConfig(Config):
    """The decisions of `cpu_rows_dw`."""

    vector: int  #: pixels of dy of a vector
    taps: int  #: taps whose sums stay in registers while a plane passes
    prefetch_planes: int  #: planes ahead that are fetched into the cache; 0: none


def _columns(spec: ConvSpec) -> int:
    """Returns the number of outputs of one row and one column phase."""
    return -(-spec.width // spec.stride[1]) if spec.op != "conv_dw" else spec.out_width


def _rows(spec: ConvSpec) -> int:
    """Returns the number of rows of outputs."""
    return spec.out_height if spec.op != "conv_dx" else spec.height


def _narrow(lanes: Sequence[int], spec: ConvSpec) -> int:
    """Returns the widest vector of at most 32 bytes, or the narrowest there is."""
    return max(v for v in lanes if v * DTYPES[spec.sums] <= _NARROW_BYTES or v == lanes[-1])


def _prefetched(spec: ConvSpec) -> int:
    """Returns the number of planes ahead that are fetched without tuning."""
    return int(spec.height * spec.width * spec.itemsize >= MIN_FETCHED)


class Rows(BaseUnrolled[RowsConfig]):
    """Computes conv and conv_dx of contiguous images on a CPU, any stride.

    A task is one plane of one channel; tasks run in parallel. Bands of the plane are staged with their halo. A patch of `patch_h` rows and
    `patch_v` vectors is kept in registers while the taps pass over it, and each tap is an unaligned vector load at a constant distance. With
    `tap_outer` the taps are a loop over folded weights, ordered so that neighbours read the same vectors; else they are one expression. Where a
    row has several patches, each sums in a place of its own whose indices are constants, and copies it out: with the patch's number in the index
    LLVM could not tell its sums apart, and loaded and stored one with every multiply-add.

    Three things cost more than the arithmetic until they are said in the code, since no schedule primitive says them: rows are staged by whole
    vectors and stored by whole vectors, cut at the edges of the plane (`tvm_orient/codegen/tir/vectorize_pieces.py`), instead of element by
    element with a test; and the plane of a later task is prefetched, row by row, while the taps pass over this one, together with the place of
    its result (`tvm_orient/codegen/tir/prefetch.py`). At most 256 taps.
    """

    name = "cpu_rows"
    version = 4
    ops = ("conv", "conv_dx")
    config_type = RowsConfig

    def _heights(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the rows that a patch may have, ascending."""
        phases = spec.stride[0] if spec.op == "conv_dx" else 1
        return tuple(p for p in _HEIGHTS if p % phases == 0 and p <= max(phases, _rows(spec))) or (phases,)

    def _bands(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the patches that a band may have, ascending."""
        return tuple(sorted({-(-_rows(spec) // p) for p in _BANDS}))

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {
            "vector": vectors(spec, device),
            "patch_h": self._heights(spec),
            "patch_v": _VECTORS,
            "band_patches": self._bands(spec),
            "tap_outer": (1, 0),
            "prefetch_planes": _PREFETCH_PLANES,
        }

    def default(self, spec: ConvSpec, device: Device) -> RowsConfig:
        lanes, bands, few = vectors(spec, device), self._bands(spec), len(spec.taps.distinct(0)) <= FEW_TAPS
        vector = _narrow(lanes, spec) if few or _columns(spec) <= 16 else lanes[0]
        across = -(-_columns(spec) // vector)
        patch_v = max(p for p in _VECTORS if p <= min(across, 4) and (p <= 2 or across % p == 0))
        most = 2 if few else MAX_DEFAULT_SUMS // patch_v
        least = self._heights(spec)[0]
        height = max((p for p in self._heights(spec) if p <= most and _rows(spec) % p == 0), default=least)
        whole = next(b for b in bands if b * height >= _rows(spec))
        band = min(bands, key=lambda b: (abs(b - 2), b)) if few else whole  # few taps, little halo: what was staged is still near
        config = RowsConfig(vector, height, patch_v, band, tap_outer=int(not few), prefetch_planes=_prefetched(spec))
        return config if self._invalid(spec, device, config) is None else replace(config, patch_h=least, patch_v=1)

    def _invalid(self, spec: ConvSpec, device: Device, config: RowsConfig) -> str | None:
        work = len(spec.taps.distinct(0)) * config.patch_h * config.patch_v
        if work > MAX_UNROLLED and config.patch_v > 1:
            return f"a patch of {config.patch_h} x {config.patch_v} vectors unrolls to {work} multiply-adds, at most {MAX_UNROLLED}"
        return None

    def stage_config(self, spec: ConvSpec, config: RowsConfig) -> StageConfig:
        return StageConfig(vector=config.vector, halo=config.vector, pitch=config.vector, reduce=bool(config.tap_outer), vector_math=True)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: RowsConfig) -> None:
        y, acc, stage = (sch.get_sblock(name) for name in (names.Y, names.ACC, names.STAGE))
        n, c, h, _ = sch.get_loops(y)
        task = sch.fuse(n, c)
        band, patch, row = sch.split(h, [None, config.band_patches, config.patch_h])
        place, parted = patch, -(-_columns(spec) // config.vector) > config.patch_v
        if parted:  # sums of a patch then have places of their own, known at compile time: LLVM keeps them in registers
            kept = sch.cache_write(acc, 0, "global")
            sch.compute_at(kept, patch, preserve_unit_loops=True)
            rows, phase, vectors, lane = sch.get_loops(kept)[5:]
            place, beside = sch.split(vectors, [None, config.patch_v])
            sch.reorder(place, rows, phase, beside, lane)
            for loop in (rows, phase, beside):
                sch.unroll(loop)
            sch.vectorize(lane)
        sch.compute_at(acc, place, preserve_unit_loops=True)
        sch.compute_at(stage, band, preserve_unit_loops=True)
        rows, phase, beside, lane, *tap = sch.get_loops(acc)[8 if parted else 5 :]
        sch.reorder(*tap, rows, phase, beside, lane)
        for loop in (rows, phase, beside, *tap):
            sch.unroll(loop)
        sch.vectorize(lane)
        sch.unroll(row)
        if config.prefetch_planes:
            sch.annotate(patch, names.PREFETCH, 1)
        if tap:
            init = sch.decompose_reduction(acc, tap[0])
            *unrolled, last = sch.get_loops(init)[-4:]
            for loop in unrolled:
                sch.unroll(loop)
            sch.vectorize(last)
            folded = sch.get_sblock(names.FOLDED)
            sch.compute_at(folded, task, preserve_unit_loops=True)
            sch.unroll(sch.get_loops(folded)[-1])

    def finish(self, func: Any, spec: ConvSpec, config: RowsConfig) -> Any:
        g, vector = stencil(spec), config.vector
        if g.phases[1] == 1:
            func = cut(func, names.Y, 3, (0, g.output[1]), vector)
        func = _cut_stage(func, spec, config.vector)
        source, y = func.params[0], func.params[-1]

        def fetched(loops: Sequence[Any]) -> list[tuple[Any, int, bool]]:
            task, band, patch = loops
            n, c = task // y.shape[1], task % y.shape[1] + config.prefetch_planes
            row, rows = (band * config.band_patches + patch) * config.patch_h, config.patch_h
            first = row * g.step[0] // g.phases[0]
            count = -(-rows * g.step[0] // g.phases[0])
            return [(source[n, c, first, 0], count * g.source[1], False), (y[n, c, row, 0], rows * g.output[1], True)]

        return prefetched(func, spec.itemsize, fetched)


def _cut_stage(func: Any, spec: ConvSpec, vector: int) -> Any:
    """Returns the function with its staging by whole vectors, where columns are not parted by a stride."""
    g = stencil(spec)
    if g.step[1] > 1:
        return func
    stage = g.stage(round_up(-(-g.output[1] // g.phases[1]), vector), vector, vector)
    width = g.source[1]
    ends = range(stage.left % width, stage.columns, width) if g.wrap else (stage.left, stage.left + width)
    return cut(func, names.STAGE, 4, (0, *(e for e in ends if 0 < e < stage.columns), stage.columns), vector)


class RowsDw(BaseUnrolled[RowsDwConfig]):
    """Computes conv_dw of contiguous images on a CPU, any stride.

    A task is one plane. The sums of a block of taps stay in vector registers while the plane passes; a second pass adds the images in order. Rows
    are staged and planes prefetched as in `cpu_rows`. Weights whose sums are not finite are summed again by the rule of the reference
    (`tvm_orient/codegen/tir/confine_nonfinite.py`).
    """

    name = "cpu_rows_dw"
    version = 3
    ops = ("conv_dw",)
    config_type = RowsDwConfig

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"vector": vectors(spec, device), "taps": _TAPS, "prefetch_planes": _PREFETCH_PLANES}

    def default(self, spec: ConvSpec, device: Device) -> RowsDwConfig:
        taps = 8 if device.arch == "avx2" else 16  # it has 16 vector registers; AVX-512 and NEON have 32
        return RowsDwConfig(_narrow(vectors(spec, device), spec), taps, _prefetched(spec))

    def stage_config(self, spec: ConvSpec, config: RowsDwConfig) -> DwStageConfig:
        return DwStageConfig(vector=config.vector, halo=config.vector, pitch=config.vector)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: RowsDwConfig) -> None:
        part, lanes, stage, dys, y = (sch.get_sblock(name) for name in (names.PART, names.LANES, names.STAGE, names.DYS, names.Y))
        n, c, band, _, _ = sch.get_loops(part)
        task = sch.fuse(n, c, band)
        for block in (lanes, stage, dys):
            sch.compute_at(block, task, preserve_unit_loops=True)
        tap, lane, row, column, _ = sch.get_loops(lanes)[-5:]
        block, inner = sch.split(tap, [None, config.taps])
        sch.reorder(block, row, column, inner, lane)
        sch.unroll(block)
        sch.unroll(inner)
        sch.vectorize(lane)
        init = sch.decompose_reduction(lanes, row)
        sch.unroll(sch.get_loops(init)[-2])
        sch.vectorize(sch.get_loops(init)[-1])
        sch.unroll(sch.get_loops(y)[1])  # one tap a statement: its place among the sums is then a constant
        if config.prefetch_planes:
            sch.annotate(row, names.PREFETCH, 1)

    def finish(self, func: Any, spec: ConvSpec, config: RowsDwConfig) -> Any:
        from tvm_orient.codegen.tir.confine_nonfinite import confined  # which needs the compiler

        g, vector = stencil(spec), config.vector
        func = _cut_stage(func, spec, config.vector)
        columns = round_up(spec.out_width, vector)
        func = cut(func, names.DYS, 3, sorted({0, spec.out_width, columns}), vector)
        x, dy, *_ = func.params

        def fetched(loops: Sequence[Any]) -> list[tuple[Any, int, bool]]:
            task, *_, row = loops
            n, c = task // dy.shape[1], task % dy.shape[1] + config.prefetch_planes
            return [(x[n, c, row * g.step[0], 0], g.step[0] * spec.width, False), (dy[n, c, row, 0], spec.out_width, False)]

        return confined(prefetched(func, spec.itemsize, fetched), spec)


TEMPLATE = Rows()
DW_TEMPLATE = RowsDw()
