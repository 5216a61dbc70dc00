"""Taps: the integer geometry of an oriented kernel, computed once, on the host.

A table of offsets (dh, dw) by channel group is the truth; an angle is one way to fill it. Two angles with the
same table are the same taps, and have the same key.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidArgument
from .notices import warn

Anchor = Literal["center", "start"]
Offset = tuple[int, int]

# from the roundest angle to the finest: the first level with a multiple that gives the table names it
_STEPS = (90.0, 45.0, 22.5, 11.25, 15.0, 5.0, 1.0, 0.5, 0.1, 0.01, 1e-3, 1e-4, 1e-5, 1e-6)
_LARGEST_OFFSET = 2**15  # pixels
_TURN = 2 * math.pi * (1 + 1e-6)  # radians: 2 pi in float32 is not more than a turn


def oriented_offsets(theta: NDArray[np.float32], kernel_size: int, dilation: int = 1, anchor: Anchor = "center") -> NDArray[np.int32]:
    """Offsets in pixels of lines at the angles theta: the one place that turns an angle into taps.

    With k = dilation * (s - K//2), or dilation * s where anchor is "start"::

        dh = trunc(-sin(theta) * k)        dw = trunc(cos(theta) * k)

    float32 theta, float64 sine and cosine rounded to float32, float32 product, truncation toward zero: the rule of the
    published kernels (Kirchmeyer & Deng, ICCV 2023, arXiv 2309.15812), bit for bit.

    Args:
        theta: float32 (G,), radians, counter-clockwise with y up. Nothing is checked here: `Taps.oriented` does that.
        kernel_size: number of taps K.
        dilation: multiplies k before truncation.
        anchor: "center" or "start".

    Returns:
        int32 (G, K, 2), last axis (dh, dw); rows grow downwards.
    """
    k = np.arange(kernel_size, dtype=np.float32) - np.float32(kernel_size // 2 if anchor == "center" else 0)
    k = k * np.float32(dilation)
    wide = theta.astype(np.float64)[:, None]
    dh = np.trunc(-np.sin(wide).astype(np.float32) * k)
    dw = np.trunc(np.cos(wide).astype(np.float32) * k)
    return np.stack([dh, dw], axis=-1).astype(np.int32)


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
        object.__setattr__(self, "key", _key(self.table))  # a plain attribute, which torch.compile can read

    @classmethod
    def oriented(cls, theta: float | Sequence[float] | NDArray[Any], kernel_size: int, dilation: int = 1, anchor: Anchor = "center") -> Taps:
        """Lines of taps at the angles theta, by the rule of `tvm_orient.taps.oriented_offsets`.

        Args:
            theta: radians, counter-clockwise with y up: a float or floats (G,), no whole numbers but 0; rounded to float32 first.
            kernel_size: K >= 1, odd where anchor is "center".
            dilation: whole number >= 1; multiplies k before truncation.
            anchor: "center" (k = s - K//2) or "start" (k = s).

        Raises:
            InvalidArgument: a rule above is broken, theta is not finite, or a tap lies beyond +-32768 pixels.
        """
        kernel_size = _whole("kernel_size", kernel_size, 1)
        dilation = _whole("dilation", dilation, 1)
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
        """Any integers (G, K, 2), last axis (dh, dw), in pixels: a line, a cross, a dilated or a thick line.

        Raises:
            InvalidArgument: not integers, not (G, K, 2), empty, or an offset beyond +-32768.
        """
        array = np.asarray(offsets)
        if array.ndim != 3 or array.shape[-1] != 2 or array.size == 0:
            raise InvalidArgument(f"offsets must have shape (G, K, 2) with G, K >= 1, got shape {array.shape}")
        if array.dtype.kind not in "iu":
            raise InvalidArgument(f"offsets must be integers (pixels), got dtype {array.dtype}: truncate them first, or use Taps.oriented")
        if int(np.abs(array.astype(np.int64)).max()) > _LARGEST_OFFSET:
            raise InvalidArgument(f"offsets must lie within +-{_LARGEST_OFFSET} pixels, got {int(np.abs(array.astype(np.int64)).max())}")
        return cls(tuple(tuple((int(h), int(w)) for h, w in group) for group in array))

    @classmethod
    def from_key(cls, key: str) -> Taps:
        """The taps that a key names; `Taps.from_key(t.key) == t`.

        Raises:
            InvalidArgument: not a key that this version writes.
        """
        return _from_key(key)

    @property
    def groups(self) -> int:
        """Number of channel groups G."""
        return len(self.table)

    @property
    def kernel_size(self) -> int:
        """Taps per group K, colliding ones included."""
        return len(self.table[0])

    @property
    def offsets(self) -> NDArray[np.int32]:
        """int32 (G, K, 2), last axis (dh, dw)."""
        return np.asarray(self.table, dtype=np.int32)

    @property
    def negated(self) -> Taps:
        """Every offset with its sign changed: with stride 1, conv_dx of these taps is conv of the negated ones (the adjoint of a shift)."""
        return Taps(tuple(tuple((-h, -w) for h, w in group) for group in self.table))

    def group(self, index: int) -> Taps:
        """The taps of one group, as a table of its own."""
        return Taps((self.table[index],))

    def distinct(self, index: int) -> dict[Offset, tuple[int, ...]]:
        """Offsets of a group in order of first use, each with the taps that land there (colliding taps share one)."""
        places: dict[Offset, list[int]] = {}
        for s, offset in enumerate(self.table[index]):
            places.setdefault(offset, []).append(s)
        return {offset: tuple(taps) for offset, taps in places.items()}

    def channel_ranges(self, channels: int) -> list[tuple[int, int]]:
        """[start, stop) of each group's channels; an empty range for a group that none of so few channels falls into."""
        groups = self.groups
        # smallest c with (G*(c+1)-1)//C >= g  is  ceil((g*C+1)/G) - 1
        edges = [min(channels, max(0, -(-(g * channels + 1) // groups) - 1)) for g in range(groups)] + [channels]
        return list(itertools.pairwise(edges))

    def for_channels(self, channels: int) -> Taps:
        """The same taps channel by channel with the fewest groups: per-channel tables collapse to contiguous groups."""
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


def angles_between(count: int) -> NDArray[np.float32]:
    """pi * g / count for g < count: directions spread evenly over 180 degrees from 0, as in the published networks.

    Returns:
        float32 (count,), radians.

    Raises:
        InvalidArgument: count is no whole number >= 1.
    """
    return (np.pi * np.arange(_whole("number of angles", count, 1)) / count).astype(np.float32)


def from_degrees(degrees: float | Sequence[float] | NDArray[Any]) -> Any:
    """Radians, which is what theta takes, of angles in degrees; whole turns are left out.

    Args:
        degrees: a finite number, or a sequence or array (G,) of them; whole numbers too.

    Returns:
        A float for a number, a list of floats for a sequence.

    Raises:
        InvalidArgument: no finite number, or no sequence of them.
    """
    try:
        values = np.asarray(degrees, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as problem:
        raise InvalidArgument(f"degrees must be a number or a sequence of numbers, got {degrees!r}: such as 45 or [0, 45, 90, 135]") from problem
    if values.ndim > 1 or not np.isfinite(values).all():
        raise InvalidArgument(f"degrees must be a finite number, or finite numbers of shape (G,), got {degrees!r}: such as 45 or [0, 45, 90, 135]")
    radians = [math.radians(math.fmod(value, 360.0)) for value in np.atleast_1d(values).tolist()]
    return radians if values.ndim else radians[0]


def in_radians(theta: Any) -> NDArray[np.float64]:
    """theta as float64, after a look at whether it can have been meant otherwise: as degrees, or as a number of directions.

    Beyond 2 pi in magnitude there is a UserWarning.

    Raises:
        InvalidArgument: no number and no numbers, or a whole number other than 0 where radians have a fraction.
    """
    try:
        values = np.asarray(theta, dtype=np.float64)
        items = np.asarray(theta, dtype=object).flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as problem:
        raise InvalidArgument(f"theta must be a number or a sequence of numbers in radians, got {theta!r}") from problem
    whole = [item for item in items if isinstance(item, bool | np.bool_) or (isinstance(item, int | np.integer) and item != 0)]
    if whole:
        number = int(whole[0])
        raise InvalidArgument(
            f"theta is in radians and takes floats, got the whole number {whole[0]!r}: directions={number} for that many directions (OrientedConv2d), "
            f"tvm_orient.from_degrees({number}) for degrees, or {float(number)} for radians"
        )
    far = values[np.isfinite(values) & (np.abs(values) > _TURN)]
    if far.size:
        warn(
            f"theta is in radians, and {far[0]:g} is more than a whole turn (2 pi): for degrees write theta=tvm_orient.from_degrees({far[0]:g}); "
            "to leave this warning out, subtract the turns"
        )
    return values


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidArgument(f"{name} must be a whole number >= {least}, got {value!r}")
    return int(value)


# ---- keys ---------------------------------------------------------------------------------------


def _name_degrees(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _radians(degrees: Iterable[float]) -> NDArray[np.float32]:
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
    """The roundest angle in degrees, [0, 360), whose table is this line; None where there is none."""
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
        arcs = [arc for arc in arcs if np.array_equal(oriented_offsets(_radians([sum(arc) / 2]), size, dilation, anchor)[0], wanted)]
    for step in _STEPS:
        found = []
        for start, stop in arcs:
            found += [round(m * step, 6) for m in range(math.ceil(start / step), math.floor(stop / step) + 1)]
        degrees = sorted({d for d in found if 0 <= d < 360})
        if degrees:
            tables = oriented_offsets(_radians(degrees), size, dilation, anchor)
            for degree, table in zip(degrees, tables, strict=True):
                if np.array_equal(table, wanted):
                    return degree
    return None


@functools.lru_cache(maxsize=4096)
def _key(table: tuple[tuple[Offset, ...], ...]) -> str:
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
                return f"k{size}{spread}{flag}a" + "_".join(_name_degrees(lines[line] or 0.0) for line in table)
    return "t" + "_".join(".".join(f"{h}.{w}" for h, w in line) for line in table)


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
        head, _, angles = key.partition("a")
        anchor: Anchor = "start" if head.endswith("s") else "center"
        size, _, dilation = head.removesuffix("s").removeprefix("k").partition("d")
        if not head.startswith("k") or not angles:
            raise problem
        if int(size) > 2 * _LARGEST_OFFSET + 1:  # a key may come from a stranger's log
            raise problem
        return Taps.oriented(_radians(math.fmod(float(a), 360.0) for a in angles.split("_")), int(size), int(dilation or 1), anchor)
    except (ValueError, OverflowError) as cause:
        raise problem from cause
