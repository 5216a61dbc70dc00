"""Taps: the integer geometry of an oriented kernel, computed once, on the host.

A table of offsets (dh, dw) by channel group is the truth; an angle is one way to fill it. Two angles with the
same table are the same taps, and have the same key.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument
from .line_offsets import LARGEST_OFFSET, Anchor, Offset, in_radians, oriented_offsets, whole_number
from .taps_key import Lines, key_of, parse_lines, radians_of


@dataclass(frozen=True, eq=False)
class Taps:
    """Integer tap offsets by channel group; frozen, hashable, equal by table.

    Make one with `Taps.oriented`, `Taps.from_offsets` or `Taps.from_key`. Groups are contiguous runs of channels:
    channel c of C belongs to group (G*(c+1) - 1) // C, as in the published networks.
    """

    table: tuple[tuple[Offset, ...], ...]  #: G groups of K pairs (dh, dw), in pixels
    #: short canonical name, a function of the table alone: k31a0_22.5, k7d2a45, or t0.0.0.1 for free offsets
    key: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", key_of(self.table))  # a plain attribute, which torch.compile can read

    @classmethod
    def oriented(cls, theta: float | Sequence[float] | NDArray[Any], kernel_size: int, dilation: int = 1, anchor: Anchor = "center") -> Taps:
        """Returns lines of taps at the angles theta, by the rule of `tvm_orient.problem.line_offsets.oriented_offsets`.

        Args:
            theta: radians, counter-clockwise with y up: a float or floats (G,), no whole numbers but 0; rounded to float32 first.
            kernel_size: K >= 1, odd where anchor is "center".
            dilation: whole number >= 1; multiplies k before truncation.
            anchor: "center" (k = s - K//2) or "start" (k = s).

        Raises:
            InvalidArgument: a rule above is broken, theta is not finite, or a tap lies beyond +-32768 pixels.
        """
        kernel_size = whole_number("kernel_size", kernel_size, 1)
        dilation = whole_number("dilation", dilation, 1)
        if anchor not in ("center", "start"):
            raise InvalidArgument(f'anchor must be "center" or "start", got {anchor!r}')
        if anchor == "center" and kernel_size % 2 == 0:
            raise InvalidArgument(f'kernel_size must be odd so that a centre tap exists, got {kernel_size}: use {kernel_size + 1}, or anchor="start"')
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused as such
            angles = np.atleast_1d(in_radians(theta)).astype(np.float32)
        if angles.ndim != 1 or angles.size == 0:
            raise InvalidArgument(f"theta must be a number or have shape (G,) with G >= 1, got shape {angles.shape}")
        if not np.isfinite(angles).all():
            raise InvalidArgument(f"theta must be finite (radians), got {angles[~np.isfinite(angles)][0]} at position {int(np.argmin(np.isfinite(angles)))}")
        return cls.from_offsets(oriented_offsets(angles, kernel_size, dilation, anchor))

    @classmethod
    def from_offsets(cls, offsets: Any) -> Taps:
        """Returns taps at any integers (G, K, 2), last axis (dh, dw), in pixels: a line, a cross, a dilated or a thick line.

        Raises:
            InvalidArgument: not integers, not (G, K, 2), empty, or an offset beyond +-32768.
        """
        array = np.asarray(offsets)
        if array.ndim != 3 or array.shape[-1] != 2 or array.size == 0:
            raise InvalidArgument(f"offsets must have shape (G, K, 2) with G, K >= 1, got shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise InvalidArgument(f"offsets must be integers (pixels), got dtype {array.dtype}: truncate them first, or use Taps.oriented")
        if int(np.abs(array.astype(np.int64)).max()) > LARGEST_OFFSET:
            raise InvalidArgument(f"offsets must lie within +-{LARGEST_OFFSET} pixels, got {int(np.abs(array.astype(np.int64)).max())}")
        return cls(tuple(tuple((int(h), int(w)) for h, w in group) for group in array))

    @classmethod
    def from_key(cls, key: str) -> Taps:
        """Returns the taps that a key names; `Taps.from_key(t.key) == t`.

        Raises:
            InvalidArgument: not a key that this version writes.
        """
        return _from_key(key)

    @property
    def groups(self) -> int:
        """Returns the number of channel groups G."""
        return len(self.table)

    @property
    def kernel_size(self) -> int:
        """Taps per group K, colliding ones included."""
        return len(self.table[0])

    @property
    def offsets(self) -> NDArray[np.int32]:
        """Returns int32 (G, K, 2), last axis (dh, dw)."""
        return np.asarray(self.table, dtype=np.int32)

    @property
    def negated(self) -> Taps:
        """Returns every offset with its sign changed: with stride 1, conv_dx of these taps is conv of the negated ones (the adjoint of a shift)."""
        return Taps(tuple(tuple((-h, -w) for h, w in group) for group in self.table))

    @property
    def mirrored(self) -> Taps:
        """Returns every column offset with its sign changed: the taps of the image seen in a mirror, and of the angle 180 - a."""
        return Taps(tuple(tuple((h, -w) for h, w in group) for group in self.table))

    @property
    def lines(self) -> Lines | None:
        """Returns the straight lines that the groups are, by the angles of the key; None where the offsets are free."""
        found = parse_lines(self.key)
        return found[1] if found else None

    @property
    def degrees(self) -> tuple[float, ...]:
        """Returns the angle of each group in degrees, by the key, in [0, 360); empty where the offsets are free."""
        return () if self.lines is None else self.lines.degrees

    def group(self, index: int) -> Taps:
        """Returns the taps of one group, as a table of its own."""
        return Taps((self.table[index],))

    def distinct(self, index: int) -> dict[Offset, tuple[int, ...]]:
        """Offsets of a group in order of first use, each with the taps that land there (colliding taps share one)."""
        places: dict[Offset, list[int]] = {}
        for s, offset in enumerate(self.table[index]):
            places.setdefault(offset, []).append(s)
        return {offset: tuple(taps) for offset, taps in places.items()}

    def channel_ranges(self, channels: int) -> list[tuple[int, int]]:
        """Returns [start, stop) of each group's channels; an empty range for a group that none of so few channels falls into."""
        groups = self.groups
        # smallest c with (G*(c+1)-1)//C >= g  is  ceil((g*C+1)/G) - 1
        edges = [min(channels, max(0, -(-(g * channels + 1) // groups) - 1)) for g in range(groups)] + [channels]
        return list(itertools.pairwise(edges))

    def for_channels(self, channels: int) -> Taps:
        """Returns the same taps channel by channel with the fewest groups: per-channel tables collapse to contiguous groups."""
        rows = [self.table[(self.groups * (c + 1) - 1) // channels] for c in range(channels)]
        runs = [rows[0]] + [row for before, row in itertools.pairwise(rows) if row != before]
        fewer = Taps(tuple(runs))
        spread = [fewer.table[(fewer.groups * (c + 1) - 1) // channels] for c in range(channels)]
        return fewer if spread == rows else Taps(tuple(rows))

    def __eq__(self, other: object) -> bool:
        return self.table == other.table if isinstance(other, Taps) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.table)

    def __repr__(self) -> str:
        return f"Taps({self.key})"


@functools.lru_cache(maxsize=4096)
def _from_key(key: str) -> Taps:
    problem = InvalidArgument(f"not a taps key: {key[:80]!r}; a key reads like k31a0_22.5_45, k7d2a90 or t0.0.0.1 (offsets dh.dw, groups split by _)")
    if not isinstance(key, str) or len(key) < 2:
        raise problem
    try:
        if key[0] == "t":
            lines = []
            for part in key[1:].split("_"):
                numbers = [int(v) for v in part.split(".")]
                lines.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
            return Taps.from_offsets(np.asarray(lines))
        found = parse_lines(key)
        if found is None or found[0] > 2 * LARGEST_OFFSET + 1:  # a key may come from a stranger's log
            raise problem
        size, named = found
        return Taps.oriented(radians_of(math.fmod(angle, 360.0) for angle in named.degrees), size, named.dilation, named.anchor)
    except (ValueError, OverflowError) as cause:
        raise problem from cause
