"""Tells what a weight gradient of small planes costs where one thread owns a plane; the template two_pass_dw schedules it.

Every index is known when the loops are unrolled. So there is no halo, no product with a zero outside the plane, and no sum over lanes.
"""

from __future__ import annotations

import functools
import itertools

from tvm_orient.perf_model.block_cost import ALONE, BlockLoad, Clocks, ThreadWork, clocks
from tvm_orient.perf_model.gpu_specs import GpuSpec
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.problem.stencil import stencil

_MAX_PIXELS = 256  # values of a plane
_MAX_HELD = 190  # values of x and sums that a thread holds at once
_MAX_PRODUCTS = 3000  # multiply-adds that a thread unrolls
_COPY_IN_LINE = 5  # instructions of a copy and its address where planes lie one after the other
_COPY_APART = 14  # the same where they do not


def serves(spec: ConvSpec) -> bool:
    """Tells whether a thread can hold a plane."""
    x, dy = _pixels(spec)
    if max(x, dy) > _MAX_PIXELS or products(spec) > _MAX_PRODUCTS:
        return False
    return min(_held(spec)) + len(stencil(spec).every) <= _MAX_HELD


def by_columns(spec: ConvSpec) -> bool:
    """Tells whether fewer values of x are held at once when pixels are taken column by column."""
    rows, columns = _held(spec)
    return columns < rows


def staged(spec: ConvSpec, planes: int) -> tuple[int, int]:
    """Returns the bytes of `planes` planes of x and of dy, each of a pitch of an odd number of groups."""
    x, dy = _pixels(spec)
    size = planes * DTYPES[spec.sums]
    return size * _pitch(x), size * _pitch(dy)


def _pitch(pixels: int) -> int:
    return pixels | 1 if pixels % 4 else 4 * (pixels // 4 | 1)


def estimate(spec: ConvSpec, gpu: GpuSpec, planes: int) -> Clocks:
    """Returns the clocks of an SM for 32 pixels of dy by resource; a block has as many threads as planes."""
    (x, dy), taps = _pixels(spec), max(1, len(stencil(spec).every))
    pixels, moved = x + dy, spec.itemsize * planes * (x + dy) + 4 * planes * taps
    warps = -(-planes // 32)
    loads = sum(size * (planes / 32 if size % 4 == 0 else warps) for size in (x, dy))  # 16 bytes a lane go by quarters of a warp
    memory = loads + warps * taps + planes * (2 * pixels + 2.3 * taps) / 32
    copies = sum(size / (1 if size % 4 else 4) * (_COPY_IN_LINE if _pitch(size) == size else _COPY_APART) for size in (x, dy))
    others = pixels / (4 if x % 4 == 0 == dy % 4 else 1) + copies + 6 * taps
    held, shared, sums = min(_held(spec)) + taps, sum(staged(spec, planes)), 4 * planes * taps
    work = ThreadWork(products(spec), others)
    return clocks(gpu, BlockLoad(planes, planes * dy, shared, held, memory, moved, moved + sums, work), least=ALONE)


def _pixels(spec: ConvSpec) -> tuple[int, int]:
    g = stencil(spec)
    return g.source[0] * g.source[1], g.output[0] * g.output[1]


@functools.lru_cache(maxsize=1024)
def _reads(spec: ConvSpec) -> tuple[tuple[int, int, int], ...]:
    """Returns the row and column of dy, and the place in the plane of x, of every multiply-add."""
    g, found = stencil(spec), []
    for t, i, j in itertools.product(g.every, range(g.output[0]), range(g.output[1])):
        row, column = i * g.step[0] + t.row, j * g.step[1] + t.col
        if g.wrap or (0 <= row < g.source[0] and 0 <= column < g.source[1]):
            found.append((i, j, row % g.source[0] * g.source[1] + column % g.source[1]))
    return tuple(found)


def products(spec: ConvSpec) -> int:
    """Returns the number of multiply-adds of one plane."""
    return len(_reads(spec))


@functools.lru_cache(maxsize=1024)
def _held(spec: ConvSpec) -> tuple[int, int]:
    """Returns the values of x from the first multiply-add that needs them to the last, at once: by rows of pixels, and by columns."""
    height, width = stencil(spec).output
    most = []
    for when in ([i * width + j for i, j, _ in _reads(spec)], [j * height + i for i, j, _ in _reads(spec)]):
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for time, (*_, place) in zip(when, _reads(spec), strict=True):
            first[place], last[place] = min(first.get(place, time), time), max(last.get(place, time), time)
        change = [0] * (height * width + 1)
        for place, time in first.items():
            change[time] += 1
            change[last[place] + 1] -= 1
        most.append(max(itertools.accumulate(change)))
    return most[0], most[1]
