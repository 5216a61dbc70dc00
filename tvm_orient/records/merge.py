"""Records brought together: the best of each problem, in one order."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .record import Record, in_order, ranked
from .store import read


def merge(files: Iterable[Path]) -> list[Record]:
    """Returns the best record of each identity in these files, sorted by identity: commutative, associative, idempotent.

    Raises:
        LogFileError: a file cannot be read as a whole.
    """
    worst_first = reversed(ranked(record for file in files for record in read(file).records))
    return in_order({record.identity: record for record in worst_first}.values())


def prune(records: Iterable[Record]) -> list[Record]:
    """Returns the single best record of each (spec, device), sorted by identity."""
    return in_order({(record.spec, record.device): record for record in reversed(ranked(records))}.values())
