"""CUDA: halo tile staged in shared memory, a register patch of outputs per thread.

Offsets are constants and the tap loop is an expression, so nvcc keeps each loaded value for every output of the patch
that needs it and merges neighbours into 16-byte shared loads: 2 to 4 shared loads an output at K=31 instead of 31.
A block owns a band of rows of `planes` channels; it stages rows + max dh - min dh rows, and nothing more.
"""

from __future__ import annotations

import math
from typing import Any

from tvm_orient.device import Device
from tvm_orient.form import Form
from tvm_orient.gather import gather, round_up
from tvm_orient.spec import DTYPES, ConvSpec

from ..base import Decisions, Template, cooperate, most_dividing, quads

_VECTOR = 4  # floats in a 16-byte load
_MOST_TERMS = 160  # live terms of one output: beyond, the unrolled patch spills
_MOST_UNROLLED = 4096  # multiply-adds of one thread


class SharedPatch(Template):
    """conv and conv_dx, any stride."""

    name, version, kind, ops = "shared_patch", 2, "cuda", ("conv", "conv_dx")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if spec.sums != "float32":
            return f"for sums in float32, got {spec.dtype}"
        if spec.taps.groups == 1:
            terms = max(len(t) for t in gather(spec).terms.values())
            if terms > _MOST_TERMS:
                return f"unrolls at most {_MOST_TERMS} taps per output, got {terms}"
            least = self._least(spec, device)
            if self._shared(spec, least) > min(device.shared_memory, 49152):
                return f"one row with its halo needs more shared memory than the {min(device.shared_memory, 49152)} bytes of a block"
            return self._invalid(spec, device, least)
        return None

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        g = gather(spec)
        heights = tuple(p for p in (1, 2, 4, 7, 8) if p % g.phases[0] == 0) or (g.phases[0],)
        widths = tuple(p for p in (1, 2, 4, 7, 8) if p % g.phases[1] == 0) or (g.phases[1],)
        return {
            "patch_h": heights,
            "patch_w": widths,
            "row_patches": (1, 2, 4, 7, 8, 14),
            "planes": (1, 2, 4, 8, 16),
            "vector": quads(spec),
            "weights_shared": (0, 1),
        }

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        g, knobs = gather(spec), self.knobs(spec, device)
        height, width = g.output
        # nvcc keeps what a column of outputs shares until the last one is done: a vertical line gets two columns, or all registers go
        vertical = g.span() > 8 and len({term.col for term in g.every}) == 1
        aim = 2 if vertical else 4
        patch_w = min(knobs["patch_w"], key=lambda p: (-(-width // p) * p - width, p % 2 * (g.span() > 4), abs(math.log(p / aim))))
        aim = 8 if vertical else 7 if g.span() > 24 else 4  # steep lines share rows: a taller patch reads each once
        patch_h = min(
            (p for p in knobs["patch_h"] if p * patch_w <= 32 or p == knobs["patch_h"][0]), key=lambda p: (-(-height // p) * p - height, abs(math.log(p / aim)))
        )
        decisions = {"patch_h": patch_h, "patch_w": patch_w, "row_patches": 1, "planes": 1, "vector": knobs["vector"][0], "weights_shared": 0}
        best = decisions if self._invalid(spec, device, decisions) is None else self._least(spec, device)
        for row_patches in knobs["row_patches"]:
            for planes in knobs["planes"]:
                trial = {**decisions, "row_patches": row_patches, "planes": planes}
                if (
                    row_patches * patch_h < height + patch_h
                    and spec.channels % planes == 0
                    and self._invalid(spec, device, trial) is None
                    and self._score(spec, trial) > self._score(spec, best)
                ):
                    best = trial
        return best

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        """The decisions that need the least of everything: valid wherever any are."""
        knobs = self.knobs(spec, device)
        patch = {"patch_h": knobs["patch_h"][0], "patch_w": knobs["patch_w"][0]}
        narrow = next((w for w in knobs["patch_w"] if -(-gather(spec).output[1] // w) <= 1024), knobs["patch_w"][-1])
        return {**patch, "patch_w": narrow, "row_patches": 1, "planes": 1, "vector": knobs["vector"][0], "weights_shared": 0}

    def _score(self, spec: ConvSpec, decisions: Decisions) -> float:
        """Useful share of what a block loads and runs: staged rows that are not halo, times lanes that are not idle."""
        g = gather(spec)
        rows = min(decisions["row_patches"] * decisions["patch_h"], g.output[0])
        staged = (rows - 1) * g.step[0] + g.span()
        threads = self._threads(spec, decisions)
        lanes = threads / round_up(threads, 32)
        crowd = min(1.0, threads / 128) * min(1.0, 49152 / 2 / self._shared(spec, decisions))
        return float((rows * g.step[0] / staged) ** 0.5 * lanes * crowd**0.5)

    def _threads(self, spec: ConvSpec, decisions: Decisions) -> int:
        return decisions["planes"] * decisions["row_patches"] * -(-gather(spec).output[1] // decisions["patch_w"])

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Bytes of the staged tile."""
        g = gather(spec)
        stage = g.stage(-(-g.output[1] // g.phases[1]), _VECTOR, _VECTOR)
        rows = (-(-decisions["row_patches"] * decisions["patch_h"] // g.phases[0]) - 1) * g.step[0] + g.span()
        return decisions["planes"] * min(rows, stage.rows) * stage.phases * stage.columns * DTYPES[spec.sums]

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        threads, shared = self._threads(spec, decisions), self._shared(spec, decisions)
        if threads > 1024:
            return f"a block would have {threads} threads, at most 1024"
        if shared > min(device.shared_memory, 49152):
            return f"a block would stage {shared} bytes, at most {min(device.shared_memory, 49152)}"
        work = max(len(t) for t in gather(spec).terms.values()) * decisions["patch_h"] * decisions["patch_w"]
        if work > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        return None

    def form(self, spec: ConvSpec, decisions: Decisions) -> Form:
        return Form(halo=_VECTOR, pitch=_VECTOR, quad=decisions["vector"])

    def _vector_store(self, spec: ConvSpec, decisions: Decisions) -> bool:
        """Whether a thread's row of outputs is stored as one vector: rows must part into whole ones."""
        width = decisions["patch_w"]
        return spec.dtype == "float32" and width in (2, 4) and gather(spec).output[1] % width == 0

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y, stage = sch.get_sblock("y"), sch.get_sblock("stage")
        weights = sch.cache_read(y, 0 if sch.get(y).reads[0].source.name == "w" else 1, "shared") if decisions["weights_shared"] else None
        out = sch.cache_write(y, 0, "local") if self._vector_store(spec, decisions) else y
        n, c, h, w = sch.get_loops(out)
        block_c, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), decisions["planes"])])
        band, row, pixel_h = sch.split(h, [None, decisions["row_patches"], decisions["patch_h"]])
        column, pixel_w = sch.split(w, [None, decisions["patch_w"]])
        sch.reorder(n, block_c, band, plane, row, column, pixel_h, pixel_w)
        block = sch.fuse(n, block_c, band)
        sch.bind(block, "blockIdx.x")
        thread = sch.fuse(plane, row, column)
        threads = int(sch.get(thread).extent)
        sch.bind(thread, "threadIdx.x")
        if out != y:
            sch.compute_at(y, thread, preserve_unit_loops=True)
            for loop in sch.get_loops(y)[-2:]:
                sch.unroll(loop)
            sch.vectorize(pixel_w)
        else:
            sch.unroll(pixel_w)
        sch.unroll(pixel_h)
        sch.compute_at(stage, block, preserve_unit_loops=True)
        cooperate(sch, stage, threads, decisions["vector"])
        if weights is not None:
            sch.compute_at(weights, block, preserve_unit_loops=True)
            cooperate(sch, weights, threads, 1)


TEMPLATE = SharedPatch()
