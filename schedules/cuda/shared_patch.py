"""CUDA: halo tile staged in shared memory, a register patch of outputs per thread.

Offsets are constants and the tap loop is an expression, so nvcc keeps each loaded value for every output of the patch
that needs it and merges neighbours into 16-byte shared loads: 2 to 4 shared loads an output at K=31 instead of 31.
A block owns a band of rows of `channels_per_block` channels; it stages rows + max dh - min dh rows, and nothing more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.perf_model.block_cost import BlockLoad, ThreadWork, clocks, global_wavefronts, shared_wavefronts
from tvm_orient.perf_model.gpu_specs import nearest
from tvm_orient.perf_model.patch_cost import Patch, cells, patch
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MAX_SHARED, MAX_THREADS, MAX_USE, ONE_OFFSET
from ..default import least_estimate
from ..staging import by_rows, copied_by_rows
from ..tiling import idle_stages, quads, tiles, too_many_threads
from .base_patch import BasePatch
from .costs import FETCHED, MISALIGNED, SECTOR, STAGED, UNALIGNED, VECTOR
from .patch_geometry import PatchGeometry, SharedPatchConfig, by_words, patch_step, shared_patch_geometry, stores_vectors, unpadded_stage

MAX_TERMS = 160  # live terms of one output: beyond, the unrolled patch spills
MAX_UNROLLED = 4096  # multiply-adds of one thread
MAX_DEFAULT_THREADS = 128  # threads of an untuned block: merged angles all have as many as the largest
MIN_DEFAULT_THREADS = 48  # threads of an untuned block
MAX_OUTPUTS = 64  # outputs of a patch that is estimated
MAX_ALIVE = 215  # values, weights and sums at once of a patch that is estimated
MAX_PATCHES = 8  # patches that are estimated
MAX_CUTS = 12  # tiles and bands of strided or wide planes that are estimated
PATCHES_H = (1, 2, 4, 7, 8, 14, 28, 56)  # patches of a block, one below the other
CHANNELS_PER_BLOCK = (1, 2, 4, 8, 16)  # channels of a block, or of each of its tiles
_HEIGHTS = (1, 2, 4, 7, 8, 14, 28, 56)  # rows of a patch
_WIDTHS = (1, 2, 3, 4, 5, 7)  # columns of a patch
_PADS = (0, 4, 8, 12, 16, 20, 24, 28)  # values by which a staged row is longer than it must be
_PADS_OF_HALF = tuple(range(0, 30, 2))  # the same where values may be of half precision
_BANDS = (1, 2, 4)  # parts of a plane that a block may own
_SHORT = (28, 16)  # outputs of a patch whose code is short
_NVCC_REGISTERS = 16  # registers that nvcc takes beyond the larger of values and results
_SCATTERED = 1.1  # times the time of DRAM where a block owns parts of several planes: measured on an H200 at 56x56
_WIDE_STORE = 1.25  # wavefronts of a warp for each value that it stores by vectors
_COLLECTED = 15  # instructions of a store of collected results of half precision
_NATIVE_COPY = 5  # instructions of a copy of half precision that is asynchronous

P = TypeVar("P", bound=SharedPatchConfig)


class _Copies(NamedTuple):
    """The part of an estimate that is due to copies into shared memory and to collected results."""

    work: ThreadWork  # with its copies
    waits: float  # for memory
    tiles: int  # whose copies overlap
    memory: float  # wavefronts of a block beside those of every kernel


class Staged(BasePatch[P]):
    """The knobs, the reasons and the estimate that `shared_patch` and `strips` share, for blocks whose shape is known."""

    kind = "cuda"
    ops = ("conv", "conv_dx")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        terms = _max_terms(spec)
        if terms > MAX_TERMS:
            return f"unrolls at most {MAX_TERMS} taps per output, got {terms}"
        least, most = self._least(spec, device), min(device.shared_memory, MAX_SHARED)
        if self._geometry(spec, least).shared_bytes > most:
            return f"one row with its halo needs more shared memory than the {most} bytes of a block"
        return self._invalid(spec, device, least)

    def _heights(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the rows that a patch may have, ascending."""
        phases = stencil(spec).phases[0]
        return tuple(p for p in _HEIGHTS if p % phases == 0) or (phases,)

    def _widths(self, spec: ConvSpec) -> tuple[int, ...]:
        """Returns the columns that a patch may have, ascending."""
        phases = stencil(spec).phases[1]
        return tuple(p for p in _WIDTHS if p % phases == 0) or (phases,)

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {
            "patch_h": self._heights(spec),
            "patch_w": self._widths(spec),
            "patches_h": PATCHES_H,
            "channels_per_block": CHANNELS_PER_BLOCK,
            "vector": quads(spec, len(tiles(spec)) > 1),
            "weights_shared": (0, 1),
            "store_via_smem": (0, 1),
            "row_pad": _PADS_OF_HALF if spec.is_half else _PADS,
            "tile": tiles(spec),
            "plane_skew": (0, 2, 4) if spec.is_half else (0,),
            "smem_native_dtype": _natives(spec),
            "tiles_per_block": (1, 2, 4),
            "stages": (1,) if spec.is_half else (1, 2),
        }

    def default(self, spec: ConvSpec, device: Device) -> P:
        return least_estimate(self, spec, device)

    def _own(self, block: PatchGeometry) -> Patch:
        """Returns the cost of a thread's patch."""
        (height, width), config, pitch = block.g.output, block.config, block.stage.columns
        whole = height % config.patch_h == 0 and width % config.patch_w == 0
        return patch(_cells(block.spec, pitch, config.tile), config.patch_h, config.patch_w, math.gcd(pitch, block.step, VECTOR), whole)

    def _weights(self, block: PatchGeometry) -> float:
        """Returns the wavefronts of a warp that load weights: those of several channels lie in a line each."""
        return _live_taps(block.spec) * max(1.0, min(WARP, block.threads) * block.config.channels_per_block / block.threads)

    def _stores(self, block: PatchGeometry) -> tuple[float, float]:
        """Returns the wavefronts of a warp that store its patches, and how often each sector is written."""
        spec, config = block.spec, block.config
        if block.vector_store and not spec.is_half:
            return block.area * _WIDE_STORE, 1.0
        base, collected = block.first_results(0), bool(config.store_via_smem)
        if spec.is_half:
            base = block.first_results(block.band * block.g.output[1]) // spec.values_per_word
        if block.vector_store:
            return config.patch_h * global_wavefronts(base, config.patch_w // spec.values_per_word), 1.0
        if collected:
            return block.area * shared_wavefronts(base, 1), 1.0
        return block.area * global_wavefronts(base, 1), min(float(SECTOR), config.patch_w)

    def estimate(self, spec: ConvSpec, device: Device, config: P) -> Mapping[str, float]:
        block = self._geometry(spec, config)
        g, own, lanes, threads = block.g, self._own(block), block.first_values(), block.threads
        height, width = g.output
        band = height / -(-height // block.band) if config.tile else min(height, block.band)  # wanted rows of a block, on average
        held = max(own.alive, block.area) + _NVCC_REGISTERS  # results stay in registers until all are there; nvcc has both at once only in part
        warps, part = -(-threads // WARP), spec.itemsize / DTYPES[spec.sums]  # part of a word that a value takes in memory
        outputs: float = config.channels_per_block * band * block.across
        if part < 1:  # the last band may have fewer rows
            outputs = config.channels_per_block * height * block.across / -(-height // block.band)
        loads = sum(count * _load_wavefronts(block, lanes, values) for values, count in own.loads.items() if count)
        staged = config.channels_per_block * block.rows * block.row
        fetched = config.channels_per_block * min(block.rows, g.source[0]) * min(block.stage.columns if config.tile else g.source[1], g.source[1])
        stores, again = self._stores(block)
        memory = warps * (loads + self._weights(block) + stores) + ((part if config.smem_native_dtype else 1) * staged + FETCHED * part * fetched) / WARP
        if config.store_via_smem:
            memory += 2 * part * outputs / WARP
        copies = self._copies(block, own, outputs, part * fetched)
        dram = spec.itemsize * outputs * (1 + g.source[0] * g.source[1] / (height * width))
        if config.channels_per_block > 1 and block.band < height and not config.tile:
            dram *= _SCATTERED
        l2 = spec.itemsize * (fetched + again * outputs)
        load = BlockLoad(
            threads, outputs, block.shared_bytes, held, memory + copies.memory, dram, l2, copies.work, waits=copies.waits, tiles=copies.tiles
        )  # fmt: skip
        return clocks(nearest(device.arch), load)

    def _copies(self, block: PatchGeometry, own: Patch, outputs: float, fetched: float) -> _Copies:
        """Returns the copies of a tile of so many outputs, for which so many words are fetched."""
        spec, config, threads = block.spec, block.config, block.threads
        others = sum(own.loads.values()) + 2 * _live_taps(spec) - own.products / max(1, block.area) + block.area
        if not spec.is_half:
            copies = config.channels_per_block * block.rows * block.row / config.vector / threads
            copies += outputs / threads / VECTOR if config.store_via_smem else 0
            tiles = config.tiles_per_block if config.stages > 1 else 1
            waits = 2 - config.weights_shared if tiles > 1 else 2  # weights that are staged are copied ahead too
            return _Copies(ThreadWork(own.products, others, copies), waits, tiles, 0.0)
        *_, turns = by_rows(config.channels_per_block, block.rows, block.row // config.vector, threads)
        if config.smem_native_dtype:
            others += sum(values * count for values, count in own.loads.items())  # conversions
            return _Copies(ThreadWork(own.products, others, turns, _NATIVE_COPY), 2, 1, 0.0)
        if config.store_via_smem:
            others += _COLLECTED * outputs / threads / block.stored_at_once
        copy, waits = copied_by_rows(config.vector, turns)
        memory = UNALIGNED * turns * -(-threads // WARP) - MISALIGNED * fetched / WARP  # what a warp loads at once begins anywhere in a line
        return _Copies(ThreadWork(own.products, others, turns, copy), waits, 1, memory)

    def _invalid(self, spec: ConvSpec, device: Device, config: P) -> str | None:
        block, tile, most = self._geometry(spec, config), config.tile, min(device.shared_memory, MAX_SHARED)
        if config.vector not in quads(spec, tile > 0) or patch_step(block.g, tile, tile) % config.vector:
            return f"vector: columns are parted by the stride, or tiles of {tile} do not part into groups of {config.vector}"
        if config.smem_native_dtype and not (config.vector == VECTOR and by_words(spec, config.patch_w, tile)):
            return f"smem_native_dtype: images are staged as they lie where {VECTOR} values are copied at once and patches begin at multiples of them"
        if config.store_via_smem and len(block.g.every) == 1:
            return f"store_via_smem: {ONE_OFFSET}"
        if tile % config.patch_w:
            return f"patch_w must divide the {tile} columns of a tile, got {config.patch_w}"
        if reason := too_many_threads(block.threads):
            return reason
        if block.shared_bytes > most:
            return f"a block would stage {block.shared_bytes} bytes, at most {most}"
        if block.result_bytes > MAX_USE.collected:
            return f"a block would collect more than {MAX_USE.collected} bytes of results"
        for name, value in (("row_pad", config.row_pad), ("plane_skew", config.plane_skew)):
            if value % config.vector:
                return f"{name}: rows and planes must begin at whole vectors of {config.vector}, got {value}"
        work = _max_terms(spec) * block.area
        if work > MAX_UNROLLED:
            return f"a thread would unroll {work} multiply-adds, at most {MAX_UNROLLED}"
        return idle_stages(config.tiles_per_block, config.stages)

    def stage_config(self, spec: ConvSpec, config: P) -> StageConfig:
        block = self._geometry(spec, config)
        return StageConfig(
            halo=VECTOR, pitch=block.stage.columns, quad=config.vector, smem_native_dtype=bool(config.smem_native_dtype), sweep=True, pruned=block.pruned,
            tile=config.tile // block.g.phases[1], rows=block.band,
        )  # fmt: skip


class SharedPatch(Staged[SharedPatchConfig]):
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
    `tvm_orient/codegen/cuda/packed_reads.py` reads four at a time, where all patches begin at multiples of four. That halves the wavefronts of shared
    memory and costs a conversion for each value that a patch reads. Else values are staged as float32, so a copy converts and cannot be
    asynchronous. A thread loads a batch of up to 32 turns into registers before it converts the first
    (`tvm_orient/codegen/cuda/batched_loads.py`), and keeps its place in a staged row, so that a turn only adds constants to an address. What it
    stores is predicated by inline PTX (`tvm_orient/codegen/cuda/device_helpers.py`): of a test around a store nvcc made a branch, and moved the
    loads of a batch into it, one by one. Planes may be set a few floats apart where lanes of several planes meet in a bank.
    """

    name = "shared_patch"
    version = 8
    config_type = SharedPatchConfig

    def _geometry(self, spec: ConvSpec, config: SharedPatchConfig) -> PatchGeometry:
        return shared_patch_geometry(spec, config)

    def _least(self, spec: ConvSpec, device: Device) -> SharedPatchConfig:
        widths, across = self._widths(spec), stencil(spec).output[1]
        narrow = next((w for w in widths if -(-across // w) <= MAX_THREADS), widths[-1])
        return SharedPatchConfig(self._heights(spec)[0], narrow, patches_h=1, channels_per_block=1, vector=quads(spec)[0])

    def _patches(self, spec: ConvSpec, tile: int) -> list[tuple[float, int, int]]:
        """Returns (wavefronts of an output, height, width) of those patches that load least, without regard to the block that they are part of."""
        g, ranked = stencil(spec), []
        height, width = g.output
        sloped = len({t.row for t in g.every}) > 1 and len({t.col for t in g.every}) > 1
        for patch_h, patch_w in itertools.product(self._heights(spec), self._widths(spec)):
            area = patch_h * patch_w
            if area * _max_terms(spec) > MAX_UNROLLED or patch_h >= 2 * height or patch_w >= 2 * width or area > MAX_OUTPUTS:
                continue
            if patch_w == VECTOR and not spec.is_half and sloped:
                continue  # NVRTC 13.0 loads columns of 4 in pieces whose lanes meet in banks: a quarter slower on an H200 than others
            cost = self._cost(spec, patch_h, patch_w, tile)
            if cost is not None:
                ranked.append((cost, patch_h, patch_w))
        ranked.sort()
        # and some with less code, for layers of several angles
        short = [entry for area in _SHORT for entry in [entry for entry in ranked if entry[1] * entry[2] <= area][: MAX_PATCHES // 4]]
        return list(dict.fromkeys([*ranked[: 2 * MAX_PATCHES if spec.is_half else MAX_PATCHES], *short]))

    def _cost(self, spec: ConvSpec, patch_h: int, patch_w: int, tile: int) -> float | None:
        """Returns the wavefronts of an output of such a patch; None where its values do not fit the registers."""
        g, area, pitch, step = stencil(spec), patch_h * patch_w, unpadded_stage(spec, tile).columns, patch_step(stencil(spec), patch_w, tile)
        height, width = g.output
        own = patch(_cells(spec, pitch, tile), patch_h, patch_w, math.gcd(pitch, step, VECTOR), height % patch_h == 0 and width % patch_w == 0)
        if own.alive + _max_terms(spec) + area > MAX_ALIVE:
            return None
        covered = -(-height // patch_h) * -(-width // patch_w) * area / (height * width)
        if tile:
            loads = sum(count * shared_wavefronts(np.arange(WARP) * step, words) for words, count in own.loads.items() if count)
        else:
            loads = sum(count * (4 if step == VECTOR else words) for words, count in own.loads.items())
        if spec.is_half and by_words(spec, patch_w, tile):
            loads /= spec.values_per_word
        return (loads + _live_taps(spec)) / area * covered

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[SharedPatchConfig]:
        """Yields the configs worth an estimate: the best patches in bands that part the plane evenly, in blocks of a few warps."""
        g = stencil(spec)
        cut = [t for t in tiles(spec) if t and g.output[1] % t == 0 and patch_step(g, t, t) % quads(spec, True)[0] == 0]
        if cut:
            yield from self._cuts(spec, cut)
            if quads(spec, True) != (1,):
                return
        for _, patch_h, patch_w in self._patches(spec, 0):
            rows = -(-g.output[0] // patch_h)
            bands = sorted({min((r for r in PATCHES_H if r * parts >= rows), default=PATCHES_H[-1]) for parts in _BANDS})
            for patches_h, native in itertools.product(bands, _natives(spec)):
                if native and not by_words(spec, patch_w, 0):
                    continue
                trial = self._padded(spec, self._block(spec, SharedPatchConfig(patch_h, patch_w, patches_h, 1, 1, smem_native_dtype=native)))
                if self._fits(spec, trial):
                    yield trial

    def _cuts(self, spec: ConvSpec, cut: list[int]) -> Iterator[SharedPatchConfig]:
        """Yields the best patches in tiles of columns; bands that part the plane evenly come first."""
        height, found = stencil(spec).output[0], []
        for cost, patch_h, patch_w in self._patches(spec, cut[0]):
            for tile, patches_h, native in itertools.product(cut, PATCHES_H, _natives(spec)):
                if tile % patch_w or patches_h * patch_h >= height + patch_h or (native and not by_words(spec, patch_w, tile)):
                    continue
                trial = self._block(spec, SharedPatchConfig(patch_h, patch_w, patches_h, 1, 1, tile=tile, smem_native_dtype=native))
                if self._fits(spec, trial):
                    found.append((height % (patches_h * patch_h) > 0, cost + self._staging(spec, trial), trial))
        for *_, trial in sorted(found)[:MAX_CUTS]:
            yield self._padded(spec, trial)

    def _block(self, spec: ConvSpec, config: SharedPatchConfig) -> SharedPatchConfig:
        """Returns the config with as many channels as give a block a few warps, the widest copies, and results that are collected where that pays."""
        g, parting = stencil(spec), [p for p in CHANNELS_PER_BLOCK if spec.channels % p == 0]
        lanes = config.patches_h * -(-(config.tile or g.output[1]) // config.patch_w)
        fit = next((p for p in parting if p * lanes >= MIN_DEFAULT_THREADS), parting[-1])
        collects = len(g.every) > 1 and g.output[1] % config.patch_w == 0 and not stores_vectors(g, config.patch_w) and config.patch_w > 1
        return replace(config, channels_per_block=fit, vector=quads(spec, config.tile > 0)[0], store_via_smem=int(collects))

    def _fits(self, spec: ConvSpec, config: SharedPatchConfig) -> bool:
        block = self._geometry(spec, config)
        return block.threads <= MAX_DEFAULT_THREADS and block.staged_bytes <= MAX_USE.staged

    def _staging(self, spec: ConvSpec, config: SharedPatchConfig) -> float:
        """Returns the wavefronts of an output that is wanted for its share of the stage."""
        block = self._geometry(spec, config)
        height = block.g.output[0]
        return STAGED * (block.rows * block.row) * -(-height // block.band) / (height * block.across)

    def _padded(self, spec: ConvSpec, config: SharedPatchConfig) -> SharedPatchConfig:
        """Returns the config with the least padding that keeps a warp's lanes in banks of their own, as far as any does."""
        words = config.patch_w if config.patch_w in (2, 4) else 1
        if config.tile:
            words = math.gcd(patch_step(stencil(spec), config.patch_w, config.tile), VECTOR)
        best, fewest = config, math.inf
        wide = math.gcd(config.patch_w, VECTOR)  # what a lane loads at once must stay aligned
        pads = [p for p in (_PADS_OF_HALF if spec.is_half else _PADS) if p % max(wide, config.vector) == 0]
        several = config.patches_h > 1 or (spec.is_half and config.channels_per_block > 1)
        skews = (0, 4, 2) if spec.is_half and config.channels_per_block > 1 else (0,)
        for plane_skew, row_pad in itertools.product(skews, pads) if several and stencil(spec).phases == (1, 1) else ():
            trial = replace(config, row_pad=row_pad, plane_skew=plane_skew)
            block = self._geometry(spec, trial)
            count = _load_wavefronts(block, block.first_values()[: 2 * WARP], words)
            if count < fewest:
                best, fewest = trial, count
            if count <= (max(1, words // spec.values_per_word) if trial.smem_native_dtype else words):
                break
        return best


def _load_wavefronts(block: PatchGeometry, lanes: Any, values: int) -> float:
    """Returns the wavefronts of a warp whose lanes load so many values from these places of the stage."""
    if not block.config.smem_native_dtype:
        return shared_wavefronts(lanes, values)
    packed = block.spec.values_per_word
    return shared_wavefronts(lanes // packed, max(1, values // packed))


def _natives(spec: ConvSpec) -> tuple[int, ...]:
    """Tells whether images may be staged in their own dtype: all values of that knob."""
    return (0, 1) if spec.is_half else (0,)


def _max_terms(spec: ConvSpec) -> int:
    """Returns the number of live terms of the output that has most."""
    return max(map(len, stencil(spec).terms.values()))


def _live_taps(spec: ConvSpec) -> int:
    """Returns the number of taps that reach the plane."""
    return sum(len(t.taps) for t in stencil(spec).every)


def _cells(spec: ConvSpec, pitch: int, tile: int) -> Any:
    g = stencil(spec)
    return cells(g, -(-g.output[1] // g.phases[1]), VECTOR, pitch, tile // g.phases[1])


TEMPLATE = SharedPatch()
