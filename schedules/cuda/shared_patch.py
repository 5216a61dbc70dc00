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

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import clocks, passes
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import Patch, cells, patch
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stage, Stencil, round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MOST, ONE_OFFSET, ONE_TILE, Decisions
from ..default import least_estimate
from ..staging import apart, by_rows, copied_by_rows
from ..tiling import idle_stages, quads, tiles
from .base_patch import Patches

_VECTOR = 4  # floats in a 16-byte load
_MOST_TERMS = 160  # live terms of one output: beyond, the unrolled patch spills
_MOST_UNROLLED = 4096  # multiply-adds of one thread
_ADDED = 16  # registers that nvcc takes beyond the larger of values and results
_SCATTERED = 1.1  # times the time of DRAM where a block owns parts of several planes: measured on an H200 at 56x56
_SHORT = (28, 16)  # outputs of a patch whose code is short
_FEWEST, _MOST_THREADS = 48, 128  # threads of an untuned block: merged angles all have as many as the largest

_CUTS = 12  # tiles and bands of strided or wide planes that are estimated
_PADS = tuple(range(0, 30, 2))  # floats by which a staged row is longer than it must be
_COLLECTED = 15  # instructions of a store of collected results of half precision
_RAW_COPY = 5  # instructions of a copy of half precision that is asynchronous
_PATCHES, _MOST_OUTPUTS, _MOST_HELD = 8, 64, 215  # of patches that are estimated: how many, outputs, and values, weights and sums at once


