"""Names of angles for people: what was asked for, beside the round angle that has the same taps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

_SHOWN = 16  # angles of a list, before the rest is counted


def degrees_text(degrees: float) -> str:
    """An angle in degrees, to four decimals: 22.5, not 22.50000001."""
    return f"{degrees:.4f}".rstrip("0").rstrip(".") if abs(degrees) >= 5e-5 else "0"


def angle_list(radians: Sequence[float]) -> str:
    """Angles in degrees, equal neighbours once: [0, 22.5, 45]."""
    names = [name for name, _ in itertools.groupby(degrees_text(math.degrees(angle)) for angle in radians)]
    more = f", ... {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"[{', '.join(names[:_SHOWN])}{more}]"


def asked_text(asked: Sequence[float], same: float, unit: str) -> str:
    """The angles in degrees that were asked for, and the one that their taps are named by where it is another: 30 deg (taps as 33.75 deg).

    Args:
        asked: degrees, none where nobody asked for an angle.
        same: degrees, of the round angle with the same taps.
        unit: what stands behind a number.
    """
    name = f"{same:g}{unit}"
    if all(abs((angle - same + 180) % 360 - 180) < 5e-5 for angle in asked):
        return name
    return f"{', '.join(dict.fromkeys(map(degrees_text, asked)))}{unit} (taps as {name})"
