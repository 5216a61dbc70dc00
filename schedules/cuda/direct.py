"""CUDA: no staging and no barrier; a thread loads what its small patch of outputs reads through the L1 cache.

For few taps, where a halo in shared memory costs more than it saves. The box that a patch reaches is staged in local scope and
unrolled, so that it lives in registers and nvcc drops the values that no tap reads.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import clocks, passes, soft_maximum
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil

from ..base import Decisions, Template
from ..tiling import most_dividing

_MOST_TERMS = 64  # live terms of one output
_MOST_UNROLLED = 1024  # multiply-adds of one thread
_MOST_STAGED = 1024  # values in the box around what a patch reads
_MOST_READ = 96  # values that an untuned patch reads: nvcc loads most of them first
_MOST_THREADS = 256  # of an untuned block
_TEST = 6  # instructions of a load that may lie outside the plane: its address and its tests


def _box(spec: ConvSpec, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the source that a patch of outputs reaches."""
    g = stencil(spec)
    ends = []
    for axis, outputs in ((0, height), (1, width)):
        offsets = [(t.row, t.col)[axis] for t in g.every] or [0]
        ends.append((-(-outputs // g.phases[axis]) - 1) * g.step[axis] + max(offsets) - min(offsets) + 1)
    return ends[0], ends[1]


def _read(spec: ConvSpec, height: int, width: int) -> int:
    """Distinct source pixels that a patch of outputs reads."""
    g = stencil(spec)
    return len({
        (i // g.phases[0] * g.step[0] + t.row, j // g.phases[1] * g.step[1] + t.col)
        for i in range(height) for j in range(width) for t in g.terms.get((i % g.phases[0], j % g.phases[1]), ())
    })  # fmt: skip


class Direct(Template):
    """Computes conv and conv_dx of few taps, any stride, without shared memory and without a barrier.

    A thread owns `patch_h` x `patch_w` outputs and loads what they read into registers, through the L1 cache; what lies outside the plane is
    tested for. At most 64 live taps per output and 1024 multiply-adds a thread.
    """

    name, version, kind, ops = "direct", 1, "cuda", ("conv", "conv_dx")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        terms = max(len(t) for t in stencil(spec).terms.values())
        if terms > _MOST_TERMS:
            return f"unrolls at most {_MOST_TERMS} taps per output, got {terms}"
        return self._invalid(spec, device, self._least(spec, device))

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        g = stencil(spec)
        heights = tuple(p for p in (1, 2, 4, 7, 8) if p % g.phases[0] == 0) or (g.phases[0],)
        widths = tuple(p for p in (1, 2, 4, 7, 8) if p % g.phases[1] == 0) or (g.phases[1],)
        return {"patch_h": heights, "patch_w": widths, "row_patches": (1, 2, 4, 7, 8, 14, 28, 56), "planes": (1, 2, 4, 8, 16)}

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        """The decisions that need the least of everything: valid wherever any are."""
        knobs, across = self.knobs(spec, device), stencil(spec).output[1]
        narrow = next((w for w in knobs["patch_w"] if -(-across // w) <= 1024), knobs["patch_w"][-1])
        return {"patch_h": knobs["patch_h"][0], "patch_w": narrow, "row_patches": 1, "planes": 1}

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        knobs, best = self.knobs(spec, device), self._least(spec, device)
        least = soft_maximum(self.estimate(spec, device, best))
        height, width = stencil(spec).output
        for patch_h, patch_w in itertools.product(knobs["patch_h"], knobs["patch_w"]):
            if patch_h >= 2 * height or patch_w >= 2 * width or patch_h * patch_w > 32 or _read(spec, patch_h, patch_w) > _MOST_READ:
                continue
            rows = next((r for r in knobs["row_patches"] if r * patch_h >= height), knobs["row_patches"][-1])
            across = rows * -(-width // patch_w)
            planes = next((p for p in knobs["planes"] if spec.channels % p == 0 and p * across >= 64), 1)
            trial = {"patch_h": patch_h, "patch_w": patch_w, "row_patches": rows, "planes": planes}
            if self._threads(spec, trial) <= _MOST_THREADS and self._invalid(spec, device, trial) is None:
                score = soft_maximum(self.estimate(spec, device, trial))
                if score < least:
                    best, least = trial, score
        return best

    def _threads(self, spec: ConvSpec, decisions: Decisions) -> int:
        return decisions["planes"] * decisions["row_patches"] * -(-stencil(spec).output[1] // decisions["patch_w"])

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        if (threads := self._threads(spec, decisions)) > 1024:
            return f"a block would have {threads} threads, at most 1024"
        height, width = decisions["patch_h"], decisions["patch_w"]
        work = max(len(t) for t in stencil(spec).terms.values()) * height * width
        if work > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        rows, columns = _box(spec, height, width)
        if rows * columns > _MOST_STAGED:
            return f"a patch reaches {rows} x {columns} pixels, at most {_MOST_STAGED}"
        return None

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 outputs by resource, before anything is compiled."""
        g, figure, d = stencil(spec), nearest(device.arch), decisions
        (height, width), area, threads = g.output, d["patch_h"] * d["patch_w"], self._threads(spec, d)
        shape = (d["planes"], d["row_patches"], -(-width // d["patch_w"]))
        plane, row, column = np.indices(shape).reshape(3, -1)
        down, across = d["patch_h"] // g.phases[0] * g.step[0], d["patch_w"] // g.phases[1] * g.step[1]
        first = plane * math.prod(g.source) + row * down * g.source[1] + column * across
        stored = plane * (height * width) + row * d["patch_h"] * width + column * d["patch_w"]
        read, weights = _read(spec, d["patch_h"], d["patch_w"]), sum(len(t.taps) for t in g.every)
        band = min(height, d["row_patches"] * d["patch_h"])
        outputs, warps = d["planes"] * band * width, -(-threads // 32)
        memory = warps * (read * passes(first, 1, lines=True) + area * passes(stored, 1, lines=True) + weights * max(1.0, 32 * d["planes"] / threads))
        products = area * sum(map(len, g.terms.values())) / len(g.terms)
        others = read * _TEST + 2 * weights + 2 * area
        fetched = d["planes"] * min((band - 1) * g.step[0] // g.phases[0] + g.span(), g.source[0]) * g.source[1]
        dram = spec.itemsize * outputs * (1 + math.prod(g.source) / (height * width))
        l2 = spec.itemsize * (fetched + min(8.0, d["patch_w"]) * outputs)
        return clocks(figure, threads, outputs, 0, read + weights + area, memory, products, others, 0, dram, l2)

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return StageConfig(sweep=True, narrow=True)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y, stage = sch.get_sblock("y"), sch.get_sblock("stage")
        n, c, h, w = sch.get_loops(y)
        block_c, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), decisions["planes"])])
        band, row, pixel_h = sch.split(h, [None, decisions["row_patches"], decisions["patch_h"]])
        column, pixel_w = sch.split(w, [None, decisions["patch_w"]])
        sch.reorder(n, block_c, band, plane, row, column, pixel_h, pixel_w)
        sch.bind(sch.fuse(n, block_c, band), "blockIdx.x")
        thread = sch.fuse(plane, row, column)
        sch.bind(thread, "threadIdx.x")
        sch.set_scope(stage, 0, "local")
        sch.compute_at(stage, thread, preserve_unit_loops=True)
        for loop in (*sch.get_loops(stage)[-4:], pixel_h, pixel_w):
            sch.unroll(loop)


TEMPLATE = Direct()