class SharedPatch(Patches):
    """Computes conv and conv_dx of contiguous images on a GPU, any stride.

    A block owns a band of rows of several channels. It stages that band and the rows that its taps reach, max dh - min dh more, and nothing else,
    by vectors. Planes that are strided or wider than 64 are cut into tiles of `tile` columns as well: a whole row with its halo would leave room
    for few rows, and on a steep slope nearly all of a short band is halo. Tiles keep columns as they lie in memory, so that a stride does not
    stand in the way of loads of 16 bytes; whole rows (`tile` 0) are parted by stride. The left halo and the row pitch are multiples of 4 floats,
    so that vector loads line up. The copies are asynchronous (cp.async), so that a block waits for memory once and not once for every turn of its
    staging loop; rows are padded so that the lanes of a warp read from banks of their own.

    A thread owns `patch_h` x `patch_w` outputs, and stores a row of 2 or 4 as one vector; patches of another width may meet in shared memory, and
    the block then stores whole rows. Results leave the registers when all of a patch are there: stores between the loads kept nvcc from joining
    loads into wide ones, and took up to twice the registers. The taps of the patch are one unrolled expression, in which the compiler keeps each
    loaded value for all outputs that need it and merges neighbours into wide loads. An output's taps are added from the topmost row down, right
    to left: the compiler then needs fewer values at once, so that patches of 7 x 7 fit in registers at most angles. At most 160 live taps per
    output.

    A block may pass over several tiles, groups of channels, and with two `stages` the copies of the next tile are under way while one is computed
    (`tvm_orient/codegen/tir/double_buffer.py`): staged planes and weights become rings of two tiles, a block waits for all copies but those of
    its last turn (`cp.async.wait_group 1`), and a barrier keeps a tile until all threads have read it. The thread's index is hidden from nvcc in
    that loop: it computed the addresses of all copies before it, and kept each in a register. By the static model latency limits none of these
    kernels, so two stages are left to tuning, in float32.

    With half precision there are two ways. Images may be staged as they lie in memory: copies of whole words are asynchronous, and a value is
    converted by the thread that uses it. As TVM prints it such a value is a load of 16 bits, of which nvcc joins none;
    `tvm_orient/codegen/cuda/packed_reads.py` reads four at a time, where all patches begin at multiples of four. That halves the passes of shared
    memory and costs a conversion for each value that a patch reads. Else values are staged as float32, so a copy converts and cannot be
    asynchronous. A thread loads a batch of up to 32 turns into registers before it converts the first
    (`tvm_orient/codegen/cuda/batched_loads.py`), and keeps its place in a staged row, so that a turn only adds constants to an address. What it
    stores is predicated by inline PTX (`tvm_orient/codegen/cuda/device_helpers.py`): of a test around a store nvcc made a branch, and moved the
    loads of a batch into it, one by one. Planes may be set a few floats apart where lanes of several planes meet in a bank.
    """

    name, version, kind, ops = "shared_patch", 7, "cuda", ("conv", "conv_dx")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        terms = max(len(t) for t in stencil(spec).terms.values())
        if terms > _MOST_TERMS:
            return f"unrolls at most {_MOST_TERMS} taps per output, got {terms}"
        least, most = self._least(spec, device), min(device.shared_memory, 49152)
        if self._shared(spec, least) > most:
            return f"one row with its halo needs more shared memory than the {most} bytes of a block"
        return self._invalid(spec, device, least)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        g = stencil(spec)
        heights = tuple(p for p in (1, 2, 4, 7, 8, 14, 28, 56) if p % g.phases[0] == 0) or (g.phases[0],)
        widths = tuple(p for p in (1, 2, 3, 4, 5, 7) if p % g.phases[1] == 0) or (g.phases[1],)
        float32 = spec.dtype == "float32"
        return {
            "patch_h": heights,
            "patch_w": widths,
            "row_patches": (1, 2, 4, 7, 8, 14, 28, 56),
            "planes": (1, 2, 4, 8, 16),
            "vector": quads(spec, len(tiles(spec)) > 1),
            "weights_shared": (0, 1),
            "collect": (0, 1),
            "pad": (0, 4, 8, 12, 16, 20, 24, 28) if float32 else _PADS,
            "tile": tiles(spec),
            "skew": (0,) if float32 else (0, 2, 4),
            "raw": (0,) if float32 else (0, 1),
            "turns": (1, 2, 4),
            "stages": (1, 2) if float32 else (1,),
        }

    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        return dict(least_estimate(self, spec, device))

    def _patches(self, spec: ConvSpec, device: Device, tile: int) -> list[tuple[float, int, int]]:
        """(passes of an output, height, width) of those patches that load least, without regard to the block that they are part of."""
        g, knobs = stencil(spec), self.knobs(spec, device)
        height, width = g.output
        pitch, weights, ranked = _unpadded(spec, tile).columns, sum(len(t.taps) for t in g.every), []
        key = _cells(spec, pitch, tile)
        for patch_h, patch_w in itertools.product(knobs["patch_h"], knobs["patch_w"]):
            area = patch_h * patch_w
            if area * max(map(len, g.terms.values())) > _MOST_UNROLLED or patch_h >= 2 * height or patch_w >= 2 * width or area > _MOST_OUTPUTS:
                continue
            if patch_w == _VECTOR and spec.dtype == "float32" and len({t.row for t in g.every}) > 1 and len({t.col for t in g.every}) > 1:
                continue  # NVRTC 13.0 loads columns of 4 in pieces whose lanes meet in banks: a quarter slower on an H200 than others
            step = self._step(spec, patch_w, tile)
            own = patch(key, patch_h, patch_w, math.gcd(pitch, step, _VECTOR), height % patch_h == 0 and width % patch_w == 0)
            if own.alive + max(map(len, g.terms.values())) + area <= _MOST_HELD:
                covered = -(-height // patch_h) * -(-width // patch_w) * area / (height * width)
                if tile:
                    loads = sum(count * passes(np.arange(WARP) * step, words) for words, count in own.loads.items() if count)
                else:
                    loads = sum(count * (4 if step == _VECTOR else words) for words, count in own.loads.items())
                if spec.dtype != "float32" and self._by_words(spec, patch_w, tile):
                    loads /= 2
                ranked.append(((loads + weights) / area * covered, patch_h, patch_w))
        ranked.sort()
        # and some with less code, for layers of several angles
        short = [entry for area in _SHORT for entry in [entry for entry in ranked if entry[1] * entry[2] <= area][: _PATCHES // 4]]
        return list(dict.fromkeys([*ranked[: _PATCHES if spec.dtype == "float32" else 2 * _PATCHES], *short]))

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[Decisions]:
        """Choices worth an estimate: the best patches in bands that part the plane evenly, in blocks of a few warps."""
        (height, width), knobs = stencil(spec).output, self.knobs(spec, device)
        cut = [t for t in knobs["tile"] if t and width % t == 0 and self._step(spec, t, t) % quads(spec, True)[0] == 0]
        if cut:
            found: list[Any] = [  # bands that part the plane evenly come first
                (height % (row_patches * patch_h) > 0, cost + self._staging(spec, trial), *trial.values())
                for cost, patch_h, patch_w in self._patches(spec, device, cut[0])
                for tile, row_patches, raw in itertools.product(cut, knobs["row_patches"], knobs["raw"])
                if tile % patch_w == 0 and row_patches * patch_h < height + patch_h and (not raw or self._by_words(spec, patch_w, tile))
                for trial in [self._block(spec, device, patch_h, patch_w, row_patches, tile, raw)]
                if self._fits(spec, trial)
            ]
            for _, _, *values in sorted(found)[:_CUTS]:
                yield self._padded(spec, dict(zip(self.knobs(spec, device), values, strict=True)))
        if not cut or quads(spec, True) == (1,):
            for _, patch_h, patch_w in self._patches(spec, device, 0):
                rows = -(-height // patch_h)
                most = knobs["row_patches"][-1]
                bands = sorted({min((r for r in knobs["row_patches"] if r * parts >= rows), default=most) for parts in (1, 2, 4)})
                for row_patches, raw in itertools.product(bands, knobs["raw"]):
                    if raw and not self._by_words(spec, patch_w, 0):
                        continue
                    trial = self._padded(spec, self._block(spec, device, patch_h, patch_w, row_patches, 0, raw))
                    if self._fits(spec, trial):
                        yield trial

    def _block(self, spec: ConvSpec, device: Device, patch_h: int, patch_w: int, row_patches: int, tile: int, raw: int) -> Decisions:
        """The decisions of a block of these patches, with as many planes as give it a few warps."""
        width, planes = stencil(spec).output[1], [p for p in self.knobs(spec, device)["planes"] if spec.channels % p == 0]
        columns = row_patches * -(-(tile or width) // patch_w)
        fit = next((p for p in planes if p * columns >= _FEWEST), planes[-1])
        collect = int(len(stencil(spec).every) > 1 and width % patch_w == 0 and not self._vector_store(spec, {"patch_w": patch_w}) and patch_w > 1)
        d = {"patch_h": patch_h, "patch_w": patch_w, "row_patches": row_patches, "planes": fit, "vector": quads(spec, tile > 0)[0]}
        return {**d, "weights_shared": 0, "collect": collect, "pad": 0, "tile": tile, "skew": 0, "raw": raw, **ONE_TILE}

    def _by_words(self, spec: ConvSpec, patch_w: int, tile: int) -> bool:
        """Whether half precision may be staged as it lies: whole words are copied, and patches begin where `packed_reads` reads four values at once."""
        return quads(spec, tile > 0)[0] == _VECTOR and self._step(spec, patch_w, tile) % _VECTOR == 0

    def _passes(self, decisions: Decisions, lanes: Any, values: int) -> float:
        """Passes of a warp whose lanes load so many values from these places of the stage."""
        return passes(lanes // 2, max(1, values // 2)) if decisions["raw"] else passes(lanes, values)

    def _fits(self, spec: ConvSpec, decisions: Decisions) -> bool:
        return self._threads(spec, decisions) <= _MOST_THREADS and self._shared(spec, {**decisions, "collect": 0}) <= MOST.staged

    def _staging(self, spec: ConvSpec, decisions: Decisions) -> float:
        """Passes of an output that is wanted for its share of the stage: the asynchronous copies write it, and fetch it."""
        height, band = stencil(spec).output[0], decisions["row_patches"] * decisions["patch_h"]
        floats = self._staged_rows(spec, decisions) * self._row_of(spec, decisions)
        return 2.3 * floats * -(-height // band) / (height * self._across(spec, decisions))

    def _padded(self, spec: ConvSpec, decisions: Decisions) -> Decisions:
        """The decisions with the least padding that keeps a warp's lanes in banks of their own, as far as any does."""
        words = decisions["patch_w"] if decisions["patch_w"] in (2, 4) else 1
        if decisions["tile"]:
            words = math.gcd(self._step(spec, decisions["patch_w"], decisions["tile"]), _VECTOR)
        best, fewest = decisions, math.inf
        wide = math.gcd(decisions["patch_w"], _VECTOR)  # what a lane loads at once must stay aligned
        pads = [p for p in _PADS if p % max(wide, decisions["vector"]) == 0 and (spec.dtype != "float32" or p % _VECTOR == 0)]
        apart = decisions["row_patches"] > 1 or (spec.dtype != "float32" and decisions["planes"] > 1)
        skews = (0, 4, 2) if spec.dtype != "float32" and decisions["planes"] > 1 else (0,)
        for skew, pad in itertools.product(skews, pads) if apart and stencil(spec).phases == (1, 1) else ():
            trial = {**decisions, "pad": pad, "skew": skew}
            count = self._passes(trial, self._lanes(spec, trial)[: 2 * WARP], words)
            if count < fewest:
                best, fewest = trial, count
            if count <= (max(1, words // 2) if trial["raw"] else words):
                break
        return best

    def _lanes(self, spec: ConvSpec, decisions: Decisions) -> Any:
        """Float of the stage that each thread's patch begins at."""
        g, (plane, row, column) = stencil(spec), self._order(spec, decisions)
        down = row * (decisions["patch_h"] // g.phases[0] * g.step[0]) * self._row_of(spec, decisions)
        return plane * self._plane(spec, decisions) + down + column * self._step(spec, decisions["patch_w"], decisions["tile"])

    def _order(self, spec: ConvSpec, decisions: Decisions) -> Any:
        """Plane, row and column of the patch that each thread of a block owns."""
        shape = (decisions["planes"], decisions["row_patches"], -(-self._across(spec, decisions) // decisions["patch_w"]))
        return np.indices(shape).reshape(3, -1)

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 outputs by resource, before anything is compiled."""
        g, figure, d = stencil(spec), nearest(device.arch), decisions
        height, width = g.output
        stage, rows = self._stage(spec, d), self._staged_rows(spec, d)
        most = d["row_patches"] * d["patch_h"]
        band = height / -(-height // most) if d["tile"] else min(height, most)  # wanted rows of a block, on average
        lanes, threads = self._lanes(spec, d), self._threads(spec, d)
        own, area = self._own(spec, d), d["patch_h"] * d["patch_w"]  # results stay in registers until all of a patch are there
        held = max(own.alive, area) + _ADDED  # values that are needed for long, or results; nvcc has both at once only in part
        warps = -(-threads // WARP)
        outputs: float = d["planes"] * band * self._across(spec, d)
        loads = sum(count * self._passes(d, lanes, values) for values, count in own.loads.items() if count)
        weights = len([s for t in g.every for s in t.taps])
        staged = d["planes"] * rows * self._row_of(spec, d)
        fetched = d["planes"] * min(rows, g.source[0]) * min(stage.columns if d["tile"] else g.source[1], g.source[1])
        stores, again = self._stores(g, spec, d)
        if (part := spec.itemsize / DTYPES[spec.sums]) < 1:  # of a word that a value takes in memory; the last band may have fewer rows
            outputs = d["planes"] * height * self._across(spec, d) / -(-height // most)
        memory = warps * (loads + self._weights(spec, d) + stores) + ((part if d["raw"] else 1) * staged + 1.3 * part * fetched) / WARP
        if d["collect"]:
            memory += 2 * part * outputs / WARP
        others = sum(own.loads.values()) + 2 * weights - own.products / max(1, area) + area
        copies = staged / d["vector"] / threads + (outputs / threads / _VECTOR if d["collect"] else 0)
        dram = spec.itemsize * outputs * (1 + g.source[0] * g.source[1] / (height * width))
        if d["planes"] > 1 and most < height and not d["tile"]:
            dram *= _SCATTERED
        l2 = spec.itemsize * (fetched + again * outputs)
        if d["raw"]:
            others += sum(values * count for values, count in own.loads.items())  # conversions
            *_, copies = by_rows(d["planes"], rows, self._row_of(spec, d) // d["vector"], threads)
            return clocks(figure, threads, outputs, self._shared(spec, d), held, memory, own.products, others, copies, dram, l2, _RAW_COPY)
        if part == 1:
            tiles = d["turns"] if d["stages"] > 1 else 1
            waits = 2 - d["weights_shared"] if tiles > 1 else 2  # weights that are staged are copied ahead too
            shared = self._shared(spec, d)
            return clocks(figure, threads, outputs, shared, held, memory, own.products, others, copies, dram, l2, waits=waits, tiles=tiles)
        if d["collect"]:
            others += _COLLECTED * outputs / threads / self._stored_at_once(spec, d)
        *_, turns = by_rows(d["planes"], rows, self._row_of(spec, d) // d["vector"], threads)
        memory += 0.9 * turns * warps - 0.3 * part * fetched / WARP  # what a warp loads at once begins anywhere in a line
        copy = copied_by_rows(d["vector"], turns)
        return clocks(figure, threads, outputs, self._shared(spec, d), held, memory, own.products, others, turns, dram, l2, *copy)

    def _own(self, spec: ConvSpec, d: Decisions) -> Patch:
        """What a thread's patch loads and holds."""
        height, width, pitch = *stencil(spec).output, self._stage(spec, d).columns
        align = math.gcd(pitch, self._step(spec, d["patch_w"], d["tile"]), _VECTOR)
        whole = height % d["patch_h"] == 0 and width % d["patch_w"] == 0
        return patch(_cells(spec, pitch, d["tile"]), d["patch_h"], d["patch_w"], align, whole)

    def _weights(self, spec: ConvSpec, d: Decisions) -> float:
        """Passes of a warp that load weights: those of several channels lie in a line each."""
        threads = self._threads(spec, d)
        return len([s for t in stencil(spec).every for s in t.taps]) * max(1.0, min(WARP, threads) * d["planes"] / threads)

    def _stores(self, g: Stencil, spec: ConvSpec, d: Decisions) -> tuple[float, float]:
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
        narrow = next((w for w in knobs["patch_w"] if -(-stencil(spec).output[1] // w) <= 1024), knobs["patch_w"][-1])
        few = {**patch, "patch_w": narrow, "row_patches": 1, "planes": 1, "vector": quads(spec)[0]}
        return {**few, "weights_shared": 0, "collect": 0, "pad": 0, "tile": 0, "skew": 0, "raw": 0, **ONE_TILE}

    def _threads(self, spec: ConvSpec, decisions: Decisions) -> int:
        return decisions["planes"] * decisions["row_patches"] * -(-self._across(spec, decisions) // decisions["patch_w"])

    def _step(self, spec: ConvSpec, patch_w: int, tile: int) -> int:
        """Floats of a staged row from one patch to the next."""
        return patch_w // stencil(spec).phases[1] * _unpadded(spec, tile).across

    def _row_of(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Floats of a staged row, all column phases."""
        stage = self._stage(spec, decisions)
        return stage.phases * stage.columns

    def _shared(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Bytes of the staged tiles and what is collected of one."""
        weights = spec.kernel_size if decisions["weights_shared"] else 0
        staged = decisions["stages"] * (self._plane(spec, decisions) * (spec.itemsize if decisions["raw"] else DTYPES[spec.sums]) + weights * DTYPES[spec.sums])
        return decisions["planes"] * (staged + self._results(spec, decisions) * spec.itemsize)

    def _plane(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Floats from one staged plane to the next."""
        return self._apart(self._staged_rows(spec, decisions) * self._row_of(spec, decisions), decisions)

    def _results(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Values of a plane that are collected, from one plane to the next."""
        size = decisions["row_patches"] * decisions["patch_h"] * self._across(spec, decisions) if decisions["collect"] else 0
        return self._apart(size, decisions) if self.results_apart else size

    def _apart(self, size: int, decisions: Decisions) -> int:
        """Values from one plane in shared memory to the next, of planes of this size."""
        factor, skew = apart(decisions["skew"])
        return round_up(size - skew, factor) + skew if skew else size

    def _staged_rows(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Rows of the source that a block's band reads."""
        g = stencil(spec)
        rows = (-(-decisions["row_patches"] * decisions["patch_h"] // g.phases[0]) - 1) * g.step[0] + g.span()
        return min(rows, self._stage(spec, decisions).rows)

    def _stage(self, spec: ConvSpec, decisions: Decisions) -> Stage:
        """The staged source; its rows hold whole vectors, and what keeps the rows of a warp's patches in banks of their own."""
        stage = _unpadded(spec, decisions["tile"])
        return dataclasses.replace(stage, columns=stage.columns + decisions["pad"])

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        threads, shared = self._threads(spec, decisions), self._shared(spec, decisions)
        if decisions["vector"] not in quads(spec, decisions["tile"] > 0) or self._step(spec, decisions["tile"], decisions["tile"]) % decisions["vector"]:
            return f"vector: columns are parted by the stride, or tiles of {decisions['tile']} do not part into groups of {decisions['vector']}"
        if decisions["raw"] and not (decisions["vector"] == _VECTOR and self._by_words(spec, decisions["patch_w"], decisions["tile"])):
            return f"raw: images are staged as they lie where {_VECTOR} values are copied at once and patches begin at multiples of them"
        if decisions["collect"] and len(stencil(spec).every) == 1:
            return f"collect: {ONE_OFFSET}"
        if decisions["tile"] % decisions["patch_w"]:
            return f"patch_w must divide the {decisions['tile']} columns of a tile, got {decisions['patch_w']}"
        if threads > 1024:
            return f"a block would have {threads} threads, at most 1024"
        if shared > min(device.shared_memory, 49152):
            return f"a block would stage {shared} bytes, at most {min(device.shared_memory, 49152)}"
        if decisions["collect"] and shared - self._shared(spec, {**decisions, "collect": 0}) > MOST.collected:
            return f"a block would collect more than {MOST.collected} bytes of results"
        for name in ("pad", "skew"):
            if decisions[name] % decisions["vector"]:
                return f"{name}: rows and planes must begin at whole vectors of {decisions['vector']}, got {decisions[name]}"
        work = max(len(t) for t in stencil(spec).terms.values()) * decisions["patch_h"] * decisions["patch_w"]
        if work > _MOST_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {_MOST_UNROLLED}"
        return idle_stages(decisions)

    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        tile, band = decisions["tile"] // stencil(spec).phases[1], decisions["row_patches"] * decisions["patch_h"]
        return StageConfig(
            halo=_VECTOR, pitch=self._stage(spec, decisions).columns, quad=decisions["vector"], raw=bool(decisions["raw"]), sweep=True, tile=tile, rows=band
        )


@functools.lru_cache(maxsize=1024)
def _unpadded(spec: ConvSpec, tile: int) -> Stage:
    """The staged source without padding against bank conflicts."""
    g = stencil(spec)
    return g.stage(-(-g.output[1] // g.phases[1]), _VECTOR, _VECTOR, tile // g.phases[1])


def _cells(spec: ConvSpec, pitch: int, tile: int) -> Any:
    g = stencil(spec)
    return cells(g, -(-g.output[1] // g.phases[1]), _VECTOR, pitch, tile // g.phases[1])


TEMPLATE = SharedPatch()
