"""Names of angles for people: the angle that was asked for, beside the round one that has the same taps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_MAX_SHOWN = 16  # angles of a list; those after them are only counted
_SAME = 5e-5  # degrees: angles that differ by less read the same to four decimals


def degrees_text(degrees: float) -> str:
    """Return an angle in degrees to four decimals: 22.5, not 22.50000001."""
    return f"{degrees:.4f}".rstrip("0").rstrip(".") if abs(degrees) >= _SAME else "0"


def angle_list(radians: Sequence[float]) -> str:
    """Return angles, given in radians, as a list in degrees in which equal neighbours stand once, at most 16 of them: [0, 22.5, 45]."""
    names = [name for name, _ in itertools.groupby(degrees_text(math.degrees(angle)) for angle in radians)]
    more = f", ... {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else ""
    return f"[{', '.join(names[:_MAX_SHOWN])}{more}]"


def asked_text(asked: Sequence[float], same: float, unit: str) -> str:
    """Return the angles that were asked for, and the one that their taps are named by where it is another: 30 deg (taps as 33.75 deg).

    Args:
        asked: degrees; none where nobody asked for an angle.
        same: degrees of the round angle with the same taps.
        unit: stands behind a number.
    """
    name = f"{same:g}{unit}"
    if all(abs((angle - same + 180) % 360 - 180) < _SAME for angle in asked):
        return name
    return f"{', '.join(dict.fromkeys(map(degrees_text, asked)))}{unit} (taps as {name})"
