"""Draw the roofline of a CSV file of `speed.run`: speed against arithmetic intensity, ours and the fastest peer, under what the machine can do.

    python -m benchmarks.report.roofline benchmarks/results/FILE.csv        writes FILE-roofline.png beside it

The slanted roof is measured: the bandwidth that the floors (a copy, a dot product) reached in the same run, their median. The flat one is the
maker's count of float32 units times the clock that was read during the run; it stands only where both are known.
"""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tvm_orient.bench.rows import DEFAULT, TUNED, Row, cells, pick, read_csv
from tvm_orient.problem.spec import ConvSpec

FLOPS_A_CLOCK = {"NVIDIA H200": 132 * 128 * 2}  # SMs, float32 lanes of each, two operations of a multiply-add
_OPS = {"conv": "o", "conv_dx": "s", "conv_dw": "^"}
_COLOURS = {"float32": "#0072b2", "bfloat16": "#d55e00", "float16": "#009e73", "float64": "#222222"}

Point = tuple[float, float, Row]  # FLOP per byte, GFLOP/s, the row


def place(row: Row) -> Point:
    """Return where a timed row lies: the operations of all K taps over the least bytes, and over its time."""
    spec = ConvSpec.from_key(row.spec)
    flops = spec.flops(row.batch)
    return flops / spec.bytes_moved(row.batch), flops / (row.median_ms or 1.0) / 1e6, row


def points(rows: Sequence[Row], state: str = "cold") -> Iterator[tuple[Point, Point | None]]:
    """Yield ours (tuned, else default) and the fastest peer of each cell."""
    for group in cells(rows).values():
        own = {row.method: row for row in group if row.cache == state and row.ours}
        ours, peer = own.get(TUNED) or own.get(DEFAULT), pick(group, state)
        if ours is not None:
            yield place(ours), place(peer) if peer is not None else None


def bandwidth(rows: Sequence[Row], state: str = "cold") -> float | None:
    """Return the GB/s that the floors reached, their median; None where none was timed."""
    found = [row.gbps for row in rows if row.floor and row.cache == state and row.gbps]
    return statistics.median(found) if found else None


def peak(rows: Sequence[Row]) -> float | None:
    """Return the GFLOP/s of float32 multiply-adds at the clock that was read; None where it or the machine is not known."""
    read = [float(found[1]) for row in rows if (found := re.match(r"sm (\d+) MHz", row.clocks)) and row.hardware in FLOPS_A_CLOCK]
    return statistics.median(read) * FLOPS_A_CLOCK[rows[0].hardware] / 1e3 if read else None


def draw(rows: Sequence[Row], path: Path) -> Path | None:
    """Return the picture of the cold times; None where nothing was timed."""
    found = list(points(rows))
    if not found:
        return None
    figure = Figure(figsize=(8, 5.5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for ours, peer in found:
        if peer is not None:
            axis.plot(*peer[:2], marker=_OPS[peer[2].op], color="#b8b8b8", markersize=4, linestyle="none", zorder=1)
        axis.plot(*ours[:2], marker=_OPS[ours[2].op], color=_COLOURS[ours[2].dtype], markersize=5, linestyle="none", alpha=0.8, zorder=2)
    low, high = (bound(place[0] for pair in found for place in pair if place is not None) for bound in (min, max))
    memory, arithmetic = bandwidth(rows), peak(rows)
    if memory:
        axis.plot([low / 2, high * 2], [low / 2 * memory, high * 2 * memory], color="#222222", linewidth=1, zorder=0)
        axis.annotate(f"floors: {memory:.0f} GB/s", (low / 2, low / 2 * memory), fontsize=8, xytext=(14, -4), textcoords="offset points")
    if arithmetic:
        axis.axhline(arithmetic, color="#222222", linewidth=1, linestyle="--", zorder=0)
        axis.annotate(f"float32 units: {arithmetic / 1e3:.0f} TFLOP/s", (low / 2, arithmetic), fontsize=8, xytext=(4, -11), textcoords="offset points")
    for name, marker in _OPS.items():
        axis.plot([], [], marker=marker, color="#222222", linestyle="none", label=name)
    for dtype in dict.fromkeys(ours[2].dtype for ours, _ in found):
        axis.plot([], [], marker="o", color=_COLOURS[dtype], linestyle="none", label=f"ours, {dtype}")
    axis.plot([], [], marker="o", color="#b8b8b8", linestyle="none", label="fastest peer")
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte of least traffic, every tap counted", ylabel="GFLOP/s")
    axis.set_title(f"{rows[0].hardware}, N={rows[0].batch}, cold cache", fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=144, metadata={"Software": None})
    return path


def main() -> None:
    """Draw the roofline of the file that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="CSV", help="what benchmarks.speed.run wrote")
    path = parser.parse_args().file
    print(draw(read_csv(path), path.with_name(f"{path.stem}-roofline.png")))


if __name__ == "__main__":
    main()
