"""Measured speeds as data: the row that a bench writes, its CSV file, and the tables made of it."""

from __future__ import annotations

import csv
import dataclasses
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import InvalidArgument
from ..problem.spec import ConvSpec

TUNED = "tvm_orient (tuned)"  # method: our kernel as a record chose it
DEFAULT = "tvm_orient (default)"  # method: our kernel without a record
FLOORS = ("copy", "dot")  # methods that only move the bytes
STATES = ("cold", "warm")  # of the cache


@dataclass(frozen=True)
class Row:
    """One method on one spec in one state of the cache. A floor moves the bytes and computes nothing."""

    spec: str  #: key
    op: str
    channels: int
    height: int
    width: int
    kernel_size: int
    angles: str  #: in degrees
    stride: str
    padding_mode: str
    dtype: str
    batch: int  #: N
    method: str  #: whose kernel
    cache: str  #: "cold" or "warm"; empty where it was not timed: note says why
    median_ms: float | None  #: milliseconds
    p20_ms: float | None  #: where the middle three fifths of the times begin
    p80_ms: float | None  #: and where they end
    gbps: float | None  #: least traffic of the spec (`tvm_orient.ConvSpec.bytes_moved`) over the median
    floor_ratio: float | None  #: the floor's time over this one, in the same state and run
    vs_ours: float | None  #: this time over our best one
    error: float | None  #: largest difference from the reference over its largest value; None for a floor
    checked: bool  #: that difference is within `tvm_orient.evaluate.tolerance.tolerance`
    note: str  #: for people
    device: str  #: slug
    hardware: str
    clocks: str
    busy: float | None  #: part of the machine's cores that others used just before; above a tenth, times on a CPU are not to be trusted
    threads: int
    torch: str
    tvm: str
    version: str
    date: str

    @property
    def ours(self) -> bool:
        """Returns whether the method is one of this package's."""
        return self.method in (TUNED, DEFAULT)

    @property
    def floor(self) -> bool:
        """Returns whether the method only moves the bytes."""
        return self.method in FLOORS

    @property
    def cell(self) -> tuple[str, int]:
        """Returns (spec key, batch): rows of one cell are compared with each other."""
        return self.spec, self.batch

    @property
    def problem(self) -> str:
        """Returns the cell for people: conv 128x56x56 K=31 8 angles N=8."""
        count = len(self.angles.split())
        angles = "free taps" if self.angles == "free" else f"{count} angles" if count > 2 else " and ".join(f"{a}°" for a in self.angles.split())
        stride = "" if self.stride == "1" else f" stride {self.stride}"
        unusual = [word for word, usual in ((self.dtype, "float32"), (self.padding_mode, "zeros")) if word != usual]
        kind = "".join(f" {word}" for word in unusual + ["channels_last"] * (ConvSpec.from_key(self.spec).layout == "nhwc"))
        return f"{self.op} {self.channels}x{self.height}x{self.width} K={self.kernel_size} {angles}{stride}{kind} N={self.batch}"


def cells(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    """Returns the rows by cell, in the order in which they came."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append(row)
    return found


def pick(rows: Iterable[Row], state: str, *, ours: bool = False, floor: bool = False) -> Row | None:
    """Returns the fastest row of a state of the cache among ours, floors, or else peers; None where there is none."""
    timed = [row for row in rows if row.cache == state and (row.ours, row.floor) == (ours, floor)]
    return min(timed, key=lambda row: row.median_ms or 0.0, default=None)


def losses(rows: Iterable[Row], state: str = "cold") -> list[Row]:
    """Returns the fastest peer of each cell where it is faster than our best (vs_ours < 1), worst first."""
    fastest = [pick(group, state) for group in cells(rows).values()]
    lost = [row for row in fastest if row is not None and row.vs_ours is not None and row.vs_ours < 1]
    return sorted(lost, key=lambda row: row.vs_ours or 0.0)


# ---- files --------------------------------------------------------------------------------------


def write_csv(rows: Iterable[Row], path: str | Path) -> None:
    """Writes a header and one line a row, in one step: readers see the old file or the whole new one.

    Raises:
        InvalidArgument: the folder of path does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidArgument(f"the folder of a table must exist, got {str(path)!r}: make {str(path.parent)!r} first")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(field.name for field in dataclasses.fields(Row))
            writer.writerows(["" if value is None else value for value in dataclasses.astuple(row)] for row in rows)
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_csv(path: str | Path) -> list[Row]:
    """Returns the rows of a file that write_csv wrote.

    Raises:
        InvalidArgument: the file cannot be read, or is no such table (the line is named).
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            return [_row(fields, path, reader.line_num) for fields in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        reason = (problem.strerror if isinstance(problem, OSError) else None) or str(problem)
        raise InvalidArgument(f"cannot read the table {path}: {reason}: give a CSV file that a bench wrote") from problem


def _row(fields: dict[str, str], path: Path, line: int) -> Row:
    try:
        if set(fields) != set(_KINDS):
            raise ValueError(f"its columns are not {', '.join(_KINDS)}")
        return Row(**{name: _value(fields[name], kind) for name, kind in _KINDS.items()})
    except (ValueError, TypeError) as problem:
        raise InvalidArgument(f"{path}, line {line}: {problem}: give a CSV file that a bench of this version wrote") from problem


def _value(text: str, kind: Any) -> Any:
    if kind is bool:
        return {"True": True, "False": False}[text] if text in ("True", "False") else _refuse(text)
    if kind in (str, int):
        return kind(text)
    return float(text) if text else None


def _refuse(text: str) -> bool:
    raise ValueError(f"must be True or False, got {text!r}")


_KINDS = get_type_hints(Row)
