"""How long a call takes, by one clock and one meaning of cold: what tuning ranks by is what the bench reports.

Cold: each call has a set of operands, and a place for its result, that no call has had since so many bytes were used that the last-level cache held none of
them. So sets of operands take turns, all of them together twice as large as that cache. Memory bounds how many there are: MAX_BYTES of them on a device of a
kind, and MAX_SETS; where a single set is larger than that, two take turns, and each is larger than any cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from ..problem.device import Device
from .machine import last_level_cache, no_collector

COLD_CACHES = 2  # last-level caches that the sets of operands which take turns are as large as together, at the least
MAX_BYTES = {"cpu": 10**9, "cuda": 8 * 10**9}  # bytes of operands that take turns, unless two sets take more
MAX_SETS = 4096  # sets of operands: making more of them takes longer than timing
_QUEUE_CYCLES = 1_000_000  # clocks of a GPU, about half a millisecond: it waits so long before a timed call that the host has queued all of it
_TARGET_S = 0.03  # seconds of timed calls that one measurement is made of
_MIN_CALLS = 5  # timed calls of a measurement, however long they take
_MAX_CALLS = 200  # timed calls of a measurement, however short they are
_TRIED = 3  # calls that the number of the others is found by
_LOW = 0.2  # the share of the calls below which the spread begins
_HIGH = 0.8  # the share of the calls below which it ends
Result = TypeVar("Result")


def sets_in_turn(size: int, device: Device) -> int:
    """Returns how many sets of operands take turns on a device, so that each call is cold: two at the least.

    Args:
        size: bytes of one set, with the place for its result.
    """
    enough = -(-COLD_CACHES * last_level_cache(device) // max(1, size)) + 1
    return max(2, min(enough, MAX_SETS, MAX_BYTES[device.kind] // max(1, size)))


def timed(where: torch.device, call: Callable[..., Result], operands: Sequence[object]) -> tuple[float, Result]:
    """Returns the seconds of one call, and its result.

    On a GPU they are those between two events around a call that was queued while the GPU waited: what the host does is no part of them.
    """
    if where.type != "cuda":
        begin = time.perf_counter()
        result = call(*operands)
        return time.perf_counter() - begin, result
    with torch.cuda.device(where):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(_QUEUE_CYCLES)
        start.record()
        result = call(*operands)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3, result


def measured(where: torch.device, call: Callable[..., object], turns: Iterator[Sequence[object]]) -> tuple[float, float]:
    """Returns the median of the seconds that calls take, and half the distance from their 20th to their 80th percentile.

    Args:
        turns: sets of operands without end; each call takes the next one.
    """
    with no_collector():
        timed(where, call, next(turns))
        once = min(timed(where, call, next(turns))[0] for _ in range(_TRIED))
        count = max(_MIN_CALLS, min(_MAX_CALLS, int(_TARGET_S / max(once, 1e-6))))
        times = sorted(timed(where, call, next(turns))[0] for _ in range(count))
    return times[count // 2], (times[int(count * _HIGH)] - times[int(count * _LOW)]) / 2
