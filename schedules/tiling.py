"""How templates tile planes, rows and channels."""

from __future__ import annotations

from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil

from .base import MAX_THREADS

_NARROW = 64  # columns of a plane whose rows are never cut
_MAX_TILE = 128  # columns of a plane that may be one tile
_TILES = (14, 16, 28, 32, 56, 112)  # columns of a tile


def too_many_threads(threads: int) -> str | None:
    """Returns why no CUDA block has so many threads, or None."""
    return f"a block would have {threads} threads, at most {MAX_THREADS}" if threads > MAX_THREADS else None


def divisors(value: int, most: int) -> tuple[int, ...]:
    """Returns the divisors of value up to `most`, ascending."""
    return tuple(d for d in range(1, min(value, most) + 1) if value % d == 0)


def most_dividing(value: int, most: int) -> int:
    """Returns the largest divisor of value that is <= most."""
    return divisors(value, most)[-1]


def parted(channels: int, channels_per_block: int, tiles_per_block: int) -> tuple[int, int]:
    """Returns (tiles, channels of a tile) of a block that part these channels evenly: the most of each, up to what is asked for."""
    planes = most_dividing(channels, channels_per_block)
    return most_dividing(channels // planes, tiles_per_block), planes


def idle_stages(tiles_per_block: int, stages: int) -> str | None:
    """Returns why a block of so many tiles has no use for so many stages, or None."""
    if stages > tiles_per_block:
        return f"a block of {tiles_per_block} tiles has no use for {stages} stages: tiles_per_block must be at least as many"
    return None


def quads(spec: ConvSpec, tiled: bool = False) -> tuple[int, ...]:
    """Returns the columns that can be loaded at once, most first.

    Groups must tile the row and not straddle its ends, nor be parted by a stride (tiles are not).
    """
    g = stencil(spec)
    return (1,) if g.wrap or (g.step[1] > 1 and not tiled) else tuple(q for q in (4, 2, 1) if g.source[1] % q == 0)


def tiles(spec: ConvSpec, patch: int = 1) -> tuple[int, ...]:
    """Returns the columns of outputs that a block may own, 0 for whole rows; more than these for planes that are strided or wide.

    They are whole vectors of the source, and multiples of `patch`.
    """
    g = stencil(spec)
    width, across = g.output[1], max(g.phases[1], patch)
    found = {t for t in (*_TILES, *((width,) if width <= _MAX_TILE else ())) if t <= width and t % across == 0}
    return (0, *sorted(found)) if g.step[1] > 1 or width > _NARROW else (0,)
