"""Make the tables of a page that sum up the CSV files of `speed.compile_time` and `speed.cold_start`; `page_tables` puts them there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

Row = dict[str, str]
_APART = "apart"
_MERGED = "merged"
_TOTAL = "total"
_PASS = "pass "
_MIN_SHARE = 0.005  # of the whole: a stage that takes less in each column has no line


def cold_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the table of cold starts: a line for what was measured, a column for each network, in seconds."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    found = {(row["what"], row["network"]): float(row["seconds"]) for row in rows}
    yield f"| seconds | {' | '.join(networks)} |"
    yield "| --- |" + " ---: |" * len(networks)
    for what in dict.fromkeys(row["what"] for row in rows):
        texts = [f"{found[what, network]:.3g}" if (what, network) in found else "" for network in networks]
        yield f"| {what} | {' | '.join(texts)} |"


def stage_times(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the table of stages: mean seconds of one angle and of a layer of eight, its angles apart and merged, over all problems of the file."""
    yield "| stage | one angle, s | eight apart, s | share | eight merged, s | merged over apart |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    one, apart, merged = (_means(rows, several, how) for several, how in ((False, _APART), (True, _APART), (True, _MERGED)))
    columns = (one, apart, merged)
    for stage in sorted(set(apart) | set(merged), key=lambda stage: -apart.get(stage, 0.0)):
        if all(column.get(stage, 0.0) < _MIN_SHARE * column.get(_TOTAL, 0.0) for column in columns):
            continue
        name = f"`{stage.removeprefix(_PASS)}`" if stage.startswith(_PASS) else stage
        share = f"{100 * apart[stage] / apart[_TOTAL]:.0f} %" if stage in apart else ""
        ratio = f"{merged[stage] / apart[stage]:.2f}" if apart.get(stage) and stage in merged else ""
        shown = [f"{column[stage]:.3f}" if stage in column else "" for column in columns]
        yield f"| {name} | {shown[0]} | {shown[1]} | {share} | {shown[2]} | {ratio} |"


def problem_times(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the table of problems: seconds of all stages, and instructions, of one angle on average and of a layer of eight, apart and merged."""
    yield "| problem | one angle, s | eight apart, s | eight merged, s | merged over apart | instructions, apart | merged |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    totals = [row for row in rows if row["stage"] == _TOTAL]
    for op, height, size in dict.fromkeys((row["op"], row["height"], row["kernel_size"]) for row in totals):
        here = [row for row in totals if (row["op"], row["height"], row["kernel_size"]) == (op, height, size)]
        alone = fmean(float(row["seconds"]) for row in here if not _several(row))
        apart, merged = (next(row for row in here if _several(row) and row["how"] == how) for how in (_APART, _MERGED))
        times = [float(apart["seconds"]), float(merged["seconds"])]
        cells = [f"{alone:.2f}", *(f"{value:.2f}" for value in times), f"{times[1] / times[0]:.2f}", apart["instructions"], merged["instructions"]]
        yield f"| `{op}`, K={size}, {height}x{height} | {' | '.join(cells)} |"


def _several(row: Row) -> bool:
    return " " in row["angles"]


def _means(rows: Sequence[Row], several: bool, how: str) -> dict[str, float]:
    """Returns the mean seconds of each stage over the problems of one angle, or of several, that were so compiled.

    A pass that is among the longest of some problems only counts as itself there, and among the other passes elsewhere.
    """
    here = [row for row in rows if _several(row) == several and row["how"] == how]
    problems = sum(row["stage"] == _TOTAL for row in here)
    sums: dict[str, float] = {}
    for row in here:
        sums[row["stage"]] = sums.get(row["stage"], 0.0) + float(row["seconds"])
    return {stage: value / problems for stage, value in sums.items()}
