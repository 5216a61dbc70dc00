"""Outputs that were computed elsewhere are stored where they belong."""

from __future__ import annotations

from typing import Any

from ...problem.shear import Shear
from ..names import OWN_SHARED
from .rewrite import moved


def in_place(func: Any, shear: Shear, shape: tuple[int, int]) -> Any:
    """Returns the scheduled function with OWN stored where it belongs in a plane of this shape (rows, columns).

    Raises:
        BuildFailed: no buffer of that name is in shared memory.
    """
    return moved(func, lambda buffer: buffer.name == OWN_SHARED, lambda row, column: shear.place(shape, row, column))
