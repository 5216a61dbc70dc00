"""CUDA: as two_pass_dw, for planes that are small beside the line of taps: a thread owns whole rows of dy, or whole columns.

Where along them a tap leaves the plane is then known at compile time: those products are left out, and x has no halo on that side.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import ALONE, clocks, passes
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import Patch, held
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stage, Stencil, round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import Decisions
from ..default import CLOSE, least_estimate
from ..staging import apart, cooperate, cooperate_by_rows
from ..tiling import divisors, quads
from .base_dw import AHEAD, SLICES, TwoPass

_VECTOR = 4
_MOST_RUN = 8  # rows or columns of a strip
_MOST_HELD = 200  # values, sums and dy at once of an untuned strip
_FEWEST, _MOST_THREADS = 24, 256  # threads of an untuned block


class StripsDw(TwoPass):
    """Computes conv_dw as `two_pass_dw` does, by threads that own whole rows of dy, or whole columns.

    As in `strips`, products with what lies outside the plane along them are left out, and x has no halo there. Pixels are taken along the strip,
    all rows (or columns) of it at each place, so that a value of x is needed for a short time and by several of them. Planes of x and dy are
    staged, at most 64 sums a thread, and the passes are those of `two_pass_dw`. Untuned, of strips of equal estimates the thinnest is taken,
    which has the least code.
    """

    name, version = "strips_dw", 1

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        height, width = stencil(spec).output
        return {
            "patch_h": tuple(sorted({*divisors(height, _MOST_RUN), height})), "patch_w": tuple(sorted({*divisors(width, _MOST_RUN), width})),
            "planes": (1, 2, 4, 8, 16, 32), "vector": quads(spec), "across": (0, 1),
        }  # fmt: skip

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        return dict(least_estimate(self, spec, device, CLOSE))

    def _pruned(self, spec: ConvSpec, decisions: Decisions) -> int:
        """The axis that a strip runs along."""
        return int(decisions["patch_w"] == stencil(spec).output[1])

    def _run(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Rows or columns of a strip."""
        return decisions["patch_h"] if self._pruned(spec, decisions) else decisions["patch_w"]

    def _lanes(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Strips of a plane."""
        return stencil(spec).output[1 - self._pruned(spec, decisions)] // self._run(spec, decisions)

    def _stage(self, spec: ConvSpec, decisions: Decisions) -> Stage:
        g = stencil(spec)
        return g.stage(g.output[1], _VECTOR, _VECTOR, pruned=self._pruned(spec, decisions))

    def _sizes(self, spec: ConvSpec, decisions: Decisions) -> tuple[int, int]:
        """Floats from one staged plane of x to the next, and of dy."""
        stage, g = self._stage(spec, decisions), stencil(spec)
        factor, ahead = self._apart(spec, decisions)
        x, dy = stage.rows * stage.phases * stage.columns, g.output[0] * g.output[1]
        return round_up(x - ahead, factor) + ahead, round_up(dy - ahead, factor) + ahead

    def _apart(self, spec: ConvSpec, decisions: Decisions) -> tuple[int, int]:
        """Planes lie (second) floats apart, but for multiples of (first): lanes of several then read banks of their own, and copies stay aligned."""
        (height, width), stage = stencil(spec).output, self._stage(spec, decisions)
        quad = 4 if height * width % 4 == 0 == stage.rows * stage.phases * stage.columns % 4 else decisions["vector"]
        return apart(quad if decisions["across"] else round_up(width, quad) % WARP)

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        height, width = stencil(spec).output
        if decisions["patch_h"] != height and decisions["patch_w"] != width:
            return f"a strip must run across all {height} rows or all {width} columns, got {decisions['patch_h']} x {decisions['patch_w']}"
        size = decisions["planes"] * DTYPES[spec.sums]
        staged, dy = self._sizes(spec, decisions)
        return self._unfit(spec, decisions["planes"] * self._lanes(spec, decisions), size * staged, size * dy, self.unrolled(spec, decisions))

    def unrolled(self, spec: ConvSpec, decisions: Decisions) -> int:
        return _products(spec, self._pruned(spec, decisions), self._run(spec, decisions))

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        """The thinnest strips of one plane that serve, or rows where none do."""
        (height, width), knobs = stencil(spec).output, self.knobs(spec, device)
        strips = [*((p, width) for p in knobs["patch_h"]), *((height, p) for p in knobs["patch_w"])]
        trials = [{"patch_h": h, "patch_w": w, "planes": 1, "vector": knobs["vector"][0], "across": 0} for h, w in strips]
        return next((trial for trial in trials if self._invalid(spec, device, trial) is None), trials[0])

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """Choices worth an estimate, those of least code first: strips whose values fit the registers, in blocks of a few warps."""
        (height, width), knobs, taps = stencil(spec).output, self.knobs(spec, device), len(stencil(spec).every)
        strips = [*((p, width) for p in knobs["patch_h"] if p < height), *((height, p) for p in knobs["patch_w"] if p < width)]
        for (patch_h, patch_w), planes, across in itertools.product(sorted(strips, key=math.prod), knobs["planes"], knobs["across"]):
            d = {"patch_h": patch_h, "patch_w": patch_w, "planes": planes, "vector": knobs["vector"][0], "across": across}
            if spec.channels % planes or (planes == 1 and across) or not _FEWEST <= planes * self._lanes(spec, d) <= _MOST_THREADS:
                continue
            if self._invalid(spec, device, d) is not None:  # asked first: a long strip takes seconds to look at
                continue
            if _strip(spec, self._pruned(spec, d), self._run(spec, d))[0].alive + taps + 2 * self._run(spec, d) <= _MOST_HELD:
                yield d

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 pixels of dy by resource, of the first pass, before anything is compiled."""
        g, figure, d = stencil(spec), nearest(device.arch), decisions
        (height, width), pruned, run, lanes, planes = g.output, self._pruned(spec, d), self._run(spec, d), self._lanes(spec, d), d["planes"]
        own, taps, threads, stage = _strip(spec, pruned, run)[0], max(1, len(g.every)), planes * lanes, self._stage(spec, d)
        warps, pixels, area = -(-threads // WARP), height * width, run * g.output[pruned]
        plane, lane = np.indices((planes, lanes)).reshape(2, -1)
        if d["across"]:
            lane, plane = np.indices((lanes, planes)).reshape(2, -1)
        x, dy = self._sizes(spec, d)
        row = stage.phases * stage.columns
        loads = sum(count * passes(plane * x + lane * run * (row * g.step[0] if pruned else 1), words) for words, count in own.loads.items() if count)
        quad = math.gcd(width if pruned else run, _VECTOR)
        loads += area / quad * passes(plane * dy + lane * run * (width if pruned else 1), quad)
        staged = planes * (stage.rows * row + pixels)
        part = spec.itemsize / DTYPES[spec.sums]
        fetched = planes * (g.source[0] * g.source[1] + pixels)
        memory = warps * (loads + taps) + (staged + 1.3 * part * fetched + threads * taps) / WARP
        others = sum(own.loads.values()) + area / quad + 3 * taps
        shared = 4 * planes * (x + dy)
        copies = (planes * stage.rows * row / d["vector"] + planes * pixels / (4 if pixels % 4 == 0 else 1)) / threads
        moved = spec.itemsize * fetched + 4 * planes * taps
        registers = own.alive + taps + 2 * run
        return clocks(figure, threads, planes * pixels, shared, registers, memory, own.products, others, copies, moved, moved + 4 * planes * taps, least=ALONE)

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        d = decisions
        return StageConfig(
            pruned=self._pruned(spec, d), run=self._run(spec, d), halo=_VECTOR, pitch=_VECTOR, quad=d["vector"], joins=self._joins(spec, self._lanes(spec, d)),
            slices=SLICES, ahead=AHEAD,
        )  # fmt: skip

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        block, threads = self._first_pass(sch, spec, decisions["planes"], self._lanes(spec, decisions))
        self._sum_unrolled(sch, block, _strip(spec, self._pruned(spec, decisions), self._run(spec, decisions))[1], bool(decisions["across"]))
        for name, vector in (("stage", decisions["vector"]), ("dys", 0)):
            staged = sch.get_sblock(name)
            sch.compute_at(staged, block, preserve_unit_loops=True)
            vector = vector or int(sch.get(sch.get_loops(staged)[-1]).extent)
            if spec.dtype != "float32" and name == "dys":
                cooperate(sch, staged, threads, vector)
            else:
                cooperate_by_rows(sch, staged, threads, vector, unroll=spec.dtype == "float32")
            sch.storage_align(staged, 0, 1, *self._apart(spec, decisions))
        self._second_pass(sch)

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        from tvm_orient.codegen.tir.fuse_groups import SKIP_RENORMALIZE

        return func.with_attr(SKIP_RENORMALIZE, True) if spec.dtype == "float32" else func  # elsewhere the pass finds something


def _products(spec: ConvSpec, pruned: int, run: int) -> int:
    """Multiply-adds of a strip."""
    g = stencil(spec)
    places = np.arange(g.output[pruned])[:, None] * g.step[pruned] + np.array([(t.row, t.col)[pruned] for t in g.every], np.int64)
    return run * (places.size if g.wrap else int(((places >= 0) & (places < g.source[pruned])).sum()))


@functools.lru_cache(maxsize=4096)
def _strip(spec: ConvSpec, pruned: int, run: int) -> tuple[Patch, bool]:
    """What a strip reads of the stage, and whether fewer values are held at once with the loop along it outside the one across it."""
    g, found = stencil(spec), []
    stage, along = g.stage(g.output[1], _VECTOR, _VECTOR, pruned=pruned), g.output[pruned]
    align = math.gcd(stage.columns, _VECTOR if pruned else run, _VECTOR)
    for along_first in (True, False):
        order = itertools.product(range(along), range(run)) if along_first else ((q, p) for p in range(run) for q in range(along))
        found.append((held([_reads(g, stage, pruned, q, p) for q, p in order], align), along_first))
    return min(found, key=lambda pair: pair[0].alive)


def _reads(g: Stencil, stage: Stage, pruned: int, along: int, across: int) -> Any:
    """(row, column phase, column) of the stage that a pixel of a strip reads."""
    taps = np.array([(t.row, t.col, *stage.place(t.col)) for t in g.every], np.int64).reshape(-1, 4)
    place = taps[:, pruned] + along * g.step[pruned]
    live = np.full(len(taps), True) if g.wrap else (place >= 0) & (place < g.source[pruned])
    row, _, phase, shift = taps[live].T
    place = place[live] % g.source[pruned]
    if pruned:
        return np.stack([row + across * g.step[0] + stage.top, np.zeros_like(place), place], axis=1)
    return np.stack([place, phase, shift + across], axis=1)


TEMPLATE = StripsDw()
