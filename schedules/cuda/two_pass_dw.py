"""CUDA: weight gradient in two fixed-order passes, no atomics.

First pass: a block owns a band of rows of `planes` channels; a thread owns patches of pixels and keeps one sum per distinct
tap in registers, so that each staged value serves every tap that needs it. Second pass: sums over bands and images.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import ALONE, clocks, passes
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import Patch, cells, patch
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stage, round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import Decisions
from ..default import least_estimate
from ..staging import by_rows, cooperate_by_rows, copied_by_rows
from ..tiling import quads, tiles
from . import plane_dw_cost
from .base_dw import AHEAD, MOST_UNROLLED, SLICES, TwoPass

_VECTOR = 4
_MOST_THREADS, _PATCHES, _MOST_HELD = 256, 8, 180  # of an untuned block; patches that are estimated; values, sums and dy of one at once
_FEWEST, _CUTS, _WIDTHS = 48, 12, (1, 2, 4, 7, 8)  # threads of a block of a strided or wide plane; such blocks that are estimated; of patches


class ConvDw(TwoPass):
    """Computes conv_dw of contiguous images on a GPU, any stride, in two passes.

    First pass: a block stages a band of x of several channels as `shared_patch` does, most often the whole plane, or a tile of a strided or wide
    one. A thread owns a patch of `patch_h` x `patch_w` pixels, or several one below the other, and keeps one sum per distinct tap in registers,
    at most 64: a staged value serves every tap that needs it. A pixel of dy is read by one thread, which loads its own by vectors; where patches
    are 7 wide dy is staged (`dy_shared`), since lanes 7 floats apart would touch a line each. The lanes' sums meet in shared memory at an odd
    pitch and are summed in groups, then the groups. With `whole` a thread owns a whole plane, of at most 256 pixels: every index is then known
    when the loops are unrolled, so there is no halo, no product with a zero outside the plane, and no sum over lanes.

    Second pass: 16 threads a weight each sum every sixteenth image, four loads at a time, and one sums the sixteen. All sums are in a fixed
    order. There are no atomics.
    """

    name, version = "two_pass_dw", 3

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        cut = tiles(spec)
        return {
            "patch_h": (1, 2, 4, 7, 8, 14), "patch_w": _WIDTHS, "lanes": tuple(sorted({-(-(t or spec.out_width) // p) for t in cut for p in _WIDTHS})),
            "row_lanes": (1, 2, 4, 7, 8, 14), "turns": (1, 2, 4, 7, 14), "planes": (1, 2, 4, 8, 16, 32, 64), "vector": quads(spec, len(cut) > 1),
            "dy_shared": (0, 1), "pad": (0, 4, 8, 12, 16, 20, 24, 28), "whole": (0, 1) if plane_dw_cost.serves(spec) else (0,), "tile": cut,
        }  # fmt: skip

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        return dict(least_estimate(self, spec, device))

    def _patches(self, spec: ConvSpec, device: Device, tile: int) -> list[tuple[float, int, int]]:
        """(passes of a pixel, height, width) of those patches that load least, whose values fit the registers."""
        g, knobs, taps, ranked = stencil(spec), self.knobs(spec, device), len(stencil(spec).every), []
        height, width = g.output
        for patch_h, patch_w in itertools.product(knobs["patch_h"], knobs["patch_w"]):
            area = patch_h * patch_w
            if area * taps > MOST_UNROLLED or patch_h >= 2 * height or patch_w >= 2 * width:
                continue
            own = self._patch(spec, patch_h, patch_w, tile)
            if own.alive + taps + area <= _MOST_HELD:
                covered = -(-height // patch_h) * -(-width // patch_w) * area / (height * width)
                if tile:
                    step = patch_w * stencil(spec).step[1]
                    loads = sum(count * passes(np.arange(WARP) * step, words) for words, count in own.loads.items() if count)
                else:
                    loads = sum(count * (4 if patch_w % 4 == 0 else words) for words, count in own.loads.items()) + 2 * taps
                ranked.append((loads / area * covered, patch_h, patch_w))
        return sorted(ranked)[:_PATCHES]

    def _patch(self, spec: ConvSpec, patch_h: int, patch_w: int, tile: int) -> Patch:
        g = stencil(spec)
        key = cells(g, -(-g.output[1] // g.phases[1]), _VECTOR, _VECTOR, tile)
        return patch(key, patch_h, patch_w, math.gcd(patch_w * (g.step[1] if tile else 1), _VECTOR), True)

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """Choices worth an estimate: the best patches in bands that part the plane evenly, in blocks of a few warps; whole planes."""
        knobs = self.knobs(spec, device)
        for number in (p for p in knobs["planes"] if spec.channels % p == 0 and knobs["whole"][-1]):
            yield {**self._least(spec, device), "planes": number, "whole": 1}
        if len(knobs["tile"]) > 1:
            yield from self._cuts(spec, device)
            if quads(spec, True) != (1,):
                return
        for _, patch_h, patch_w in self._patches(spec, device, 0):
            rows, lanes = -(-spec.out_height // patch_h), -(-spec.out_width // patch_w)
            for parts, planes, dy_shared in itertools.product((1, 2, 4), (p for p in knobs["planes"] if spec.channels % p == 0), (0, 1)):
                row_lanes = min((r for r in knobs["row_lanes"] if r * parts >= rows), default=knobs["row_lanes"][-1])
                turns = min((t for t in knobs["turns"] if row_lanes * t * parts >= rows), default=knobs["turns"][-1])
                d = {"patch_h": patch_h, "patch_w": patch_w, "lanes": lanes, "row_lanes": row_lanes, "turns": turns, "planes": planes}
                trial = {**d, "vector": quads(spec)[0], "dy_shared": dy_shared, "pad": 0, "whole": 0, "tile": 0}
                if self._threads(trial) <= _MOST_THREADS and (parts == 1 or row_lanes * parts < 2 * rows):
                    yield self._padded(spec, trial)

    def _cuts(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """The best patches in tiles of columns, in bands that part the plane evenly where any do; those that stage and sum least."""
        knobs, height, taps = self.knobs(spec, device), spec.out_height, len(stencil(spec).every)
        found: list[Any] = []
        cut = [t for t in knobs["tile"] if t and spec.out_width % t == 0 and t * spec.stride[1] % quads(spec, True)[0] == 0]
        for cost, patch_h, patch_w in self._patches(spec, device, cut[0]) if cut else ():
            for tile, row_lanes, turns in itertools.product((t for t in cut if t % patch_w == 0), knobs["row_lanes"], knobs["turns"]):
                lanes, band = tile // patch_w, patch_h * row_lanes * turns
                planes = next((p for p in knobs["planes"] if spec.channels % p == 0 and p * lanes * row_lanes >= _FEWEST), 1)
                d = {"patch_h": patch_h, "patch_w": patch_w, "lanes": lanes, "row_lanes": row_lanes, "turns": turns, "planes": planes}
                trial = {**d, "vector": quads(spec, True)[0], "dy_shared": int(patch_w == 7), "pad": 0, "whole": 0, "tile": tile}
                if band < height + patch_h and self._threads(trial) <= _MOST_THREADS and self._invalid(spec, device, trial) is None:
                    stage, rows = self._stage(spec, trial)
                    staging = 2.3 * rows * stage.columns * -(-height // band) / (height * tile)
                    found.append((cost * -(-height // band) * band / height + staging + 2 * taps / (patch_h * patch_w * turns), *trial.values()))
        for _, *values in sorted(found)[:_CUTS]:
            yield self._padded(spec, dict(zip(knobs, values, strict=True)))

    def _padded(self, spec: ConvSpec, decisions: Decisions) -> Decisions:
        """The decisions with the least padding that keeps a warp's lanes in banks of their own, as far as any does."""
        words = decisions["patch_w"] if decisions["patch_w"] in (2, 4) else 1
        if decisions["tile"]:
            words = math.gcd(decisions["patch_w"] * spec.stride[1], _VECTOR)
        best, fewest = decisions, math.inf
        for pad in (0, 4, 8, 12, 16, 20, 24, 28):
            trial = {**decisions, "pad": pad}
            count = passes(self._places(spec, trial)[: 2 * WARP], words)
            if count < fewest:
                best, fewest = trial, count
            if count <= words:
                break
        return best

    def _places(self, spec: ConvSpec, decisions: Decisions, dy: bool = False, inside: bool = False) -> Any:
        """Float of the staged x, of the staged dy, or of dy itself (inside), that each thread's first patch begins at."""
        d, (stage, rows) = decisions, self._stage(spec, decisions)
        shape = (d["planes"], d["row_lanes"], d["lanes"])
        plane, row, column = np.indices(shape).reshape(3, -1)
        if dy:
            pitch, tall = (spec.out_width, spec.out_height) if inside else (self._columns(spec, d), self._rows(d))
            return plane * (tall * pitch) + row * (d["turns"] * d["patch_h"] * pitch) + column * d["patch_w"]
        pitch = stage.phases * stage.columns
        return plane * (rows * pitch) + row * (d["turns"] * d["patch_h"] * stencil(spec).step[0] * pitch) + column * (d["patch_w"] * stage.across)

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 pixels of dy by resource, of the first pass, before anything is compiled."""
        g, figure, d = stencil(spec), nearest(device.arch), decisions
        if d["whole"]:
            return plane_dw_cost.estimate(spec, figure, d["planes"])
        height, width = g.output
        stage, rows = self._stage(spec, d)
        own, taps, threads, quad = self._patch(spec, d["patch_h"], d["patch_w"], d["tile"]), max(1, len(g.every)), self._threads(d), self._dy_quad(spec, d)
        warps, area = -(-threads // WARP), d["patch_h"] * d["patch_w"]
        band = height / -(-height // self._rows(d)) if d["tile"] else min(height, self._rows(d))  # wanted rows of a block, on average
        patches = d["turns"] * self._columns(spec, d) // (d["lanes"] * d["patch_w"])
        outputs, padded = d["planes"] * band * (d["tile"] or width), d["planes"] * self._rows(d) * self._columns(spec, d)
        staged = d["planes"] * rows * stage.phases * stage.columns
        fetched = d["planes"] * min(rows, g.source[0]) * min(stage.columns if d["tile"] else g.source[1], g.source[1])
        place = self._places(spec, d)
        loads = sum(count * passes(place, words) for words, count in own.loads.items() if count)
        part = spec.itemsize / DTYPES[spec.sums]  # of a word that a value takes in memory
        if d["dy_shared"]:
            across = passes(self._places(spec, d, True), 1)
        else:
            across = passes((self._places(spec, d, True, True) * part).astype(int), max(1, int(quad * part)), lines=True)
        dy = area / (1 if d["dy_shared"] else quad) * across
        memory = warps * (patches * (loads + dy) + taps) + (staged + 1.3 * part * fetched + threads * taps) / WARP
        memory += (1 + 1.3 * part) * padded / WARP if d["dy_shared"] else 0
        others = patches * (sum(own.loads.values()) + area / quad) + 3 * taps
        copies = (staged / d["vector"] + (padded / quad if d["dy_shared"] else 0)) / threads
        dram = spec.itemsize * outputs * (1 + g.source[0] * g.source[1] / (height * width)) + 4 * d["planes"] * taps
        l2 = spec.itemsize * (fetched + outputs) + 8 * d["planes"] * taps
        registers = own.alive + taps + area
        if part == 1:
            shared, products = sum(self._shared(spec, d)), patches * own.products
            return clocks(figure, threads, outputs, shared, registers, memory, products, others, copies, dram, l2, least=ALONE)
        *_, turns = by_rows(d["planes"], rows, stage.phases * stage.columns // d["vector"], threads)
        *_, again = by_rows(d["planes"], self._rows(d), self._columns(spec, d) // quad, threads) if d["dy_shared"] else (0,)
        memory += 0.9 * warps * (turns + again) - 0.3 * part * (fetched + (padded if d["dy_shared"] else 0)) / WARP  # loads begin anywhere in a line
        shared, products, copy = sum(self._shared(spec, d)), patches * own.products, copied_by_rows(_VECTOR, turns, again)
        return clocks(figure, threads, outputs, shared, registers, memory, products, others, turns + again, dram, l2, *copy, least=ALONE)

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        """The decisions that need the least of everything: valid wherever any are."""
        knobs = self.knobs(spec, device)
        few = {"patch_h": 1, "patch_w": 1, "lanes": knobs["lanes"][0], "row_lanes": 1, "turns": 1, "planes": 1}
        return {**few, "vector": quads(spec)[0], "dy_shared": 0, "pad": 0, "whole": 0, "tile": 0}

    def _threads(self, decisions: Decisions) -> int:
        return decisions["planes"] * (1 if decisions["whole"] else decisions["lanes"] * decisions["row_lanes"])

    def _rows(self, decisions: Decisions) -> int:
        """Of a band."""
        return decisions["patch_h"] * decisions["row_lanes"] * decisions["turns"]

    def _columns(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Of a band of dy, rounded up to whole patches of all lanes."""
        return decisions["tile"] or round_up(spec.out_width, decisions["lanes"] * decisions["patch_w"])

    def _stage(self, spec: ConvSpec, decisions: Decisions) -> tuple[Stage, int]:
        """The staged x with its padding, and the rows of it that a band reads."""
        g = stencil(spec)
        stage = g.stage(self._columns(spec, decisions), _VECTOR, _VECTOR, decisions["tile"])
        stage = dataclasses.replace(stage, columns=stage.columns + decisions["pad"])
        return stage, min((self._rows(decisions) - 1) * g.step[0] + g.span(), max(stage.rows, self._rows(decisions)))

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> tuple[int, int]:
        """Bytes of the staged x and dy; sums of lanes lie where they did."""
        if decisions["whole"]:
            return plane_dw_cost.staged(spec, decisions["planes"])
        stage, rows = self._stage(spec, decisions)
        dy = self._rows(decisions) * self._columns(spec, decisions) if decisions["dy_shared"] else 0
        size = decisions["planes"] * DTYPES[spec.sums]
        return size * rows * stage.phases * stage.columns, size * dy

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        tile, chunk = decisions["tile"], decisions["lanes"] * decisions["patch_w"]
        if decisions["vector"] not in quads(spec, tile > 0) or tile * spec.stride[1] % decisions["vector"]:
            return f"vector: columns are parted by the stride, or tiles of {tile} do not part into groups of {decisions['vector']}"
        if tile % chunk or (tile and decisions["whole"]):
            return f"lanes and patch_w must part the {tile} columns of a tile, which is no whole plane, got {chunk}"
        return self._unfit(spec, self._threads(decisions), *self._shared(spec, decisions), self.unrolled(spec, decisions))

    def unrolled(self, spec: ConvSpec, decisions: Decisions) -> int:
        return plane_dw_cost.products(spec) if decisions["whole"] else len(stencil(spec).every) * decisions["patch_h"] * decisions["patch_w"]

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        d = decisions
        if d["whole"]:
            return StageConfig(dy_quad=1, slices=SLICES, ahead=AHEAD, whole=True)
        return StageConfig(
            vector=d["lanes"], halo=_VECTOR, pitch=self._stage(spec, d)[0].columns, quad=d["vector"], rows=self._rows(d), run=d["patch_w"],
            row_lanes=d["row_lanes"], dy_quad=self._dy_quad(spec, d), joins=self._joins(spec, d["lanes"] * d["row_lanes"]), slices=SLICES, ahead=AHEAD,
            tile=d["tile"],
        )  # fmt: skip

    def _dy_quad(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Columns of dy that are loaded at once: by a thread for itself, or by the block for all."""
        run = decisions["lanes"] * decisions["patch_w"] if decisions["dy_shared"] else decisions["patch_w"]
        return next(q for q in (4, 2, 1) if spec.out_width % q == 0 and run % q == 0)

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        stage, dys, planes = sch.get_sblock("stage"), sch.get_sblock("dys"), decisions["planes"]
        block, threads = self._first_pass(sch, spec, planes, self._threads(decisions) // planes)
        if decisions["whole"]:
            self._sum_unrolled(sch, block, plane_dw_cost.by_columns(spec))
            self._stage_apart(sch, (stage, dys), block, threads)
            self._second_pass(sch)
            return
        self._sum(sch, block, decisions)
        sch.compute_at(stage, block, preserve_unit_loops=True)
        plain = spec.dtype == "float32"  # copies that convert are batched, which unrolling would hide
        cooperate_by_rows(sch, stage, threads, decisions["vector"], unroll=plain)
        if decisions["dy_shared"]:
            sch.compute_at(dys, block, preserve_unit_loops=True)
            cooperate_by_rows(sch, dys, threads, self._dy_quad(spec, decisions), unroll=plain)
        self._second_pass(sch)

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        from tvm_orient.codegen.tir.fuse_groups import SKIP_RENORMALIZE

        return func.with_attr(SKIP_RENORMALIZE, True) if decisions["whole"] else func

    def _sum(self, sch: Any, block: Any, decisions: Decisions) -> None:
        """One thread a (plane, lane): its patches row by row, all taps unrolled inside."""
        lanes = self._by_lane(sch, block)
        *_, tap, row, column, pixel = sch.get_loops(lanes)
        outer, patch = sch.split(row, [None, decisions["patch_h"]])
        sch.reorder(outer, column, patch, pixel, tap)
        for loop in (patch, pixel, tap):
            sch.unroll(loop)
        if not decisions["dy_shared"]:
            self._own_dy(sch, column)
        init = sch.decompose_reduction(lanes, outer)
        for loop in sch.get_loops(init)[-5:]:
            sch.unroll(loop)

    def _own_dy(self, sch: Any, column: Any) -> None:
        """A thread loads the dy of its patch into registers: no other needs it."""
        dys = sch.get_sblock("dys")
        sch.compute_at(dys, column, preserve_unit_loops=True)
        sch.set_scope(dys, 0, "local")
        *loops, last = sch.get_loops(dys)[-5:]
        for loop in loops:
            sch.unroll(loop)
        sch.vectorize(last)


TEMPLATE = ConvDw()
