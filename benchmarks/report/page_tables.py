"""Make the tables of docs/performance.md again, from the CSV files that scripts of `static` and `speed` wrote.

    python -m benchmarks.report.page_tables

A table stands below a comment that names it: `<!-- static sm_90a conv 31 -->` (op and K of static-sm_90a.csv), `<!-- stems sm_90a -->`,
`<!-- layers sm_90a -->`, `<!-- stages sm_90a -->`, `<!-- speeds cpu-amd-epyc-avx2-2c -->` or `<!-- summary ... -->` (a file of `speed.run`),
`<!-- generic cpu -->` (what `speed.generic` wrote), `<!-- cold cpu -->` (of `speed.cold_start`), `<!-- stage-times cpu -->` or
`<!-- problem-times cpu -->` (of `speed.compile_time`).
"""

from __future__ import annotations

import argparse
import csv
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tvm_orient.bench.rows import read_csv

from . import sheets
from .compile_tables import cold_table, problem_times, stage_times
from .sheets import RESULTS
from .speed_tables import speed_table, summary_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
_MARKED = re.compile(r"(<!-- (static|stems|layers|stages|speeds|summary|generic|cold|stage-times|problem-times) (\S+)(?: (\w+) (\d+))? -->\n\n)((?:\|.*\n)*)")

Row = dict[str, str]


def path(name: str, kind: str = "") -> Path:
    """Returns the path of static-NAME.csv, or static-KIND-NAME.csv."""
    return RESULTS / f"static-{kind and kind + '-'}{name}.csv"


def read(name: str, kind: str = "") -> list[Row]:
    """Returns the rows of that file."""
    with path(name, kind).open(newline="") as file:
        return list(csv.DictReader(file))


def _head(first: str, rows: Sequence[Row]) -> Iterator[str]:
    angles = list(dict.fromkeys(row["angle"] for row in rows))
    yield f"| {first} | " + " | ".join(f"{angle} degrees" for angle in angles) + " |"
    yield "| --- |" + " ---: |" * len(angles)


def table(rows: Sequence[Row], op: str, kernel_size: str) -> Iterator[str]:
    """Yields the lines of a table of one op and K: a row a plane; a cell is the bound in clocks, its resource, and registers."""
    here = [row for row in rows if (row["op"], row["kernel_size"]) == (op, kernel_size)]
    yield from _head("plane", here)
    for height, plane in itertools.groupby(here, key=lambda row: row["height"]):
        cells = [f"{row['clocks_' + row['bound']]} {row['bound']}, {row['registers']}" for row in plane]
        yield f"| {height}x{height} | " + " | ".join(cells) + " |"


def stem_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of the table of the stems: a cell is the clocks of all passes, and the resource that needs longest in the first."""
    yield from _head("problem", rows)
    for (layout, op, k, height), problem in itertools.groupby(rows, key=lambda row: (row["layout"], row["op"], row["kernel_size"], row["height"])):
        cells = [f"{float(row['clocks_' + row['bound']]) + float(row['clocks_second']):.1f} {row['bound']}" for row in problem]
        yield f"| {layout} `{op}`, K={k}, {height}x{height} | " + " | ".join(cells) + " |"


def layer_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the table of merged angles: clocks of all passes and the resource that needs longest in the first, and the same over one angle's mean."""
    yield "| plane | op, K | all angles | over one angle | KB of code | registers | spills | shared bytes | blocks of an SM |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        whole = float(row["clocks_" + row["bound"]]) + float(row["clocks_second"])
        shown = [row[name] for name in ("code_kb", "registers", "spills", "shared_bytes", "blocks")]
        cells = (f"{whole:.1f} {row['bound']}", f"{whole / float(row['mean_angle']):.2f}", *shown)
        yield f"| {row['height']}x{row['height']} | `{row['op']}`, K={row['kernel_size']} | " + " | ".join(cells) + " |"


def stage_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of the table of copies ahead: one tile a block, and beside it two in turn."""
    yield "| problem | template | stages | planes | registers | blocks of an SM | latency | bound |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in rows:
        problem = f"{row['height']}x{row['height']}, K={row['kernel_size']}, {row['angle']} degrees"
        cells = (row["template"], row["stages"], row["planes"], row["registers"], row["blocks"], row["clocks_latency"], f"{row['clocks_bound']} {row['bound']}")
        yield f"| {problem} | " + " | ".join(cells) + " |"


def generic_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of the table of the generic kernel: its share of the own kernel's speed, plane by plane, cold and warm, and the smallest."""
    planes = list(dict.fromkeys((row["channels"], row["height"]) for row in rows))
    yield "| op, K | calls | " + " | ".join(f"{channels}x{height}x{height}" for channels, height in planes) + " | smallest |"
    yield "| --- | --- |" + " ---: |" * (len(planes) + 1)
    for op, k, state in dict.fromkeys((row["op"], row["kernel_size"], row["state"]) for row in rows):
        here = {(row["channels"], row["height"]): float(row["share"]) for row in rows if (row["op"], row["kernel_size"], row["state"]) == (op, k, state)}
        yield f"| `{op}`, K={k} | {state} | " + " | ".join(f"{here[plane]:.2f}" for plane in planes) + f" | {min(here.values()):.2f} |"


SPEEDS = {"speeds": speed_table, "summary": summary_table}
TABLES = {"stems": stem_table, "layers": layer_table, "stages": stage_table}


# by the kind of a table: what its file is called, and what makes it
COMPILING = {"cold": ("cold-start", cold_table), "stage-times": ("compile-time", stage_times), "problem-times": ("compile-time", problem_times)}


def documented(page: str) -> str:
    """Returns the page with every marked table as its CSV file has it."""

    def made(match: re.Match[str]) -> str:
        marker, kind, name, op, kernel_size, _ = match.groups()
        if kind in SPEEDS:
            lines = SPEEDS[kind](read_csv(RESULTS / f"{name}.csv"))
        elif kind == "generic":
            lines = generic_table(sheets.read(RESULTS / f"generic-{name}.csv"))
        elif kind in COMPILING:
            start, make = COMPILING[kind]
            lines = make(sheets.read(RESULTS / f"{start}-{name}.csv"))
        else:
            lines = table(read(name), op, kernel_size) if kind == "static" else TABLES[kind](read(name, kind))
        return marker + "".join(f"{line}\n" for line in lines)

    return _MARKED.sub(made, page)


if __name__ == "__main__":
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    PAGE.write_text(documented(PAGE.read_text()))
