"""Compare CSV files of `speed.run` with the targets: a line a target, pass or miss, and the cell that decides it.

    python -m benchmarks.report.targets benchmarks/results/nvidia-h200.csv           (any number of files: a later one replaces cells of an earlier one)
    python -m benchmarks.report.targets --any FILE.csv                                problems of other sizes and batches too, such as a CPU's

Cold cache. Ours is the tuned kernel, or the default where no record answers. A target that holds in every cell measured so far is open
until all of its cells are there; one that a single cell breaks is missed. With --strict the exit status is 1 where one is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from tvm_orient.bench.grids import EIGHT
from tvm_orient.bench.peers.published import NAME as PUBLISHED
from tvm_orient.bench.rows import DEFAULT, TUNED, Row, cells, pick, read_csv
from tvm_orient.errors import OrientError

from .terminal import say

SIDES = (14, 28, 56)  # pixels of a square plane
CHANNELS = 512
BATCH = 64  # images
KERNEL_SIZES = (7, 31)  # taps
OPS = ("conv", "conv_dx", "conv_dw")
DTYPES = ("float32", "bfloat16", "float16")
ALL = " ".join(f"{angle:g}" for angle in EIGHT)
ALONE = tuple(f"{angle:g}" for angle in EIGHT)
# by K; the floor over ours: y.copy_(x) for conv and conv_dx, torch.dot(x, dy) for conv_dw
FLOOR = {
    **{(op, dtype): goals for op in ("conv", "conv_dx") for dtype, goals in (("float32", {7: 0.92, 31: 0.85}), ("half", {7: 0.85, 31: 0.60}))},
    ("conv_dw", "float32"): {7: 0.85, 31: 0.75},
}
EVEN = {7: 1.08, 31: 1.15}  # the slowest angle alone over the fastest
TOGETHER = {7: 1.03, 31: 1.05}  # eight angles in one call over the mean of each alone
INCUMBENT = {7: 1.6, 31: 5.0}  # the published specialised kernel's time over ours

Cell = list[Row]


@dataclass(frozen=True)
class Line:
    """One target of one op, dtype and K: worst is the value that is nearest to breaking it, or breaks it most, where names its cell."""

    op: str
    dtype: str
    kernel_size: int
    what: str
    target: float
    least: bool  # the target is a lower bound
    values: tuple[tuple[float, str], ...]
    wanted: int
    broken: tuple[str, ...] = ()

    @property
    def worst(self) -> tuple[float, str] | None:
        """Return (value, cell) that decides; None where nothing was measured."""
        return (min if self.least else max)(self.values, default=None)

    @property
    def verdict(self) -> str:
        """Return pass, miss, open (holds so far, cells are missing) or none (nothing measured)."""
        if self.broken or (self.worst and (self.worst[0] < self.target if self.least else self.worst[0] > self.target)):
            return "miss"
        return "none" if self.worst is None else "pass" if len(self.values) >= self.wanted else "open"


def served(cell: Cell) -> Row | None:
    """Return what a caller gets in this cell, cold: the tuned kernel, else the default; None where neither was timed."""
    own = {row.method: row for row in cell if row.cache == "cold" and row.ours}
    return own.get(TUNED) or own.get(DEFAULT)


def lines(rows: Iterable[Row], anywhere: bool = False) -> list[Line]:
    """Return every target, in the order of its tables; anywhere: also on planes, channels and batches that the targets do not name."""
    found: list[Line] = []
    groups = [cell for cell in cells(rows).values() if belongs(cell[0], anywhere)]
    for dtype in DTYPES:
        for op in OPS:
            for kernel_size in KERNEL_SIZES:
                mine = [cell for cell in groups if (cell[0].dtype, cell[0].op, cell[0].kernel_size) == (dtype, op, kernel_size)]
                found += of_one(mine, op, dtype, kernel_size)
    return found


def belongs(row: Row, anywhere: bool) -> bool:
    """Return whether a row's problem is one that the targets are about."""
    sized = anywhere or (row.channels == CHANNELS and row.height == row.width and row.height in SIDES and row.batch == BATCH)
    return sized and row.stride == "1" and row.padding_mode == "zeros" and row.kernel_size in KERNEL_SIZES and (row.angles == ALL or row.angles in ALONE)


