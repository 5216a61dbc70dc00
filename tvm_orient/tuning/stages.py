"""Stages: how long a tuning run builds, measures, verifies and searches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stages:
    """A clock for one angle of a run, with a hand for each stage of the work; it starts when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._seconds = {"build": 0.0, "measure": 0.0, "verify": 0.0}

    @property
    def total(self) -> float:
        """The seconds since the clock was started."""
        return time.perf_counter() - self._start

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Adds the time until the context is left to a stage: "build", "measure" or "verify"."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - start

    def shares(self, total: float) -> dict[str, float]:
        """Returns the seconds of each stage, where "search" has what the others leave of a total in seconds."""
        return {**self._seconds, "search": total - sum(self._seconds.values())}
