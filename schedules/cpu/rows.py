"""CPU templates that vectorise along the row.

A task is one plane. Bands of the plane are staged with their halo, so that every tap is an unaligned load without a
test; a patch of rows and vectors is kept in registers while the taps pass over it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.codegen.tir.prefetch import PREFETCH, ahead
from tvm_orient.codegen.tir.vectorize_pieces import cut
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import round_up, stencil

from ..base import Decisions
from .base_unrolled import MOST_UNROLLED, Unrolled, vectors

_FEW = 12  # taps: the cost is in moving rows, not in multiply-adds


def _columns(spec: ConvSpec) -> int:
    """Outputs of one row and one column phase."""
    return -(-spec.width // spec.stride[1]) if spec.op != "conv_dw" else spec.out_width


def _rows(spec: ConvSpec) -> int:
    return spec.out_height if spec.op != "conv_dx" else spec.height


def _narrow(lanes: Sequence[int], spec: ConvSpec) -> int:
    """Vectors of 32 bytes: unaligned ones straddle cache lines half as often as those of 64, and waste less of a short row."""
    return max(v for v in lanes if v * DTYPES[spec.sums] <= 32 or v == lanes[-1])


def _ahead(spec: ConvSpec) -> int:
    """Planes ahead that are fetched without tuning: none where a plane is a few lines."""
    return int(spec.height * spec.width * spec.itemsize >= 512)


class Rows(Unrolled):
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

    name, version, ops = "cpu_rows", 3, ("conv", "conv_dx")

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        phases = spec.stride[0] if spec.op == "conv_dx" else 1
        rows = _rows(spec)
        patch = tuple(p for p in (1, 2, 3, 4, 6, 7, 8) if p % phases == 0 and p <= max(phases, rows)) or (phases,)
        bands = tuple(sorted({-(-rows // p) for p in (1, 2, 4, 7, 8, 16, 32, 64, 128)}))
        return {
            "vector": vectors(spec, device),
            "patch_h": patch,
            "patch_v": (1, 2, 3, 4, 7),
            "band_patches": bands,
            "tap_outer": (1, 0),
            "ahead": (0, 1, 2, 4),
        }

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        knobs, few = self.knobs(spec, device), len(spec.taps.distinct(0)) <= _FEW
        vector = _narrow(knobs["vector"], spec) if few or _columns(spec) <= 16 else knobs["vector"][0]
        across = -(-_columns(spec) // vector)
        patch_v = max(p for p in knobs["patch_v"] if p <= min(across, 4) and (p <= 2 or across % p == 0))
        most = 2 if few else 8 // patch_v
        heights = [p for p in knobs["patch_h"] if p <= most and _rows(spec) % p == 0] or [knobs["patch_h"][0]]
        whole = next(b for b in knobs["band_patches"] if b * heights[-1] >= _rows(spec))
        band = min(knobs["band_patches"], key=lambda b: (abs(b - 2), b)) if few else whole  # few taps, little halo: what was staged is still near
        decisions = {"vector": vector, "patch_h": heights[-1], "patch_v": patch_v, "band_patches": band, "tap_outer": int(not few), "ahead": _ahead(spec)}
        return decisions if self._invalid(spec, device, decisions) is None else {**decisions, "patch_h": knobs["patch_h"][0], "patch_v": 1}

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        work = len(spec.taps.distinct(0)) * decisions["patch_h"] * decisions["patch_v"]
        if work > MOST_UNROLLED and decisions["patch_v"] > 1:
            return f"a patch of {decisions['patch_h']} x {decisions['patch_v']} vectors unrolls to {work} multiply-adds, at most {MOST_UNROLLED}"
        return None

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(
            vector=decisions["vector"], halo=decisions["vector"], pitch=decisions["vector"], reduce=bool(decisions["tap_outer"]), vector_math=True
        )

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y, acc, stage = (sch.get_sblock(name) for name in ("y", "acc", "stage"))
        n, c, h, _ = sch.get_loops(y)
        task = sch.fuse(n, c)
        band, patch, row = sch.split(h, [None, decisions["band_patches"], decisions["patch_h"]])
        place, parted = patch, -(-_columns(spec) // decisions["vector"]) > decisions["patch_v"]
        if parted:  # sums of a patch then have places of their own, known at compile time: LLVM keeps them in registers
            kept = sch.cache_write(acc, 0, "global")
            sch.compute_at(kept, patch, preserve_unit_loops=True)
            rows, phase, vectors, lane = sch.get_loops(kept)[5:]
            place, beside = sch.split(vectors, [None, decisions["patch_v"]])
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
        if decisions["ahead"]:
            sch.annotate(patch, PREFETCH, 1)
        if tap:
            init = sch.decompose_reduction(acc, tap[0])
            *unrolled, last = sch.get_loops(init)[-4:]
            for loop in unrolled:
                sch.unroll(loop)
            sch.vectorize(last)
            folded = sch.get_sblock("folded")
            sch.compute_at(folded, task, preserve_unit_loops=True)
            sch.unroll(sch.get_loops(folded)[-1])

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        g, vector = stencil(spec), decisions["vector"]
        if g.phases[1] == 1:
            func = cut(func, "y", 3, (0, g.output[1]), vector)
        func = _cut_stage(func, spec, decisions)
        source, y = func.params[0], func.params[-1]

        def fetched(loops: Sequence[Any]) -> list[tuple[Any, int, bool]]:
            task, band, patch = loops
            n, c = task // y.shape[1], task % y.shape[1] + decisions["ahead"]
            row, rows = (band * decisions["band_patches"] + patch) * decisions["patch_h"], decisions["patch_h"]
            first = row * g.step[0] // g.phases[0]
            count = -(-rows * g.step[0] // g.phases[0])
            return [(source[n, c, first, 0], count * g.source[1], False), (y[n, c, row, 0], rows * g.output[1], True)]

        return ahead(func, spec.itemsize, fetched)


def _cut_stage(func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
    """Staging by whole vectors, where columns are not parted by a stride."""
    g, vector = stencil(spec), decisions["vector"]
    if g.step[1] > 1:
        return func
    stage = g.stage(round_up(-(-g.output[1] // g.phases[1]), vector), vector, vector)
    width = g.source[1]
    ends = range(stage.left % width, stage.columns, width) if g.wrap else (stage.left, stage.left + width)
    return cut(func, "stage", 4, (0, *(e for e in ends if 0 < e < stage.columns), stage.columns), vector)


class RowsDw(Unrolled):
    """Computes conv_dw of contiguous images on a CPU, any stride.

    A task is one plane. The sums of a block of taps stay in vector registers while the plane passes; a second pass adds the images in order. Rows
    are staged and planes prefetched as in `cpu_rows`. Weights whose sums are not finite are summed again by the rule of the reference
    (`tvm_orient/codegen/tir/confine_nonfinite.py`).
    """

    name, version, ops = "cpu_rows_dw", 2, ("conv_dw",)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {"vector": vectors(spec, device), "taps": (4, 8, 16, 24, 32), "ahead": (0, 1, 2, 4)}

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        taps = 8 if device.arch == "avx2" else 16  # it has 16 vector registers; AVX-512 and NEON have 32
        return {"vector": _narrow(vectors(spec, device), spec), "taps": taps, "ahead": _ahead(spec)}

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(vector=decisions["vector"], halo=decisions["vector"], pitch=decisions["vector"])

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        part, lanes, stage, dys, y = (sch.get_sblock(name) for name in ("part", "lanes", "stage", "dys", "y"))
        n, c, band, _, _ = sch.get_loops(part)
        task = sch.fuse(n, c, band)
        for block in (lanes, stage, dys):
            sch.compute_at(block, task, preserve_unit_loops=True)
        tap, lane, row, column, _ = sch.get_loops(lanes)[-5:]
        block, inner = sch.split(tap, [None, decisions["taps"]])
        sch.reorder(block, row, column, inner, lane)
        sch.unroll(block)
        sch.unroll(inner)
        sch.vectorize(lane)
        init = sch.decompose_reduction(lanes, row)
        sch.unroll(sch.get_loops(init)[-2])
        sch.vectorize(sch.get_loops(init)[-1])
        sch.unroll(sch.get_loops(y)[1])  # one tap a statement: its place among the sums is then a constant
        if decisions["ahead"]:
            sch.annotate(row, PREFETCH, 1)

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        from tvm_orient.codegen.tir.confine_nonfinite import confined  # which needs the compiler

        g, vector = stencil(spec), decisions["vector"]
        func = _cut_stage(func, spec, decisions)
        columns = round_up(spec.out_width, vector)
        func = cut(func, "dys", 3, sorted({0, spec.out_width, columns}), vector)
        x, dy, *_ = func.params

        def fetched(loops: Sequence[Any]) -> list[tuple[Any, int, bool]]:
            task, *_, row = loops
            n, c = task // dy.shape[1], task % dy.shape[1] + decisions["ahead"]
            return [(x[n, c, row * g.step[0], 0], g.step[0] * spec.width, False), (dy[n, c, row, 0], spec.out_width, False)]

        return confined(ahead(func, spec.itemsize, fetched), spec)


TEMPLATE, DW_TEMPLATE = Rows(), RowsDw()
