"""Keys of taps: the text that names a table of offsets, and the table that a key names."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .line_offsets import Anchor, Offset, oriented_offsets

# degrees, from the roundest angle to the finest: the first level with a multiple that gives the table names it
_STEPS = (90.0, 45.0, 22.5, 11.25, 15.0, 5.0, 1.0, 0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)


@dataclass(frozen=True)
class Lines:
    """The straight lines that taps are, one for each group, all of one dilation and anchor: what `Taps.oriented` makes them from."""

    degrees: tuple[float, ...]  #: the angle of each group, counter-clockwise with y up, in [0, 360)
    dilation: int  #: pixels along the line from one tap to the next
    anchor: Anchor  #: whether the line's centre or its start lies on the pixel


# ---- keys ---------------------------------------------------------------------------------------


def degrees_text(value: float) -> str:
    """Returns an angle as keys have it: at most six digits after the point, and no zero that says nothing."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def radians_of(degrees: Iterable[float]) -> NDArray[np.float32]:
    return np.asarray([math.radians(d) for d in degrees], dtype=np.float64).astype(np.float32)


def _quadrant_interval(line: Sequence[Offset], k: Sequence[int]) -> tuple[float, float]:
    """Angles in [0, 90] degrees whose truncated line has these magnitudes, as a closed interval (empty if lo > hi)."""
    lo, hi = 0.0, 90.0
    for (dh, dw), distance in zip(line, k, strict=True):
        d = abs(distance)
        up, along = abs(dh), abs(dw)
        if d == 0 and up == along == 0:
            continue
        if up > d or along > d:
            return 1.0, 0.0
        lo = max(lo, math.degrees(math.asin(up / d)), math.degrees(math.acos(min(1.0, (along + 1) / d))))
        hi = min(hi, math.degrees(math.asin(min(1.0, (up + 1) / d))), math.degrees(math.acos(along / d)))
    return lo, hi


def _find_angle(line: tuple[Offset, ...], dilation: int, anchor: Anchor) -> float | None:
    """Returns the roundest angle in degrees, [0, 360), whose table is this line; None where there is none."""
    size = len(line)
    k = [dilation * (s - (size // 2 if anchor == "center" else 0)) for s in range(size)]
    lo, hi = _quadrant_interval(line, k)
    wide = hi - lo > 1e-3
    lo, hi = lo - 1e-4, hi + 1e-4  # the float32 rule moves the edges a little
    if lo > hi:
        return None
    wanted = np.asarray(line, dtype=np.int32)
    arcs = [(90 * q + lo, 90 * q + hi) if q % 2 == 0 else (90 * (q + 1) - hi, 90 * (q + 1) - lo) for q in range(4)]
    if wide:  # inside a wide interval every angle gives the line, or none does (its signs belong to another quadrant)
        arcs = [arc for arc in arcs if np.array_equal(oriented_offsets(radians_of([sum(arc) / 2]), size, dilation, anchor)[0], wanted)]
    for step in _STEPS:
        found = []
        for start, stop in arcs:
            found += [round(m * step, 6) for m in range(math.ceil(start / step), math.floor(stop / step) + 1)]
        degrees = sorted({d for d in found if 0 <= d < 360})
        if degrees:
            tables = oriented_offsets(radians_of(degrees), size, dilation, anchor)
            for degree, table in zip(degrees, tables, strict=True):
                if np.array_equal(table, wanted):
                    return degree
    return None


@functools.lru_cache(maxsize=4096)
def key_of(table: tuple[tuple[Offset, ...], ...]) -> str:
    size = len(table[0])
    reach = max(max(math.hypot(h, w) for h, w in line) for line in table)
    for anchor, flag, longest in (("center", "", size // 2), ("start", "s", size - 1)):
        if anchor == "center" and size % 2 == 0:
            continue
        guess = round(reach / longest) if longest else 1
        for dilation in sorted({1, max(1, guess), guess + 1}):
            lines = {line: _find_angle(line, dilation, anchor) for line in dict.fromkeys(table)}  # type: ignore[arg-type]
            if all(degree is not None for degree in lines.values()):
                spread = "" if dilation == 1 else f"d{dilation}"
                return f"k{size}{spread}{flag}a" + "_".join(degrees_text(lines[line] or 0.0) for line in table)
    return "t" + "_".join(".".join(f"{h}.{w}" for h, w in line) for line in table)


def parse_lines(key: str) -> tuple[int, Lines] | None:
    """Returns the number of taps and the lines that a key names, as it says them; None where it does not read like the key of lines.

    Raises:
        ValueError: a part that should be a number is none.
    """
    head, _, angles = key.partition("a")
    anchor: Anchor = "start" if head.endswith("s") else "center"
    size, _, dilation = head.removesuffix("s").removeprefix("k").partition("d")
    if not head.startswith("k") or not angles:
        return None
    return int(size), Lines(tuple(float(angle) for angle in angles.split("_")), int(dilation or 1), anchor)