def of_one(group: Sequence[Cell], op: str, dtype: str, kernel_size: int) -> Iterator[Line]:
    """Yield the targets of one op, dtype and K."""
    ours = {cell[0].cell: row for cell in group if (row := served(cell)) is not None}
    wrong = tuple(f"{row.problem}: {row.note}" for cell in group for row in cell if row.ours and row.note.startswith(("wrong", "failed")))
    each = len(SIDES) * (1 + len(ALONE))
    half = "float32" if dtype == "float32" else "half"
    if (op, half) in FLOOR:
        floor = "dot" if op == "conv_dw" else "copy"
        values = tuple((row.floor_ratio, row.problem) for row in ours.values() if row.floor_ratio is not None)
        yield Line(op, dtype, kernel_size, f"{floor} / ours", FLOOR[op, half][kernel_size], True, values, each, wrong)
    even, together = tuple(evenness(ours.values())), tuple(merging(ours.values()))
    yield Line(op, dtype, kernel_size, "slowest angle / fastest", EVEN[kernel_size], False, even, len(SIDES))
    yield Line(op, dtype, kernel_size, "eight angles / mean alone", TOGETHER[kernel_size], False, together, len(SIDES))
    rivals = [(cell, peer) for cell in group if (peer := pick(cell, "cold")) is not None and cell[0].cell in ours]
    values = tuple((ratio(peer, ours[cell[0].cell]), f"{peer.problem}: {peer.method}") for cell, peer in rivals)
    yield Line(op, dtype, kernel_size, "fastest peer / ours", 1.0, True, values, each, () if (op, half) in FLOOR else wrong)
    old = [(row, ours[row.cell]) for cell in group for row in cell if row.method == PUBLISHED and row.cache == "cold" and row.cell in ours]
    if dtype == "float32":  # the published kernel knows no other
        values = tuple((ratio(row, mine), row.problem) for row, mine in old)
        yield Line(op, dtype, kernel_size, "published kernel / ours", INCUMBENT[kernel_size], True, values, each)


def ratio(row: Row, other: Row) -> float:
    """Return a time over another."""
    return (row.median_ms or 0.0) / (other.median_ms or 1.0)


def by_plane(ours: Iterable[Row]) -> dict[tuple[int, int, int, int], dict[str, Row]]:
    """Return our rows by (channels, height, width, batch), then by angles."""
    planes: dict[tuple[int, int, int, int], dict[str, Row]] = {}
    for row in ours:
        planes.setdefault((row.channels, row.height, row.width, row.batch), {})[row.angles] = row
    return planes


def alone_of(rows: Mapping[str, Row]) -> dict[str, Row]:
    """Return the rows of each angle alone, of a plane's by angles; an angle that was not measured is stood for by its mirror image, which has the same work."""
    found = {angle: rows.get(angle) or rows.get(f"{(180 - float(angle)) % 180:g}") for angle in ALONE}
    return {angle: row for angle, row in found.items() if row is not None}


def evenness(ours: Iterable[Row]) -> Iterator[tuple[float, str]]:
    """Yield the slowest single angle over the fastest, of each plane; a plane that lacks angles counts only with what breaks the target already."""
    for rows in by_plane(ours).values():
        alone = sorted(alone_of(rows).values(), key=lambda row: row.median_ms or 0.0)
        if len(alone) < 2:
            continue
        value = ratio(alone[-1], alone[0])
        if len(alone) == len(ALONE) or value > EVEN[alone[0].kernel_size]:
            yield value, f"{alone[-1].problem} against {alone[0].angles}°"


