"""CUDA: `shared_patch` with patches that run across the whole plane, for planes that are small beside the line of taps.

A thread owns whole rows of outputs, or whole columns. Where along them a tap leaves the plane is then known at compile time: taps outside
are left out, and no halo is staged on that side. Consecutive lanes may lie in consecutive planes, whose distance keeps them in banks of
their own.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tvm_orient.perf_model.block_cost import global_wavefronts, shared_wavefronts
from tvm_orient.perf_model.patch_cost import Patch, held
from tvm_orient.problem.device import Device
from tvm_orient.problem.shear import line_slope
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import Stage, round_up, stencil
from tvm_orient.sass.bank_conflicts import WARP

from ..base import MAX_USE
from ..tiling import quads
from .costs import SECTOR, VECTOR
from .patch_geometry import PatchGeometry, StripsConfig, stores_vectors, strips_geometry
from .shared_patch import CHANNELS_PER_BLOCK, PATCHES_H, Staged

MAX_OUTPUTS = 112  # outputs of an untuned strip: beyond, the compiler takes every register there is
MAX_PRODUCTS = 2400  # multiply-adds of an untuned strip
MAX_PRODUCTS_OF_HALF = 3600  # the same in half precision, which has less time for values that strips share
MIN_DEFAULT_THREADS = 28  # threads of an untuned block
MAX_DEFAULT_THREADS = 128  # threads of an untuned block
_PAIR = 2  # columns that are stored as one vector


class Strips(Staged[StripsConfig]):
    """Computes conv and conv_dx as `shared_patch` does, by patches that run across the whole plane.

    A thread owns whole rows of outputs where the line is shallow, whole columns where it is steep. Where along them a tap leaves the plane is
    then known when the loops are unrolled. Such taps are left out, and no halo is staged on that side: at 14x14 and K=31 the halo on all sides
    makes seven floats of stage for each of the plane. Consecutive lanes may lie in consecutive planes, some floats apart so that each plane is in
    banks of its own; where lanes own columns a larger distance lets a warp go on in the next plane, in the banks after those of the last column.
    """

    name = "strips"
    version = 4
    config_type = StripsConfig

    def _geometry(self, spec: ConvSpec, config: StripsConfig) -> PatchGeometry:
        return strips_geometry(spec, config)

    def _heights(self, spec: ConvSpec) -> tuple[int, ...]:
        return tuple(sorted({*super()._heights(spec), stencil(spec).output[0]}))

    def _widths(self, spec: ConvSpec) -> tuple[int, ...]:
        return tuple(sorted({*super()._widths(spec), stencil(spec).output[1]}))

    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        return {
            **super().knobs(spec, device),
            "vector": quads(spec),
            "row_pad": (0,),
            "tile": (0,),
            "smem_native_dtype": (0,),
            "lanes_across_channels": (0, 1),
            "plane_skew": tuple(sorted({0, 1, 2, 4, _on(spec)})),
        }

    def _least(self, spec: ConvSpec, device: Device) -> StripsConfig:
        g = stencil(spec)
        patch_h, patch_w = min(((g.phases[0], g.output[1]), (g.output[0], g.phases[1])), key=math.prod)
        height, width = min(p for p in self._heights(spec) if p >= patch_h), min(p for p in self._widths(spec) if p >= patch_w)
        return StripsConfig(height, width, patches_h=1, channels_per_block=1, vector=quads(spec)[0])

    def _invalid(self, spec: ConvSpec, device: Device, config: StripsConfig) -> str | None:
        height, width = stencil(spec).output
        if config.patch_h != height and config.patch_w != width:
            return f"a strip must run across all {height} rows or all {width} columns, got {config.patch_h} x {config.patch_w}"
        if config.patch_h >= height and config.patches_h > 1:
            return f"one strip has all {height} rows, got patches_h={config.patches_h}"
        words = max(config.vector, math.gcd(width, VECTOR) if config.store_via_smem else 1)
        if config.plane_skew % words:
            return f"plane_skew must be a multiple of the {words} values that are moved at once, got {config.plane_skew}"
        return super()._invalid(spec, device, config)

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterator[StripsConfig]:
        """Yields the configs worth an estimate: strips in blocks of a few warps, with few results or values at once.

        Not columns of 4: a vector of results is stored as soon as it is there, and the compiler takes every register to load ahead. Not rows or
        columns of 2 along a diagonal: lanes that are 2 apart read values one by one, and meet in banks.
        """
        height, width = stencil(spec).output
        pairs = line_slope(spec) in (None, 0)
        columns = [p for p in self._widths(spec) if width % p == 0 and p < width and p != VECTOR and (p != _PAIR or pairs)]
        strips = [*((p, width) for p in self._heights(spec) if height % p == 0 and (p != _PAIR or pairs)), *((height, p) for p in columns)]
        for (patch_h, patch_w), channels, parts in itertools.product(strips, CHANNELS_PER_BLOCK, (1, 2)):
            patches_h = next((r for r in PATCHES_H if r * parts == -(-height // patch_h)), 0)
            if not patches_h or patch_h * patch_w > MAX_OUTPUTS or spec.channels % channels:
                continue
            yield from self._blocks(spec, StripsConfig(patch_h, patch_w, patches_h, channels, quads(spec)[0]))

    def _blocks(self, spec: ConvSpec, config: StripsConfig) -> Iterator[StripsConfig]:
        """Yields the block of these strips in both orders of its lanes, results collected and weights staged where that pays; nothing where it is too large."""
        g, several = stencil(spec), config.channels_per_block > 1
        height, width = g.output
        collects = len(g.every) > 1 and config.patch_w > 1 and not stores_vectors(g, config.patch_w)
        staged = several and config.channels_per_block * spec.kernel_size * DTYPES[spec.sums] <= MAX_USE.weights
        config = replace(config, store_via_smem=int(collects), weights_shared=int(staged))
        block = self._geometry(spec, config)
        if not MIN_DEFAULT_THREADS <= block.threads <= MAX_DEFAULT_THREADS:
            return
        if self._own(block).products > (MAX_PRODUCTS_OF_HALF if spec.is_half else MAX_PRODUCTS):
            return
        for across in (1,) if collects and several else (0, 1):
            on = _on(spec) if config.patch_h == height and several else 0
            skew = max(config.vector, math.gcd(width, VECTOR)) if across else on
            trial = replace(config, lanes_across_channels=across, plane_skew=skew)
            if self._geometry(spec, trial).staged_bytes <= MAX_USE.staged:
                yield trial

    def _own(self, block: PatchGeometry) -> Patch:
        return _strip(block.spec, block.config.patch_h, block.config.patch_w, block.stage, block.pruned or 0)

    def _weights(self, block: PatchGeometry) -> float:
        spec, plane = block.spec, block.places()[0]
        live = len([s for t in block.g.every for s in t.taps])
        if not block.config.weights_shared:
            return live * global_wavefronts(plane * WARP, 1)
        copied = 2 * spec.kernel_size * block.config.channels_per_block / WARP
        return live * shared_wavefronts(plane * spec.kernel_size, 1) + copied / -(-len(plane) // WARP)

    def _stores(self, block: PatchGeometry) -> tuple[float, float]:
        config, (height, width) = block.config, block.g.output
        if not config.store_via_smem:
            words = config.patch_w if block.vector_store else 1
            again = 1.0 if words == config.patch_w and not block.lanes_across_channels else SECTOR / words
            return block.area / words * global_wavefronts(block.first_results(height * width), words), again
        words = math.gcd(config.patch_w, width, config.plane_skew or VECTOR, VECTOR)
        return block.area / words * shared_wavefronts(block.first_results(block.results), words), 1.0


def _on(spec: ConvSpec) -> int:
    """Returns the skew with which columns go on in the next plane where they end in one."""
    return round_up(stencil(spec).output[1], quads(spec)[0]) % WARP


@functools.lru_cache(maxsize=4096)
def _strip(spec: ConvSpec, height: int, width: int, stage: Stage, pruned: int) -> Patch:
    """Returns the cost of a strip of outputs; taps that leave the plane along it are left out."""
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
    align = math.gcd(stage.columns, width // g.phases[1] if not pruned else VECTOR, VECTOR)
    turned = [where[i * width + j] for j, i in itertools.product(range(width), range(height))]
    return min(held(where, align), held(turned, align), key=lambda own: own.alive)  # the compiler finds the better order


TEMPLATE = Strips()
