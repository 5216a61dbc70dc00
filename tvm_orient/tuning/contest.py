"""The last comparison of a tuning run: a copy, the default and the winner are timed in turn, and their times are doubted."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..problem.spec import ConvSpec
from ..records.plausible import impossible
from .runner import Runner

RUNS = 5  # times that each is timed, in turn
_TICK_S = 2e-6  # seconds by which times differ through a call and a clock alone
_MAX_SPREAD = 0.3  # share of the median by which the second longest run may exceed the second shortest
_MAX_DISAGREEMENT = 1.5  # ratio by which a trial and the comparison may differ
Kernel = tuple[Path, tuple[int, int] | None]  # library, workspace


@dataclass(frozen=True)
class Result:
    """The seconds that a copy of the same bytes (floor), the default (base) and the winner (best) took: medians of RUNS rounds."""

    floor: float
    base: float
    best: float
    spread: float  #: of the runs inside the winner's turns
    gains: tuple[float, ...]  #: default over winner, round by round, ascending
    doubt: str  #: why these numbers are noise; empty where they can be believed

    @property
    def times(self) -> tuple[float, float, float, float]:
        """Winner, its spread, default and copy, as a record has them."""
        return self.best, self.spread, self.base, self.floor

    def won(self, margin: float) -> bool:
        """Says whether the winner beats the default by this share, and is no slower in all rounds but one."""
        least = 1 / (1 - margin)
        return statistics.median(self.gains) >= least and self.gains[1] >= min(1.0, least)


def contest(spec: ConvSpec, batch: int, worker: Runner, default: Kernel, winner: Kernel) -> Result | None:
    """Times both kernels of a single-group spec, and a copy beside them, in turn; None where one does not run.

    The default may be the winner: then it is timed once a round.

    Raises:
        TuningFailed: the copy does not run.
    """
    copies, bases, bests, spreads = [], [], [], []
    for _ in range(RUNS):
        copies.append(worker.copy_seconds(spec.bytes_moved(batch)))
        base = worker.time(spec, batch, *default)
        best = base if winner == default else worker.time(spec, batch, *winner)
        if base.median is None or best.median is None:
            return None
        bases.append(base.median)
        bests.append(best.median)
        spreads.append(best.spread)
    gains = tuple(sorted(base / best for base, best in zip(bases, bests, strict=True)))
    floor, base_s, best_s = (statistics.median(runs) for runs in (copies, bases, bests))
    doubt = _unsteady({"the copy": copies, "the default": bases, "the winner": bests}) or ""
    for name, seconds in (("the default", base_s), ("the winner", best_s)):
        if not doubt and (why := impossible(spec, batch, seconds * 1e6, floor * 1e6)):
            doubt = f"{name}: {why}"
    if not doubt and base_s > _TICK_S and _apart(gains):
        doubt = f"the winner was {gains[0]:.2f} to {gains[-1]:.2f} times as fast as the default in {RUNS} turns"
    return Result(floor, base_s, best_s, statistics.median(spreads), gains, doubt)


def _apart(runs: Sequence[float], least: float = 0.0) -> bool:
    ordered = sorted(runs)
    return ordered[-2] - ordered[1] > max(least, _MAX_SPREAD * statistics.median(ordered))


def _unsteady(series: dict[str, list[float]]) -> str | None:
    for name, runs in series.items():
        if _apart(runs, _TICK_S):
            return f"{name} took {min(runs) * 1e6:.4g} to {max(runs) * 1e6:.4g} us in {RUNS} turns"
    return None


def noise(name: str, trial: float | None, compared: float) -> str:
    """Says that a trial of the search and the comparison, both in seconds, differ too far for the search to have chosen well; "" where they agree."""
    if trial is None or max(trial, compared) <= _MAX_DISAGREEMENT * min(trial, compared):
        return ""
    times = f"{trial * 1e6:.4g} us in the search and {compared * 1e6:.4g} us in the last comparison"
    return f"{name} took {times}, so the trials were noise: measure them anew (--restart)"
