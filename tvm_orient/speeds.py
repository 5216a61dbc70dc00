"""Measured speeds as data: the row that a bench writes, its CSV file, and the tables made of it."""

from __future__ import annotations

import csv
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from .errors import InvalidArgument

if TYPE_CHECKING:
    from rich.table import Table

TUNED, DEFAULT = "tvm_orient (tuned)", "tvm_orient (default)"
FLOORS = ("copy", "dot")
STATES = ("cold", "warm")


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
    checked: bool  #: that difference is within `tvm_orient.reference.tolerance`
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
        """Whether the method is one of this package's."""
        return self.method in (TUNED, DEFAULT)

    @property
    def floor(self) -> bool:
        """Whether the method only moves the bytes."""
        return self.method in FLOORS

    @property
    def cell(self) -> tuple[str, int]:
        """(spec key, batch): rows of one cell are compared with each other."""
        return self.spec, self.batch

    @property
    def problem(self) -> str:
        """The cell for people: conv 128x56x56 K=31 8 angles N=8."""
        count = len(self.angles.split())
        angles = "free taps" if self.angles == "free" else f"{count} angles" if count > 2 else " and ".join(f"{a}°" for a in self.angles.split())
        stride = "" if self.stride == "1" else f" stride {self.stride}"
        unusual = [word for word, usual in ((self.dtype, "float32"), (self.padding_mode, "zeros")) if word != usual]
        kind = "".join(f" {word}" for word in unusual + ["channels_last"] * ("-nhwc-" in self.spec))
        return f"{self.op} {self.channels}x{self.height}x{self.width} K={self.kernel_size} {angles}{stride}{kind} N={self.batch}"


def cells(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    """The rows by cell, in the order in which they came."""
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault(row.cell, []).append(row)
    return found


def pick(rows: Iterable[Row], state: str, *, ours: bool = False, floor: bool = False) -> Row | None:
    """The fastest row of a state of the cache among ours, floors, or else peers; None where there is none."""
    timed = [row for row in rows if row.cache == state and (row.ours, row.floor) == (ours, floor)]
    return min(timed, key=lambda row: row.median_ms or 0.0, default=None)


def losses(rows: Iterable[Row], state: str = "cold") -> list[Row]:
    """The fastest peer of each cell where it is faster than our best (vs_ours < 1), worst first."""
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
    """The rows of a file that write_csv wrote.

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


# ---- tables -------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> Table:
    """For a terminal: one block a cell, one line a method; cold times with their spread, what they mean, and warm times."""
    from rich.table import Table

    sheet = Table.grid(padding=(0, 0, 1, 0))
    for group in cells(rows).values():
        sheet.add_row(_block(group))
    return sheet


def _block(group: list[Row]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    floor = next((row.method for row in group if row.floor), "floor")
    block = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold", title=group[0].problem, title_style="bold", title_justify="left")
    for name, width in (("method", 22), ("cold ms", 8), ("spread", 6), ("warm ms", 8), ("GB/s", 6), (f"of {floor}", 7), ("vs ours", 7)):
        block.add_column(name, min_width=width, no_wrap=True, justify="left" if name == "method" else "right")
    block.add_column("result", overflow="fold")
    for method in dict.fromkeys(row.method for row in group):
        own = {row.cache: row for row in group if row.method == method}
        first = next(iter(own.values()))
        shown = own.get("cold", own.get("warm", first))
        style = "bold" if first.ours else "dim" if first.floor or shown.median_ms is None else ""
        times = [_digits(own[state].median_ms) if state in own else "" for state in STATES]
        numbers = [_digits(shown.gbps), _percent(shown.floor_ratio), _times(shown.vs_ours)]
        block.add_row(Text(method, style=style), times[0], _spread(own.get("cold")), times[1], *numbers, _result(shown))
    return block


def _result(row: Row) -> Any:
    from rich.text import Text

    if row.checked:
        return Text(f"error {row.error:.0e}" + (f", {row.note}" if row.note else ""), style="green")
    if row.note.startswith(("wrong", "failed")):
        return Text(row.note, style="red")
    return Text(row.note.partition(":")[0], style="dim")  # the reasons stand in the file


def _spread(row: Row | None) -> str:
    if row is None or not row.median_ms or row.p20_ms is None or row.p80_ms is None:
        return ""
    return f"±{50 * (row.p80_ms - row.p20_ms) / row.median_ms:.0f} %"


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _times(value: float | None) -> str:
    return "" if value is None else f"{_digits(value)}x"


def markdown(rows: Sequence[Row], state: str = "cold") -> str:
    """For a page: one line a cell with our times, what they are of the floor's speed, and the fastest peer."""
    head = ("problem", "tuned ms", "of floor", "untuned ms", "floor ms", "fastest peer", "its ms", "peer / ours")
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" + " ---: |" * 4 + " --- | ---: | ---: |"]
    for group in cells(rows).values():
        own = {row.method: row for row in group if row.cache == state}
        tuned, default = own.get(TUNED), own.get(DEFAULT)
        best, floor, peer = tuned or default, pick(group, state, floor=True), pick(group, state)
        ratio = _times(peer.vs_ours) if peer else ""
        if peer and peer.vs_ours and peer.vs_ours < 1:
            ratio = f"**{ratio}**"
        texts = [_ms(tuned), _percent(best.floor_ratio if best else None), _ms(default), _ms(floor), peer.method if peer else "none", _ms(peer), ratio]
        lines.append(f"| {' | '.join([group[0].problem, *texts])} |")
    return "\n".join(lines)


def _ms(row: Row | None) -> str:
    return _digits(row.median_ms) if row else ""
