"""CUDA: weight gradient in two fixed-order passes, no atomics.

First pass: a block owns a band of rows of `planes` channels; a thread owns patches of pixels and keeps one sum per distinct
tap in registers, so that each staged value serves every tap that needs it. Second pass: sums over bands and images.
"""

from __future__ import annotations

import math
from typing import Any

from tvm_orient.device import Device
from tvm_orient.form import Form
from tvm_orient.gather import gather, round_up
from tvm_orient.spec import DTYPES, ConvSpec

from ..base import Decisions, Template, cooperate, most_dividing, quads

_VECTOR = 4
_MOST_SHARED = 36864  # bytes of one angle: merged angles add the largest of each buffer, and a kernel may have 48 KiB
_MOST_TAPS = 64  # sums of one thread, all in registers
_MOST_UNROLLED = 2048  # multiply-adds of one patch


class ConvDw(Template):
    """conv_dw, any stride."""

    name, version, kind, ops = "two_pass_dw", 1, "cuda", ("conv_dw",)

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if spec.sums != "float32":
            return f"for sums in float32, got {spec.dtype}"
        if spec.taps.groups == 1:
            taps = len(gather(spec).every)
            if taps > _MOST_TAPS:
                return f"keeps at most {_MOST_TAPS} sums in registers, got {taps} live taps"
            return self._invalid(spec, device, self._least(spec, device))
        return None

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        width = spec.out_width
        lanes = tuple(sorted({-(-width // p) for p in (1, 2, 4, 7, 8)}))
        return {
            "patch_h": (1, 2, 4, 7), "patch_w": (1, 2, 4, 7), "lanes": lanes, "rows": (1, 2, 4, 7, 8, 14, 16, 28, 56), "row_lanes": (1, 2, 4, 7, 8),
            "planes": (1, 2, 4, 8, 16), "vector": quads(spec),
        }  # fmt: skip

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        knobs, height, width = self.knobs(spec, device), spec.out_height, spec.out_width
        patch_w = min(knobs["patch_w"], key=lambda p: (-(-width // p) * p - width, abs(math.log(p / 4))))
        patch_h = min((p for p in knobs["patch_h"] if p * patch_w <= 16 or p == 1), key=lambda p: (-(-height // p) * p - height, abs(math.log(p / 4))))
        lanes = max(n for n in knobs["lanes"] if n <= -(-width // patch_w))
        best = self._least(spec, device)
        for rows in knobs["rows"]:
            for row_lanes in knobs["row_lanes"]:
                for planes in knobs["planes"]:
                    trial = {
                        "patch_h": patch_h,
                        "patch_w": patch_w,
                        "lanes": lanes,
                        "rows": rows,
                        "row_lanes": row_lanes,
                        "planes": planes,
                        "vector": knobs["vector"][0],
                    }
                    fits = rows <= max(height, patch_h) and spec.channels % planes == 0 and self._invalid(spec, device, trial) is None
                    if fits and self._score(spec, trial) > self._score(spec, best):
                        best = trial
        return best

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        """The decisions that need the least of everything: valid wherever any are."""
        knobs = self.knobs(spec, device)
        return {"patch_h": 1, "patch_w": 1, "lanes": knobs["lanes"][0], "rows": 1, "row_lanes": 1, "planes": 1, "vector": knobs["vector"][0]}

    def _score(self, spec: ConvSpec, decisions: Decisions) -> float:
        """Useful share of the staged rows, of the padded rows and of the lanes, for blocks of at least four warps."""
        g, height, rows = gather(spec), spec.out_height, decisions["rows"]
        threads = self._threads(decisions)
        staged = (rows - 1) * g.step[0] + g.span()
        padded = -(-height // rows) * rows
        work = min(1.0, rows / decisions["row_lanes"] / decisions["patch_h"] / 2)  # sums are reduced once a band
        return float((rows * g.step[0] / staged) ** 0.5 * height / padded * threads / round_up(threads, 32) * min(1.0, threads / 128) ** 0.5 * work**0.25)

    def _threads(self, decisions: Decisions) -> int:
        return decisions["planes"] * decisions["lanes"] * decisions["row_lanes"]

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Bytes of the staged x and dy, and of the partial sums."""
        g = gather(spec)
        columns = round_up(spec.out_width, decisions["lanes"] * decisions["patch_w"])
        stage = g.stage(columns, _VECTOR, _VECTOR)
        rows = min((decisions["rows"] - 1) * g.step[0] + g.span(), stage.rows)
        sums = len(g.every) * decisions["lanes"] * decisions["row_lanes"]
        return decisions["planes"] * (rows * stage.phases * stage.columns + decisions["rows"] * columns + sums) * DTYPES[spec.sums]

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        threads, shared = self._threads(decisions), self._shared(spec, decisions)
        if threads > 1024:
            return f"a block would have {threads} threads, at most 1024"
        if shared > _MOST_SHARED:
            return f"a block would use {shared} bytes of shared memory, at most {_MOST_SHARED}"
        if decisions["rows"] % (decisions["row_lanes"] * decisions["patch_h"]):
            return f"rows must be a multiple of row_lanes * patch_h, got {decisions['rows']} and {decisions['row_lanes']} * {decisions['patch_h']}"
        work = len(gather(spec).every) * decisions["patch_h"] * decisions["patch_w"]
        if work > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        return None

    def form(self, spec: ConvSpec, decisions: Decisions) -> Form:
        d = decisions
        return Form(vector=d["lanes"], halo=_VECTOR, pitch=_VECTOR, quad=d["vector"], rows=d["rows"], run=d["patch_w"], row_lanes=d["row_lanes"])

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        part, lanes, stage, dys = (sch.get_sblock(name) for name in ("part", "lanes", "stage", "dys"))
        n, c, band, tap, lane = sch.get_loops(part)
        block_c, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), decisions["planes"])])
        sch.reorder(n, block_c, band, plane, tap, lane)
        block = sch.fuse(n, block_c, band)
        sch.bind(block, "blockIdx.x")
        for b in (lanes, stage, dys):
            sch.compute_at(b, block, preserve_unit_loops=True)
        planes, threads = int(sch.get(plane).extent), int(sch.get(plane).extent) * decisions["lanes"] * decisions["row_lanes"]
        self._sum(sch, lanes, decisions)
        cooperate(sch, stage, threads, decisions["vector"])
        cooperate(sch, dys, threads, 1)
        sums = sch.fuse(plane, tap)
        _, inner = sch.split(sums, [None, max(32, planes * decisions["lanes"] * decisions["row_lanes"])])
        sch.bind(inner, "threadIdx.x")
        self._second_pass(sch)

    def _sum(self, sch: Any, lanes: Any, decisions: Decisions) -> None:
        """One thread a (plane, lane): its patches row by row, all taps unrolled inside."""
        sch.set_scope(lanes, 0, "shared")
        copy = sch.cache_write(lanes, 0, "local")
        *_, plane, band, tap, lane = sch.get_loops(copy)
        sch.reorder(plane, band, lane, tap)
        thread = sch.fuse(plane, band, lane)
        sch.bind(thread, "threadIdx.x")
        sch.unroll(tap)
        sch.compute_at(lanes, thread, preserve_unit_loops=True)
        *_, tap, _, row, column, pixel = sch.get_loops(lanes)
        outer, patch = sch.split(row, [None, decisions["patch_h"]])
        sch.reorder(outer, column, patch, pixel, tap)
        for loop in (patch, pixel, tap):
            sch.unroll(loop)
        init = sch.decompose_reduction(lanes, outer)
        for loop in sch.get_loops(init)[-5:]:
            sch.unroll(loop)

    def _second_pass(self, sch: Any) -> None:
        """A thread a weight sums over images and bands in order: a cross-thread reduction would not survive the merge of angles."""
        channel, tap, *_ = sch.get_loops(sch.get_sblock("y"))
        outer, inner = sch.split(sch.fuse(channel, tap), [None, 64])
        sch.bind(outer, "blockIdx.x")
        sch.bind(inner, "threadIdx.x")


TEMPLATE = ConvDw()
