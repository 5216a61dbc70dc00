"""Values that are known in part: arithmetic on words of which only some lanes or some bits are known."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

U32 = np.uint32
ALL_BITS = 0xFFFFFFFF  # mask of a word of which every bit is known


class Known(NamedTuple):
    """A value of every lane, and how much of it is known.

    Attributes:
        value: (lanes,) uint32 or bool, or one such scalar that all lanes share; None where nothing is known.
        known: True where all lanes know it, (lanes,) bool for those that do, None for no lane.
        bits: mask of the bits that are known, the same for all lanes; ALL_BITS but for registers that keep predicates in single bits.
    """

    value: Any
    known: Any
    bits: int = ALL_BITS

    def mask(self, lanes: int) -> Any:
        """Return (lanes,) bool: the lanes whose value is known."""
        return np.zeros(lanes, bool) if self.known is None else np.broadcast_to(self.known, (lanes,))


NOTHING_KNOWN = Known(None, None)


def apply_known(function: Callable[..., Any], *inputs: Known) -> Known:
    """Return function of the values of the inputs; a lane knows the result where it knows every input."""
    known: Any = True
    for one in inputs:
        if one.known is None:
            return NOTHING_KNOWN
        known = one.known if known is True else known if one.known is True else known & one.known
    return Known(function(*(one.value for one in inputs)), known)


def by_bits(function: Callable[..., Any], *inputs: Known) -> Known:
    """Return a bitwise function of the inputs, as `apply_known` does; a bit is known where no unknown bit of an input could change it.

    The function must compute each bit from the same bit of its inputs alone.
    """
    if all(one.known is not None and one.bits == ALL_BITS for one in inputs):
        return apply_known(function, *inputs)
    extremes, lanes = [], next((len(one.value) for one in inputs if one.known is not None and np.ndim(one.value)), 1)
    for one in inputs:
        sure = U32(one.bits if one.known is True or (one.known is not None and np.all(one.known)) else 0)
        value = np.broadcast_to(U32(0) if one.known is None else np.asarray(one.value, U32), (lanes,)) & sure
        extremes.append((value,) if sure == ALL_BITS else (value, value | ~sure))  # every unknown bit once as 0 and once as 1
    results = [function(*choice) for choice in itertools.product(*extremes)]
    differ = functools.reduce(np.bitwise_or, (one ^ results[0] for one in results[1:]))
    bits = int(~np.bitwise_or.reduce(np.atleast_1d(differ)) & ALL_BITS)
    return Known(results[0] & U32(bits), True, bits) if bits else NOTHING_KNOWN
