"""Offsets of a line of taps at an angle: the rule of rounding, in exact integers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgument
from ..notices import warn

Anchor = Literal["center", "start"]
Offset = tuple[int, int]
LARGEST_OFFSET = 2**15  # pixels
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


def angles_between(count: int) -> NDArray[np.float32]:
    """Returns pi * g / count for g < count: directions spread evenly over 180 degrees from 0, as in the published networks.

    Returns:
        float32 (count,), radians.

    Raises:
        InvalidArgument: count is no whole number >= 1.
    """
    return (np.pi * np.arange(whole_number("number of angles", count, 1)) / count).astype(np.float32)


def from_degrees(degrees: float | Sequence[float] | NDArray[Any]) -> Any:
    """Return radians, which is what theta takes, of angles in degrees; whole turns are left out.

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
    """Returns theta as float64, after a look at whether it can have been meant otherwise: as degrees, or as a number of directions.

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


def whole_number(name: str, value: Any, least: int) -> int:
    """Return the value as an int.

    Raises:
        InvalidArgument: it is no whole number, or less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise InvalidArgument(f"{name} must be a whole number >= {least}, got {value!r}")
    return int(value)
