"""CUDA: halo tile staged in shared memory, a register patch of outputs per thread.

Offsets are constants and the tap loop is an expression, so nvcc keeps each loaded value for every output of the patch
that needs it and merges neighbours into 16-byte shared loads: 2 to 4 shared loads an output at K=31 instead of 31.
A block owns a band of rows of `planes` channels; it stages rows + max dh - min dh rows, and nothing more.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tvm_orient.banks import WARP
from tvm_orient.device import Device
from tvm_orient.estimate import Patch, cells, clocks, passes, patch, soft_maximum
from tvm_orient.figures import figures, has_figures
from tvm_orient.form import Form
from tvm_orient.gather import Gather, Stage, gather, round_up
from tvm_orient.spec import DTYPES, ConvSpec

from ..base import Decisions, Template, by_rows, cooperate, cooperate_by_rows, copied_by_rows, most_dividing, quads

_VECTOR = 4  # floats in a 16-byte load
_MOST_TERMS = 160  # live terms of one output: beyond, the unrolled patch spills
_MOST_UNROLLED = 4096  # multiply-adds of one thread
_FEWEST, _MOST_THREADS = 48, 128  # threads of an untuned block: merged angles all have as many as the largest
MOST_STAGED, MOST_COLLECTED, MOST_WEIGHTS = 33792, 13312, 2048  # bytes: merged angles add the largest of each, and a kernel may have 48 KiB
_PADS = tuple(range(0, 30, 2))  # floats by which a staged row is longer than it must be
_PATCHES, _MOST_OUTPUTS, _MOST_HELD = 8, 64, 215  # of patches that are estimated: how many, outputs, and values, weights and sums at once


class SharedPatch(Template):
    """conv and conv_dx, any stride."""

    name, version, kind, ops = "shared_patch", 4, "cuda", ("conv", "conv_dx")
    results_apart = False  # whether a skew keeps collected planes apart too

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
        heights = tuple(p for p in (1, 2, 4, 7, 8, 14, 28, 56) if p % g.phases[0] == 0) or (g.phases[0],)
        widths = tuple(p for p in (1, 2, 3, 4, 5, 7) if p % g.phases[1] == 0) or (g.phases[1],)
        apart = {} if spec.dtype == "float32" else {"skew": (0, 2, 4)}
        return {
            "patch_h": heights,
            "patch_w": widths,
            "row_patches": (1, 2, 4, 7, 8, 14, 28, 56),
            "planes": (1, 2, 4, 8, 16),
            "vector": quads(spec),
            "weights_shared": (0, 1),
            "collect": (0, 1),
            "pad": (0, 4, 8, 12, 16, 20, 24, 28) if spec.dtype == "float32" else _PADS,
            **apart,
        }

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        return dict(_best(self, spec, device))

    def _patches(self, spec: ConvSpec, device: Device) -> list[tuple[int, int]]:
        """The patches that load least per output, without regard to the block that they are part of."""
        g, knobs = gather(spec), self.knobs(spec, device)
        height, width = g.output
        pitch, weights, ranked = _unpadded(spec).columns, sum(len(t.taps) for t in g.every), []
        key = cells(g, -(-width // g.phases[1]), _VECTOR, pitch)
        for patch_h, patch_w in itertools.product(knobs["patch_h"], knobs["patch_w"]):
            area = patch_h * patch_w
            if area * max(map(len, g.terms.values())) > _MOST_UNROLLED or patch_h >= 2 * height or patch_w >= 2 * width or area > _MOST_OUTPUTS:
                continue
            own = patch(key, patch_h, patch_w, math.gcd(pitch, patch_w // g.phases[1], _VECTOR), height % patch_h == 0 and width % patch_w == 0)
            if own.alive + max(map(len, g.terms.values())) + area <= _MOST_HELD:
                covered = -(-height // patch_h) * -(-width // patch_w) * area / (height * width)
                loads = sum(count * (4 if patch_w // g.phases[1] == 4 else words) for words, count in own.loads.items())
                ranked.append(((loads + weights) / area * covered, patch_h, patch_w))
        return [(patch_h, patch_w) for _, patch_h, patch_w in sorted(ranked)[: _PATCHES if spec.dtype == "float32" else 2 * _PATCHES]]

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """Choices worth an estimate: the best patches in bands that part the plane evenly, in blocks of a few warps."""
        g, knobs = gather(spec), self.knobs(spec, device)
        height, width = g.output
        planes = [p for p in knobs["planes"] if spec.channels % p == 0]
        for patch_h, patch_w in self._patches(spec, device):
            rows, columns = -(-height // patch_h), -(-width // patch_w)
            collect = int(width % patch_w == 0 and not self._vector_store(spec, {"patch_w": patch_w}) and patch_w > 1)
            bands = sorted({min((r for r in knobs["row_patches"] if r * parts >= rows), default=knobs["row_patches"][-1]) for parts in (1, 2, 4)})
            for row_patches in bands:
                fit = next((p for p in planes if p * row_patches * columns >= _FEWEST), planes[-1])
                d = {"patch_h": patch_h, "patch_w": patch_w, "row_patches": row_patches, "planes": fit, "vector": knobs["vector"][0]}
                trial = self._padded(spec, {**d, "weights_shared": 0, "collect": collect, "pad": 0, **({"skew": 0} if "skew" in knobs else {})})
                if self._threads(spec, trial) <= _MOST_THREADS and self._shared(spec, {**trial, "collect": 0}) <= MOST_STAGED:
                    yield trial

    def _padded(self, spec: ConvSpec, decisions: Decisions) -> Decisions:
        """The decisions with the least padding that keeps a warp's lanes in banks of their own, as far as any does."""
        words = decisions["patch_w"] if decisions["patch_w"] in (2, 4) else 1
        best, fewest = decisions, math.inf
        wide = math.gcd(decisions["patch_w"], _VECTOR)  # what a lane loads at once must stay aligned
        pads = [p for p in _PADS if p % max(wide, decisions["vector"]) == 0 and (spec.dtype != "float32" or p % _VECTOR == 0)]
        apart = decisions["row_patches"] > 1 or (spec.dtype != "float32" and decisions["planes"] > 1)
        skews = (0, 4, 2) if "skew" in decisions and decisions["planes"] > 1 else (0,)
        for skew, pad in itertools.product(skews, pads) if apart and gather(spec).phases == (1, 1) else ():
            trial = {**decisions, "pad": pad, **({"skew": skew} if "skew" in decisions else {})}
            count = passes(self._lanes(spec, trial)[: 2 * WARP], words)
            if count < fewest:
                best, fewest = trial, count
            if count <= words:
                break
        return best

    def _lanes(self, spec: ConvSpec, decisions: Decisions) -> Any:
        """Float of the stage that each thread's patch begins at."""
        g, stage = gather(spec), self._stage(spec, decisions)
        plane, row, column = self._order(spec, decisions)
        down = row * (decisions["patch_h"] // g.phases[0] * g.step[0]) * stage.phases * stage.columns
        return plane * self._plane(spec, decisions) + down + column * (decisions["patch_w"] // g.phases[1])

    def _order(self, spec: ConvSpec, decisions: Decisions) -> Any:
        """Plane, row and column of the patch that each thread of a block owns."""
        shape = (decisions["planes"], decisions["row_patches"], -(-gather(spec).output[1] // decisions["patch_w"]))
        return np.indices(shape).reshape(3, -1)

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 outputs by resource, before anything is compiled."""
        g, figure, d = gather(spec), figures(device.arch if has_figures(device.arch) else "sm_90a"), decisions
        height, width = g.output
        stage, rows = self._stage(spec, d), self._staged_rows(spec, d)
        band = min(height, d["row_patches"] * d["patch_h"])
        lanes, threads = self._lanes(spec, d), self._threads(spec, d)
        own = self._own(spec, d)
        warps = -(-threads // WARP)
        outputs: float = d["planes"] * band * width
        loads = sum(count * passes(lanes, words) for words, count in own.loads.items() if count)
        weights = len([s for t in g.every for s in t.taps])
        staged = d["planes"] * rows * stage.phases * stage.columns
        fetched = d["planes"] * min(rows, g.source[0]) * g.source[1]
        stores, again = self._stores(g, spec, d)
        part = spec.itemsize / DTYPES[spec.sums]  # of a word that a value takes in memory
        if part < 1:  # the last band may have fewer rows
            outputs = d["planes"] * height * width / -(-height // band)
        memory = warps * (loads + self._weights(spec, d) + stores) + (staged + 1.3 * part * fetched) / WARP
        if d["collect"]:
            memory += 2 * part * outputs / WARP
        others = sum(own.loads.values()) + 2 * weights - own.products / max(1, d["patch_h"] * d["patch_w"]) + d["patch_h"] * d["patch_w"]
        copies = staged / d["vector"] / threads + (outputs / threads / _VECTOR if d["collect"] else 0)
        dram = spec.itemsize * outputs * (1 + g.source[0] * g.source[1] / (height * width))
        l2 = spec.itemsize * (fetched + again * outputs)
        if part == 1:
            return clocks(figure, threads, outputs, self._shared(spec, d), own.alive, memory, own.products, others, copies, dram, l2)
        *_, turns = by_rows(d["planes"], rows, stage.phases * stage.columns // d["vector"], threads)
        memory += 0.9 * turns * warps - 0.3 * part * fetched / WARP  # what a warp loads at once begins anywhere in a line
        shared, copy = self._shared(spec, d), copied_by_rows(d["vector"], turns)
        return clocks(figure, threads, outputs, shared, own.alive, memory, own.products, others, turns, dram, l2, *copy)

    def _own(self, spec: ConvSpec, d: Decisions) -> Patch:
        """What a thread's patch loads and holds."""
        g = gather(spec)
        height, width, pitch = *g.output, self._stage(spec, d).columns
        align = math.gcd(pitch, d["patch_w"] // g.phases[1], _VECTOR)
        whole = height % d["patch_h"] == 0 and width % d["patch_w"] == 0
        return patch(cells(g, -(-width // g.phases[1]), _VECTOR, pitch), d["patch_h"], d["patch_w"], align, whole)

    def _weights(self, spec: ConvSpec, d: Decisions) -> float:
        """Passes of a warp that load weights: those of several channels lie in a line each."""
        threads = self._threads(spec, d)
        return len([s for t in gather(spec).every for s in t.taps]) * max(1.0, min(WARP, threads) * d["planes"] / threads)

    def _stores(self, g: Gather, spec: ConvSpec, d: Decisions) -> tuple[float, float]:
        """Passes of a warp that store its patches, and how often each sector is written."""
        vector = d["patch_w"] in (2, 4) and self._vector_store(spec, d)
        if vector and spec.dtype == "float32":
            return d["patch_h"] * d["patch_w"] * 1.25, 1.0
        plane, row, column = self._order(spec, d)
        base = row * (d["patch_h"] * g.output[1]) + column * d["patch_w"]
        if spec.dtype != "float32":  # two values a word
            base = (base + plane * (d["row_patches"] * d["patch_h"] * g.output[1])) // 2
        if vector:
            return d["patch_h"] * passes(base, d["patch_w"] // 2, lines=True), 1.0
        return d["patch_h"] * d["patch_w"] * passes(base, 1, lines=not d["collect"]), 1.0 if d["collect"] else min(8.0, d["patch_w"])

    def _least(self, spec: ConvSpec, device: Device) -> Decisions:
        """The decisions that need the least of everything: valid wherever any are."""
        knobs = self.knobs(spec, device)
        patch = {"patch_h": knobs["patch_h"][0], "patch_w": knobs["patch_w"][0]}
        narrow = next((w for w in knobs["patch_w"] if -(-gather(spec).output[1] // w) <= 1024), knobs["patch_w"][-1])
        least = {**patch, "patch_w": narrow, "row_patches": 1, "planes": 1, "vector": knobs["vector"][0], "weights_shared": 0, "collect": 0, "pad": 0}
        return {**least, "skew": 0} if "skew" in knobs else least

    def _threads(self, spec: ConvSpec, decisions: Decisions) -> int:
        return decisions["planes"] * decisions["row_patches"] * -(-gather(spec).output[1] // decisions["patch_w"])

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Bytes of the staged tile."""
        weights = spec.kernel_size if decisions["weights_shared"] else 0
        staged = (self._plane(spec, decisions) + weights) * DTYPES[spec.sums]
        return decisions["planes"] * (staged + self._results(spec, decisions) * spec.itemsize)

    def _plane(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Floats from one staged plane to the next."""
        stage = self._stage(spec, decisions)
        return self._apart(self._staged_rows(spec, decisions) * stage.phases * stage.columns, decisions)

    def _results(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Values of a plane that are collected, from one plane to the next."""
        size = decisions["row_patches"] * decisions["patch_h"] * gather(spec).output[1] if decisions["collect"] else 0
        return self._apart(size, decisions) if self.results_apart else size

    def _apart(self, size: int, decisions: Decisions) -> int:
        """Values from one plane in shared memory to the next, of planes of this size."""
        skew = decisions.get("skew", 0)
        return round_up(size - skew, 2 * skew) + skew if skew else size

    def _staged_rows(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Rows of the source that a block's band reads."""
        g = gather(spec)
        rows = (-(-decisions["row_patches"] * decisions["patch_h"] // g.phases[0]) - 1) * g.step[0] + g.span()
        return min(rows, self._stage(spec, decisions).rows)

    def _stage(self, spec: ConvSpec, decisions: Decisions) -> Stage:
        """The staged source; its rows hold whole vectors, and what keeps the rows of a warp's patches in banks of their own."""
        stage = _unpadded(spec)
        return dataclasses.replace(stage, columns=stage.columns + decisions["pad"])

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        threads, shared = self._threads(spec, decisions), self._shared(spec, decisions)
        if threads > 1024:
            return f"a block would have {threads} threads, at most 1024"
        if shared > min(device.shared_memory, 49152):
            return f"a block would stage {shared} bytes, at most {min(device.shared_memory, 49152)}"
        if decisions["collect"] and shared - self._shared(spec, {**decisions, "collect": 0}) > MOST_COLLECTED:
            return f"a block would collect more than {MOST_COLLECTED} bytes of results"
        for name in ("pad", "skew"):
            if decisions.get(name, 0) % decisions["vector"]:
                return f"{name}: rows and planes must begin at whole vectors of {decisions['vector']}, got {decisions[name]}"
        work = max(len(t) for t in gather(spec).terms.values()) * decisions["patch_h"] * decisions["patch_w"]
        if work > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        return None

    def form(self, spec: ConvSpec, decisions: Decisions) -> Form:
        return Form(halo=_VECTOR, pitch=self._stage(spec, decisions).columns, quad=decisions["vector"], sweep=True)

    def _vector_store(self, spec: ConvSpec, decisions: Decisions) -> bool:
        """Whether a thread's row of outputs is stored as one vector: rows must part into whole ones."""
        width = decisions["patch_w"]
        return width in (2, 4) and gather(spec).output[1] % width == 0

    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        y, stage = sch.get_sblock("y"), sch.get_sblock("stage")
        reads = [region.source.name for region in sch.get(y).reads]
        weights = sch.cache_read(y, reads.index("w"), "shared") if decisions["weights_shared"] and "w" in reads else None
        block, threads = self._collected(sch, y, spec, decisions) if decisions["collect"] else self._direct(sch, y, spec, decisions)
        sch.compute_at(stage, block, preserve_unit_loops=True)
        (cooperate if spec.dtype == "float32" else cooperate_by_rows)(sch, stage, threads, decisions["vector"])
        if skew := decisions.get("skew", 0):
            sch.storage_align(stage, 0, 1, 2 * skew, skew)
        if weights is not None:
            sch.compute_at(weights, block, preserve_unit_loops=True)
            cooperate(sch, weights, threads, 1)

    def _thread(self, sch: Any, plane: Any, row: Any, column: Any, decisions: Decisions) -> Any:
        """The loop over a block's threads, in the order of `_order`."""
        return sch.fuse(plane, row, column)

    def _direct(self, sch: Any, y: Any, spec: ConvSpec, decisions: Decisions) -> tuple[Any, int]:
        """Each thread stores its own patch: (loop over blocks, threads)."""
        out = sch.cache_write(y, 0, "local") if self._vector_store(spec, decisions) else y
        n, c, h, w = sch.get_loops(out)
        block_c, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), decisions["planes"])])
        band, row, pixel_h = sch.split(h, [None, decisions["row_patches"], decisions["patch_h"]])
        column, pixel_w = sch.split(w, [None, decisions["patch_w"]])
        sch.reorder(n, block_c, band, plane, row, column, pixel_h, pixel_w)
        block, thread = sch.fuse(n, block_c, band), self._thread(sch, plane, row, column, decisions)
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        if out != y:
            sch.compute_at(y, thread, preserve_unit_loops=True)
            for loop in sch.get_loops(y)[-2:]:
                sch.unroll(loop)
            sch.vectorize(pixel_w)
        else:
            sch.unroll(pixel_w)
        sch.unroll(pixel_h)
        return block, int(sch.get(thread).extent)

    def _collected(self, sch: Any, y: Any, spec: ConvSpec, decisions: Decisions) -> tuple[Any, int]:
        """Patches meet in shared memory, and the block stores whole rows: (loop over blocks, threads)."""
        out = sch.cache_write(y, 0, "shared")
        own = sch.cache_write(y, 0, "local")  # stores between the loads would keep the compiler from joining them
        n, c, h, w = sch.get_loops(out)
        block_c, plane = sch.split(c, [None, most_dividing(int(sch.get(c).extent), decisions["planes"])])
        band, row = sch.split(h, [None, decisions["row_patches"] * decisions["patch_h"]])
        sch.reorder(n, block_c, band, plane, row, w)
        block = sch.fuse(n, block_c, band)
        sch.bind(block, "blockIdx.x")
        sch.compute_at(own, block, preserve_unit_loops=True)
        *_, y_plane, y_row, y_w = sch.get_loops(own)
        patch, pixel_h = sch.split(y_row, [None, decisions["patch_h"]])
        column, pixel_w = sch.split(y_w, [None, decisions["patch_w"]])
        sch.reorder(y_plane, patch, column, pixel_h, pixel_w)
        thread = self._thread(sch, y_plane, patch, column, decisions)
        threads = int(sch.get(thread).extent)
        sch.bind(thread, "threadIdx.x")
        sch.compute_at(y, thread, preserve_unit_loops=True)
        for loop in sch.get_loops(y)[-2:]:
            sch.unroll(loop)
        if self.results_apart and (skew := decisions["skew"]):
            sch.storage_align(own, 0, 1, 2 * skew, skew)
        sch.unroll(pixel_h)
        sch.unroll(pixel_w)
        vector = next(v for v in (4, 2, 1) if gather(spec).output[1] % v == 0)
        group, lanes = sch.split(w, [None, vector])
        _, inner = sch.split(sch.fuse(plane, row, group), [None, threads])
        sch.bind(inner, "threadIdx.x")
        if vector > 1:
            sch.vectorize(lanes)
        return block, threads


@functools.lru_cache(maxsize=1024)
def _unpadded(spec: ConvSpec) -> Stage:
    """The staged source without padding against bank conflicts."""
    g = gather(spec)
    return g.stage(-(-g.output[1] // g.phases[1]), _VECTOR, _VECTOR)


@functools.lru_cache(maxsize=1024)
def _best(template: SharedPatch, spec: ConvSpec, device: Device) -> tuple[tuple[str, int], ...]:
    """The choice of the least estimate; the one that needs least where none fits."""
    best, least = template._least(spec, device), math.inf
    for trial in template._candidates(spec, device):
        if template._invalid(spec, device, trial) is None:
            score = soft_maximum(template.estimate(spec, device, trial))
            if score < least:
                best, least = trial, score
    return tuple(best.items())


TEMPLATE = SharedPatch()
