"""The tables of docs/performance.md that show what `static.py` wrote, made again from its CSV files.

    python benchmarks/static_tables.py

A table stands below a comment that names it: `<!-- static sm_90a conv 31 -->` (op and K of static-sm_90a.csv), `<!-- stems sm_90a -->`.
"""

from __future__ import annotations

import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
_MARKED = re.compile(r"(<!-- (static|stems) (\S+)(?: (\w+) (\d+))? -->\n\n)((?:\|.*\n)*)")

Row = dict[str, str]


def read(name: str, stems: bool = False) -> list[Row]:
    """Rows of static-NAME.csv, or of static-stems-NAME.csv."""
    with (RESULTS / f"static-{'stems-' * stems}{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _head(first: str, rows: Sequence[Row]) -> Iterator[str]:
    angles = list(dict.fromkeys(row["angle"] for row in rows))
    yield f"| {first} | " + " | ".join(f"{angle} degrees" for angle in angles) + " |"
    yield "| --- |" + " ---: |" * len(angles)


def table(rows: Sequence[Row], op: str, kernel_size: str) -> Iterator[str]:
    """Lines of a table of one op and K: a row a plane; a cell is the bound in clocks, its resource, and registers."""
    here = [row for row in rows if (row["op"], row["kernel_size"]) == (op, kernel_size)]
    yield from _head("plane", here)
    for height, plane in itertools.groupby(here, key=lambda row: row["height"]):
        cells = [f"{row['clocks_' + row['bound']]} {row['bound']}, {row['registers']}" for row in plane]
        yield f"| {height}x{height} | " + " | ".join(cells) + " |"


def stem_table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of the table of the stems: a cell is the clocks of all passes, and the resource that needs longest in the first."""
    yield from _head("problem", rows)
    for (layout, op, k, height), problem in itertools.groupby(rows, key=lambda row: (row["layout"], row["op"], row["kernel_size"], row["height"])):
        cells = [f"{float(row['clocks_' + row['bound']]) + float(row['clocks_second']):.1f} {row['bound']}" for row in problem]
        yield f"| {layout} `{op}`, K={k}, {height}x{height} | " + " | ".join(cells) + " |"


def documented(page: str) -> str:
    """The page with every marked table as its CSV file has it."""

    def made(match: re.Match[str]) -> str:
        marker, kind, name, op, kernel_size, _ = match.groups()
        lines = stem_table(read(name, stems=True)) if kind == "stems" else table(read(name), op, kernel_size)
        return marker + "".join(f"{line}\n" for line in lines)

    return _MARKED.sub(made, page)


if __name__ == "__main__":
    PAGE.write_text(documented(PAGE.read_text()))
