"""How templates tile planes, rows and channels."""

from __future__ import annotations

from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.stencil import stencil

from .base import Decisions

_NARROW = 64  # columns of a plane whose rows are never cut


def divisors(value: int, most: int) -> tuple[int, ...]:
    """Divisors of value up to `most`, ascending."""
    return tuple(d for d in range(1, min(value, most) + 1) if value % d == 0)


def most_dividing(value: int, most: int) -> int:
    """The largest divisor of value that is <= most."""
    return divisors(value, most)[-1]


def parted(channels: int, planes: int, turns: int) -> tuple[int, int]:
    """(turns, planes of each) of a block that part these channels evenly: the most of each up to what is asked for."""
    planes = most_dividing(channels, planes)
    return most_dividing(channels // planes, turns), planes


def idle_stages(decisions: Decisions) -> str | None:
    """Why a block has no use for its stages, or None."""
    if decisions["stages"] > decisions["turns"]:
        return f"a block of {decisions['turns']} tiles has no use for {decisions['stages']} stages: turns must be at least as many"
    return None


def quads(spec: ConvSpec, tiled: bool = False) -> tuple[int, ...]:
    """Columns that can be loaded at once, most first: groups must tile the row and not straddle its ends, nor be parted by a stride (tiles are not)."""
    g = stencil(spec)
    return (1,) if g.wrap or (g.step[1] > 1 and not tiled) else tuple(q for q in (4, 2, 1) if g.source[1] % q == 0)


def tiles(spec: ConvSpec, patch: int = 1) -> tuple[int, ...]:
    """Columns of outputs that a block may own, 0 for whole rows; for planes that are strided or wide. Whole vectors of the source, multiples of `patch`."""
    g = stencil(spec)
    width, across = g.output[1], max(g.phases[1], patch)
    found = {t for t in (14, 16, 28, 32, 56, 112, *((width,) if width <= 128 else ())) if t <= width and t % across == 0}
    return (0, *sorted(found)) if g.step[1] > 1 or width > _NARROW else (0,)
