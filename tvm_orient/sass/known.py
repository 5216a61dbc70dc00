"""Values that are known in part: arithmetic on words of which only some lanes or bits are known."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

U32 = np.uint32
ALL_BITS = 0xFFFFFFFF


class Known(NamedTuple):
    """A value by lane (or one for all) and what is known of it: True for all lanes, a mask, or None for nothing; and which bits."""

    value: Any
    known: Any
    bits: int = 0xFFFFFFFF

    def mask(self, lanes: int) -> Any:
        """Which lanes know it."""
        return np.zeros(lanes, bool) if self.known is None else np.broadcast_to(self.known, (lanes,))


NOTHING_KNOWN = Known(None, None)


def apply_known(function: Callable[..., Any], *inputs: Known) -> Known:
    """function of values, known where every input is."""
    known: Any = True
    for one in inputs:
        if one.known is None:
            return NOTHING_KNOWN
        known = one.known if known is True else known if one.known is True else known & one.known
    return Known(function(*(one.value for one in inputs)), known)


def by_bits(function: Callable[..., Any], *inputs: Known) -> Known:
    """As `_apply` for a function of each bit by itself: a bit is known where those that are not known make no difference to it."""
    if all(one.known is not None and one.bits == ALL_BITS for one in inputs):
        return apply_known(function, *inputs)
    ways, lanes = [], next((len(one.value) for one in inputs if one.known is not None and np.ndim(one.value)), 1)
    for one in inputs:
        sure = U32(one.bits if one.known is True or (one.known is not None and np.all(one.known)) else 0)
        value = np.broadcast_to(U32(0) if one.known is None else np.asarray(one.value, U32), (lanes,)) & sure
        ways.append((value,) if sure == ALL_BITS else (value, value | ~sure))
    results = [function(*way) for way in itertools.product(*ways)]
    differ = functools.reduce(np.bitwise_or, (one ^ results[0] for one in results[1:]))
    bits = int(~np.bitwise_or.reduce(np.atleast_1d(differ)) & ALL_BITS)
    return Known(results[0] & U32(bits), True, bits) if bits else NOTHING_KNOWN
