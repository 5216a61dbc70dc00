"""CUDA: as shared_patch, with patches that run across the whole plane, for planes that are small beside the line of taps.

A thread owns whole rows of outputs, or whole columns. Where along them a tap leaves the plane is then known at compile time: taps outside
are left out, and no halo is staged on that side. Consecutive lanes may lie in consecutive planes, whose distance keeps them in banks of
their own.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import passes
from tvm_orient.perf_model.patch_cost import Patch, held
from tvm_orient.problem.device import Device
from tvm_orient.problem.shear import line_slope
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stage, Stencil, round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MOST, ONE_TILE, Decisions
from ..tiling import quads
from .shared_patch import SharedPatch

_VECTOR = 4
_MOST_OUTPUTS = 112  # of an untuned strip: beyond, the compiler takes every register there is
_MOST_PRODUCTS, _MOST_OF_HALF = 2400, 3600  # multiply-adds of an untuned strip; half precision has less time for values that strips share
_PAIR = 2  # columns that are stored as one vector
_FEWEST, _MOST_THREADS = 28, 128  # threads of an untuned block


class Strips(SharedPatch):
    """Computes conv and conv_dx as `shared_patch` does, by patches that run across the whole plane.

    A thread owns whole rows of outputs where the line is shallow, whole columns where it is steep. Where along them a tap leaves the plane is
    then known when the loops are unrolled. Such taps are left out, and no halo is staged on that side: at 14x14 and K=31 the halo on all sides
    makes seven floats of stage for each of the plane. Consecutive lanes may lie in consecutive planes, some floats apart so that each plane is in
    banks of its own; where lanes own columns a larger distance lets a warp go on in the next plane, in the banks after those of the last column.
    """

    name, version = "strips", 3
    results_apart = True

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        (height, width), knobs = stencil(spec).output, super().knobs(spec, device)
        return {
            **knobs,
            "vector": quads(spec),
            "patch_h": tuple(sorted({*knobs["patch_h"], height})),
            "patch_w": tuple(sorted({*knobs["patch_w"], width})),
            "pad": (0,),
            "tile": (0,),
            "raw": (0,),
            "across": (0, 1),
            "skew": tuple(sorted({0, 1, 2, 4, self._on(spec)})),
        }

    def _on(self, spec: ConvSpec) -> int:
        """The skew with which columns go on in the next plane where they end in one."""
        return round_up(stencil(spec).output[1], quads(spec)[0]) % WARP

    def _pruned(self, spec: ConvSpec, decisions: Decisions) -> int:
        """The axis that a strip runs along."""
        return int(decisions["patch_w"] == stencil(spec).output[1])

    def _stage(self, spec: ConvSpec, decisions: Decisions) -> Stage:
        g = stencil(spec)
        return g.stage(-(-g.output[1] // g.phases[1]), _VECTOR, _VECTOR, pruned=self._pruned(spec, decisions))

    def _order(self, spec: ConvSpec, decisions: Decisions) -> Any:
        if not decisions["across"]:
            return super()._order(spec, decisions)
        shape = (decisions["row_patches"], -(-stencil(spec).output[1] // decisions["patch_w"]), decisions["planes"])
        row, column, plane = np.indices(shape).reshape(3, -1)
        return plane, row, column

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        g, knobs = stencil(spec), self.knobs(spec, device)
        patch_h, patch_w = min(((g.phases[0], g.output[1]), (g.output[0], g.phases[1])), key=math.prod)
        few = {"patch_h": min(p for p in knobs["patch_h"] if p >= patch_h), "patch_w": min(p for p in knobs["patch_w"] if p >= patch_w)}
        one = {"row_patches": 1, "planes": 1, "vector": knobs["vector"][0], "weights_shared": 0, "collect": 0, "pad": 0, "tile": 0, "raw": 0}
        return {**few, **one, "across": 0, "skew": 0, **ONE_TILE}

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        height, width = stencil(spec).output
        if decisions["patch_h"] != height and decisions["patch_w"] != width:
            return f"a strip must run across all {height} rows or all {width} columns, got {decisions['patch_h']} x {decisions['patch_w']}"
        if decisions["patch_h"] >= height and decisions["row_patches"] > 1:
            return f"one strip has all {height} rows, got row_patches={decisions['row_patches']}"
        words = max(decisions["vector"], math.gcd(width, _VECTOR) if decisions["collect"] else 1)
        if decisions["skew"] % words:
            return f"skew must be a multiple of the {words} values that are moved at once, got {decisions['skew']}"
        return super()._invalid(spec, device, decisions)

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """Choices worth an estimate: strips in blocks of a few warps, with few results or values at once.

        Not columns of 4: a vector of results is stored as soon as it is there, and the compiler takes every register to load ahead. Not rows or
        columns of 2 along a diagonal: lanes that are 2 apart read values one by one, and meet in banks.
        """
        g, knobs = stencil(spec), self.knobs(spec, device)
        height, width = g.output
        vector = knobs["vector"][0]
        pairs = line_slope(spec) in (None, 0)
        columns = [p for p in knobs["patch_w"] if width % p == 0 and p < width and p != _VECTOR and (p != _PAIR or pairs)]
        strips = [*((p, width) for p in knobs["patch_h"] if height % p == 0 and (p != _PAIR or pairs)), *((height, p) for p in columns)]
        for (patch_h, patch_w), planes, parts in itertools.product(strips, knobs["planes"], (1, 2)):
            rows = -(-height // patch_h)
            row_patches = next((r for r in knobs["row_patches"] if r * parts == rows), 0)
            if not row_patches or patch_h * patch_w > _MOST_OUTPUTS or spec.channels % planes:
                continue
            d = {"patch_h": patch_h, "patch_w": patch_w, "row_patches": row_patches, "planes": planes, "vector": vector}
            d |= {"pad": 0, "tile": 0, "raw": 0, **ONE_TILE}
            d["collect"] = int(len(g.every) > 1 and patch_w > 1 and not self._vector_store(spec, d))
            d["weights_shared"] = int(planes > 1 and planes * spec.kernel_size * DTYPES[spec.sums] <= MOST.weights)
            if not _FEWEST <= self._threads(spec, d) <= _MOST_THREADS:
                continue
            if self._own(spec, d).products > (_MOST_PRODUCTS if spec.dtype == "float32" else _MOST_OF_HALF):
                continue
            for across in (1,) if d["collect"] and planes > 1 else (0, 1):
                on = self._on(spec) if patch_h == height and planes > 1 else 0
                trial = {**d, "across": across, "skew": max(vector, math.gcd(width, _VECTOR)) if across else on}
                if self._shared(spec, {**trial, "collect": 0}) <= MOST.staged:
                    yield trial

    def _own(self, spec: ConvSpec, d: Decisions) -> Patch:
        return _strip(spec, d["patch_h"], d["patch_w"], self._stage(spec, d), self._pruned(spec, d))

    def _weights(self, spec: ConvSpec, d: Decisions) -> float:
        live = len([s for t in stencil(spec).every for s in t.taps])
        plane = self._order(spec, d)[0]
        if not d["weights_shared"]:
            return live * passes(plane * WARP, 1, lines=True)
        copied = 2 * spec.kernel_size * d["planes"] / WARP
        return live * passes(plane * spec.kernel_size, 1) + copied / -(-len(plane) // WARP)

    def _stores(self, g: Stencil, spec: ConvSpec, d: Decisions) -> tuple[float, float]:
        plane, row, column = self._order(spec, d)
        if not d["collect"]:
            words = d["patch_w"] if self._vector_store(spec, d) else 1
            base = plane * (g.output[0] * g.output[1]) + row * (d["patch_h"] * g.output[1]) + column * d["patch_w"]
            again = 1.0 if words == d["patch_w"] and not d["across"] else 8 / words
            return d["patch_h"] * d["patch_w"] / words * passes(base, words, lines=True), again
        size = d["row_patches"] * d["patch_h"] * g.output[1]
        words = math.gcd(d["patch_w"], g.output[1], d["skew"] or _VECTOR, _VECTOR)
        base = plane * self._apart(size, d) + row * (d["patch_h"] * g.output[1]) + column * d["patch_w"]
        return d["patch_h"] * d["patch_w"] / words * passes(base, words), 1.0

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        return dataclasses.replace(super().form(spec, decisions), pruned=self._pruned(spec, decisions))

    def _thread(self, sch: Any, plane: Any, row: Any, column: Any, decisions: Decisions) -> Any:
        if not decisions["across"]:
            return super()._thread(sch, plane, row, column, decisions)
        sch.reorder(row, column, plane)
        return sch.fuse(row, column, plane)


@functools.lru_cache(maxsize=4096)
def _strip(spec: ConvSpec, height: int, width: int, stage: Stage, pruned: int) -> Patch:
    """What a strip of outputs reads of the stage: taps that leave the plane along it are left out."""
    g, where = stencil(spec), []
    for i, j in itertools.product(range(height), range(width)):
        found = []
        for t in g.terms.get((i % g.phases[0], j % g.phases[1]), ()):
            row, column = i // g.phases[0] * g.step[0] + t.row, j // g.phases[1] * g.step[1] + t.col
            along = (row, column)[pruned]
            if not g.wrap and not 0 <= along < g.source[pruned]:
                continue
            if pruned:
                found.append((row + stage.top, 0, column % g.source[1]))
            else:
                phase, shift = stage.place(t.col)
                found.append((row % g.source[0], phase, j // g.phases[1] + shift))
        where.append(np.array(found, np.int64).reshape(-1, 3))
    align = math.gcd(stage.columns, width // g.phases[1] if not pruned else _VECTOR, _VECTOR)
    turned = [where[i * width + j] for j, i in itertools.product(range(width), range(height))]
    return min(held(where, align), held(turned, align), key=lambda own: own.alive)  # the compiler finds the better order


TEMPLATE = Strips()
