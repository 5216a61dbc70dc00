"""Draw a CSV file of `speed.run`: how near to the speed of moving the bytes each cell comes, ours and the fastest peer.

python -m benchmarks.report.plot benchmarks/results/FILE.csv            writes FILE.png beside it, prints the table for a page
"""

from __future__ import annotations

import argparse
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tvm_orient.bench.rows import DEFAULT, TUNED, Row, cells, pick, read_csv
from tvm_orient.bench.tables import markdown

_MAX_CELLS = 60  # cells of one picture, unless more are of several angles
_SERIES = (("tuned", "#0072b2"), ("untuned", "#8fc1e3"), ("fastest peer", "#b8b8b8"))


def draw(rows: list[Row], path: Path) -> Path:
    """Draws a panel an op, a group of bars a cell: percent of the floor's speed, cold; of a large table the cells of several angles alone."""
    groups = [group for group in cells(rows).values() if pick(group, "cold", floor=True)]
    if len(groups) > _MAX_CELLS:
        groups = [group for group in groups if " " in group[0].angles] or groups[:_MAX_CELLS]
    ops = list(dict.fromkeys(group[0].op for group in groups))
    most = max(sum(group[0].op == op for group in groups) for op in ops)
    figure = Figure(figsize=(9, 0.5 * most * len(ops) + 1.0 * len(ops)), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    for axis, op in zip(figure.subplots(len(ops), 1, squeeze=False)[:, 0], ops, strict=True):
        panel(axis, op, [group for group in groups if group[0].op == op])
    figure.axes[0].legend(loc="lower right", fontsize=8, frameon=False, ncols=3, bbox_to_anchor=(1, 1))
    figure.suptitle(f"{groups[0][0].hardware}, N={groups[0][0].batch}, cold cache", fontsize=10, x=0.01, ha="left")
    figure.savefig(path, dpi=144, metadata={"Software": None})
    return path


def panel(axis, op: str, groups: list[list[Row]]) -> None:  # type: ignore[no-untyped-def]
    """Bars of one op; the line at 100 % is the floor."""
    widest = 100.0
    for index, group in enumerate(groups):
        own = {row.method: row for row in group if row.cache == "cold"}
        found = (own.get(TUNED), own.get(DEFAULT), pick(group, "cold"))
        for place, ((label, colour), row) in enumerate(zip(_SERIES, found, strict=True)):
            percent = 100 * row.floor_ratio if row is not None and row.floor_ratio else 0.0
            widest = max(widest, percent)
            axis.barh(index + 0.27 * (place - 1), percent, height=0.25, color=colour, label=label if index == 0 else None)
            if percent:
                name = f"  {row.method}" if place == 2 and row is not None else ""
                axis.annotate(
                    f"{percent:.0f} %{name}", (percent, index + 0.27 * (place - 1)), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5
                )
    floor = pick(groups[0], "cold", floor=True)
    axis.axvline(100, color="#d55e00", linewidth=1)
    axis.set_yticks(range(len(groups)), [group[0].problem.partition(" ")[2].rpartition(" N=")[0] for group in groups], fontsize=7.5)
    axis.set(ylim=(len(groups) - 0.5, -0.5), xlim=(0, 1.25 * widest))
    axis.set_xlabel(f"{op}: percent of the speed of {'a copy' if floor and floor.method == 'copy' else 'a dot product'} of the same bytes", fontsize=8.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Print the table of the file that the command line names, and draw it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="CSV", help="what benchmarks.speed.run wrote")
    path = parser.parse_args().file
    rows = read_csv(path)
    print(markdown(rows))
    print(draw(rows, path.with_suffix(".png")))


if __name__ == "__main__":
    main()
