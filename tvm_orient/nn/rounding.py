"""Rounded angles: those that come back from a state dict are compared with those that went in.

A checkpoint that is cast to half precision, or averaged with its equals, brings theta a little beside what it was; at the axes, and at multiples
of 30 degrees, one bit is enough to move taps by a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

_MAX_MEAN_ERROR = 2.0**-16  # share of an angle by which a mean, or a moving average, in float32 may move it
_TYPED_STEPS = 1000  # steps in one radian of an angle that somebody typed: no more than three decimals
_EXACT = (torch.float32, torch.float64)
_HALVES = (torch.bfloat16, torch.float16)


def is_rounded(came: Sequence[float], own: Sequence[float], dtype: torch.dtype) -> bool:
    """Says whether the angles that came are the own ones: exactly, rounded to half precision or to dtype, or moved by no more than a mean moves them.

    Args:
        came, own: radians. Where they differ in number they are different angles.
        dtype: the one that they came in. Angles that were half precision once and are no longer are known by their values.
    """
    if len(came) != len(own) or list(came) == list(own):
        return len(came) == len(own)
    if any(_all_close(came, _cast(own, kind)) for kind in dict.fromkeys((torch.float32, *_HALVES, dtype))):
        return True
    return dtype in _HALVES and all(abs(b - a) <= _step(a, dtype) for b, a in zip(came, own, strict=True))


def look_rounded(came: Sequence[float], dtype: torch.dtype) -> bool:
    """Says whether angles have been through a dtype that is too coarse for them: they are in it, or have its values and were not typed so."""
    if dtype not in _EXACT:
        return True
    typed = all((value * _TYPED_STEPS).is_integer() for value in came)
    return not typed and any(_cast(came, kind) == list(came) for kind in _HALVES)


def _cast(values: Sequence[float], dtype: torch.dtype) -> list[float]:
    made: list[float] = torch.tensor(values, dtype=torch.float64, device="cpu").to(torch.float32).to(dtype).to(torch.float64).tolist()
    return made


def _all_close(came: Sequence[float], own: Sequence[float]) -> bool:
    return all(abs(b - a) <= _MAX_MEAN_ERROR * abs(a) for b, a in zip(came, own, strict=True))


def _step(value: float, dtype: torch.dtype) -> float:
    """Returns the distance of neighbours in dtype at a value: means in half precision may end on either side."""
    return torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(abs(value))) if value else 0.0