def merging(ours: Iterable[Row]) -> Iterator[tuple[float, str]]:
    """Yield eight angles in one call over the mean of the eight alone, of each plane."""
    for rows in by_plane(ours).values():
        alone = [row.median_ms or 0.0 for row in alone_of(rows).values()]
        if ALL in rows and len(alone) == len(ALONE):
            yield (rows[ALL].median_ms or 0.0) / (sum(alone) / len(alone)), rows[ALL].problem


def report(found: Sequence[Line]) -> list[str]:
    """Return a Markdown table of the lines that have something to say, and what they come to."""
    text = ["| op | dtype | K | measure | target | worst | where | cells | verdict |", "| --- | --- | ---: | --- | ---: | ---: | --- | ---: | --- |"]
    for line in found:
        if line.worst is None and not line.broken:
            continue
        value, where = line.worst or (float("nan"), "")
        where = line.broken[0] if line.broken else where
        sign = ">=" if line.least else "<="
        goal = f"{sign} {line.target:g}" if line.what != "fastest peer / ours" else "> 1"
        numbers = f"{goal} | {value:.3f} | {where} | {len(line.values)}/{line.wanted}"
        text.append(f"| {line.op} | {line.dtype} | {line.kernel_size} | {line.what} | {numbers} | {line.verdict} |")
    counts = {verdict: sum(line.verdict == verdict for line in found) for verdict in ("pass", "miss", "open", "none")}
    text += ["", f"{counts['pass']} pass, {counts['miss']} missed, {counts['open']} hold so far with cells missing, {counts['none']} not measured"]
    return text


def notes(rows: Sequence[Row], anywhere: bool) -> list[str]:
    """Say what the table leaves out: problems beside it, and peers that gave no time."""
    beside = [cell for cell in cells(rows).values() if not belongs(cell[0], anywhere)]
    text = []
    if met := [(peer, mine) for cell in beside if (mine := served(cell)) and (peer := pick(cell, "cold"))]:
        lost = [(ratio(peer, mine), peer) for peer, mine in met if ratio(peer, mine) < 1]
        text.append(f"other problems: ours is the fastest in {len(met) - len(lost)} of {len(met)} cells with a peer")
        text += [f"  {peer.problem}: {peer.method} takes {value:.3f} of our time" for value, peer in sorted(lost, key=lambda pair: pair[0])]
    if shares := [(mine.floor_ratio, mine.problem) for cell in beside if (mine := served(cell)) and mine.floor_ratio]:
        text.append("other problems, of the floor's speed: least {:.2f} ({}), ".format(*min(shares)) + f"median {sorted(shares)[len(shares) // 2][0]:.2f}")
    silent: dict[str, int] = {}
    for row in rows:
        if not row.ours and row.note.startswith(("wrong", "failed")):
            kind = f"{row.method}: {row.note.partition(':')[0]}"
            silent[kind] = silent.get(kind, 0) + 1
    text += [f"peers without a time: {', '.join(f'{kind} in {count} cells' for kind, count in silent.items())}"] if silent else []
    busy = [row.busy for row in rows if row.busy is not None and row.busy > 0.1]
    return text + ([f"warning: others kept up to {max(busy):.0%} of the cores busy"] if busy else [])


def joined(paths: Iterable[Path]) -> list[Row]:
    """Return the rows of several files; a cell of a later one replaces that of an earlier one."""
    found: dict[tuple[str, int], Cell] = {}
    for path in paths:
        found |= cells(read_csv(path))
    return [row for cell in found.values() for row in cell]


def main(
    tables: Annotated[list[Path], typer.Argument(metavar="CSV...", help="Files of benchmarks.speed.run.")],
    anywhere: Annotated[bool, typer.Option("--any", help="Hold problems of every size and batch to the targets.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a target is missed.")] = False,
) -> None:
    """Compare measured cells with the targets: print a line a target, and what the table leaves out."""
    try:
        rows = joined(tables)
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem
    found = lines(rows, anywhere)
    for text in [*report(found), *notes(rows, anywhere)]:
        say(text)
    if strict and any(line.verdict == "miss" for line in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
