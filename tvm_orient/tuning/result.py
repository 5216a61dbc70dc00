"""The progress that a tuning run reports, and the outcomes and errors that it ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import EnvironmentProblem
from ..problem.spec import ConvSpec
from ..records.record import Record


@dataclass(frozen=True)
class Progress:
    """The state of a run, reported after each trial and while it waits."""

    part: ConvSpec  #: the angle that is being tuned
    position: int  #: its place among the angles, from 0
    parts: int  #: how many angles
    trial: int  #: done so far
    trials: int  #: wanted
    failed: int  #: trials that did not build or run
    best_us: float | None  #: so far
    default_us: float | None  #: of the untuned choice
    seconds: float  #: since this angle began
    seconds_left: float | None  #: until the whole run ends, estimated
    waiting: tuple[float, float] | None = None  #: (share of the cores that other work uses, seconds to wait at most) while that is waited for


@dataclass(frozen=True)
class Outcome:
    """The result of tuning one angle."""

    part: ConvSpec  #: the angle
    record: Record | None  #: None where the default won (the logs then say so) or where the times were noise
    default_us: float | None  #: of the untuned choice
    best_us: float | None  #: of the fastest candidate
    trials: int  #: done
    failed: int  #: trials that did not build or run
    resumed: int  #: trials taken from the journal of an earlier run
    seconds: float  #: spent on this angle
    stages: dict[str, float]  #: seconds spent on build, measure, verify, search
    note: str  #: why there is no record, for people
    written: Path | None = None  #: the log that a line was added to: the record, or that the default won
    journal: Path | None = None  #: of the trials
    doubt: str = ""  #: why the times could not be believed, so that nothing was written; empty where they could


class Interrupted(KeyboardInterrupt):
    """Ctrl-C was pressed during tuning; `outcomes` holds those of the angles until then, the last one as far as it came."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


class TooBusy(EnvironmentProblem):
    """Other work outlasted the wait for it; `outcomes` holds those of the angles until then."""

    def __init__(self, message: str, outcomes: list[Outcome]) -> None:
        super().__init__(message)
        self.outcomes = outcomes


Report = Callable[[Progress], None]


def in_microseconds(seconds: float | None) -> float | None:
    """Returns seconds as microseconds; None stays None."""
    return None if seconds is None else seconds * 1e6
