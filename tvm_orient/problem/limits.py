"""Limits of tensors: how many elements a kernel can address."""

from __future__ import annotations

from ..errors import Unsupported
from .spec import LIMIT


def countable(elements: int) -> None:
    """Check the number of elements of a tensor, before anything of it is copied.

    Raises:
        Unsupported: 2**31 elements or more.
    """
    if elements > LIMIT:
        raise Unsupported(f"a tensor must have at most {LIMIT} elements (kernels index with 32 bits), got {elements}: split the batch")
