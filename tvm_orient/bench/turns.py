"""Timing of a bench: methods that take turns on sets of the same operands, in one state of the cache after the other."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from ..errors import last_line
from ..evaluate.machine import finish, no_collector, torch_device
from ..evaluate.timing import timed
from ..problem.device import Device
from .methods import Call, Method

_SLOW_S = {"cpu": 3.0, "cuda": 0.5}  # seconds that one method may spend in one state of the cache; slow ones get fewer calls, _MIN_CALLS at least
_MIN_CALLS = {"cpu": 5, "cuda": 3}  # timed calls of a method, however slow: a GPU's time spreads less, and is lent by the minute
_FAR = 3  # times our own time: a peer beyond that gets the fewest calls too
_LONG_S = 0.1  # seconds: a call so long pays for waking its own threads without showing it
_SETTLE_S = 0.002  # seconds between turns on a CPU: other pools of threads than the coming one stop waiting for work


class OperandSets:
    """Copies of the same operands, each made when a method first needs it in the memory format that it wants.

    Attributes:
        operands: those that are copied.
        count: sets that are used in turn where the cache is to be cold.
    """

    def __init__(self, operands: tuple[torch.Tensor, torch.Tensor], count: int) -> None:
        self.operands, self.count = operands, count
        self._by_format: dict[torch.memory_format, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def call(self, method: Method, index: int) -> tuple[Call, tuple[torch.Tensor, torch.Tensor]]:
        """Returns a method's function and the operands of a set, after giving back the memory of its last result of that set."""
        method.results.extend([None] * (index + 1 - len(method.results)))
        method.results[index] = None
        return method.calls[index % len(method.calls)], self._set(method.layout, index)

    def _set(self, layout: torch.memory_format, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sets = self._by_format.setdefault(layout, [])
        while len(sets) <= index:
            first, second = (t.clone(memory_format=layout) if t.dim() == 4 else t.clone() for t in self.operands)
            sets.append((first, second))
        return sets[index]


class Turns:
    """Times methods on a device, on the sets of operands that they share; say is told what is being done, a line at a time."""

    def __init__(self, device: Device, sets: OperandSets, say: Callable[[str], None]) -> None:
        self.device, self.sets, self.say = device, sets, say

    def time(self, methods: Sequence[Method], repeats: int, state: str) -> None:
        """Fills method.times[state], in seconds, by at most so many timed calls of each method; one that raises is failed.

        Args:
            state: of the cache: "cold" takes another set of operands for each call, "warm" always the same.
        """
        indices = itertools.cycle(range(self.sets.count if state == "cold" else 1))
        for method in methods:
            self._touch(method, indices, state)
        able = [method for method in methods if not method.failed]
        shares = {method.name: self.share(method, able, repeats) for method in able}
        order, shuffled = list(able), random.Random(0)
        with no_collector():
            for turn in range(repeats):
                self.say(f"{state}: round {turn + 1} of {repeats}")
                shuffled.shuffle(order)
                for method in order:
                    share = shares[method.name]  # of the repeats, evenly spread
                    if (turn + 1) * share // repeats > turn * share // repeats:
                        method.times[state].append(self._turn(method, next(indices), next(indices)))
        for method in able:
            method.results = []

    def share(self, method: Method, methods: Sequence[Method], repeats: int) -> int:
        """Returns how many of the repeats a method gets: few where its calls are long, or where a peer is far from us."""
        fewest = _MIN_CALLS[self.device.kind]
        ours = min((other.seconds for other in methods if other.ours), default=math.inf)
        far = not (method.ours or method.floor) and method.seconds > _FAR * ours
        return min(repeats, fewest if far else max(fewest, int(_SLOW_S[self.device.kind] / (2 * method.seconds + _SETTLE_S))))

    def _touch(self, method: Method, indices: Iterator[int], state: str) -> None:
        """Calls a method with every set, so that all memory has been touched, for a few seconds at most; sets method.seconds of a call."""
        self.say(f"{state}: {method.name}")
        spent, method.times[state] = 0.0, []
        for index in itertools.islice(indices, self.sets.count if state == "cold" else 2):
            try:
                call, operands = self.sets.call(method, index)
                start = time.perf_counter()
                method.results[index] = call(*operands)
                finish(self.device)
            except Exception as problem:  # of a peer: out of memory, say
                method.fail(f"failed: {what_failed(problem)}")
                return
            method.seconds = time.perf_counter() - start
            spent += method.seconds
            if spent > _SLOW_S[self.device.kind]:
                return

    def _turn(self, method: Method, before: int, index: int) -> float:
        """Returns the seconds of one timed call, after one that is not timed."""
        if self.device.kind == "cpu":
            time.sleep(_SETTLE_S)
        if method.seconds < _LONG_S:
            call, operands = self.sets.call(method, before)
            method.results[before] = call(*operands)
        call, operands = self.sets.call(method, index)
        seconds, method.results[index] = timed(torch_device(self.device), call, operands)
        return seconds


def what_failed(problem: BaseException) -> str:
    """Returns the kind of a problem and the last line of what it says, on one line of a table."""
    return f"{type(problem).__name__}: {last_line(problem)[:200]}"
