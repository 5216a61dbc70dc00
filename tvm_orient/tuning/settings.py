"""Settings: the options of a tuning run, which are the same for all of its angles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgument
from .result import Report


@dataclass(frozen=True)
class Settings:
    """The options of a tuning run that hold for each of its angles.

    Raises:
        InvalidArgument: trials or batch is no whole number >= 1.
    """

    trials: int  #: candidates that are timed for each angle, >= 1
    batch: int  #: the N that they are timed at, >= 1
    seed: int  #: of the search and its cost model
    directory: Path  #: the folder of the logs, which also holds the journals
    report: Report | None = None  #: is told after each trial and while the run waits
    restart: bool = False  #: forget what the journals hold of these angles at this batch size

    def __post_init__(self) -> None:
        for name, value in (("trials", self.trials), ("batch", self.batch)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidArgument(f"{name} must be a whole number >= 1, got {value!r}")
