"""Make the tables of a page that sum up a CSV file of `speed.run`, over all angles or of eight in one call; `page_tables` puts them there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tvm_orient.bench.rows import Row, cells, pick

from .targets import ALL, ALONE, OPS, alone_of, evenness, merging, ratio, served

Problem = tuple[str, int, int, int]  # op, K, channels, height


def speed_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the lines of the table, cold: all eight angles in one call, and each alone. Of a floor: its time over ours."""
    head = ("problem", "eight angles ms", "of floor", "each alone, of floor", "slowest over fastest", "eight over mean alone", "fastest peer over ours")
    yield f"| {' | '.join(head)} |"
    yield "| --- |" + " ---: |" * (len(head) - 1)
    found: dict[Problem, dict[str, list[Row]]] = {}
    for cell in cells(rows).values():
        row = cell[0]
        found.setdefault((row.op, row.kernel_size, row.channels, row.height), {})[row.angles] = cell
    for problem in sorted(found, key=lambda problem: (OPS.index(problem[0]), problem[1], -problem[3])):
        yield _line(problem, found[problem])


def summary_table(rows: Sequence[Row]) -> Iterator[str]:
    """Yields the table that opens a page, cold, all eight angles in one call: a line a plane and K, a column an op, and the fastest peer of any op."""
    found: dict[tuple[int, int, int], dict[str, list[Row]]] = {}
    for cell in cells(rows).values():
        row = cell[0]
        if row.angles == ALL:
            found.setdefault((row.kernel_size, row.channels, row.height), {})[row.op] = cell
    yield f"| images | {' | '.join(f'`{op}`' for op in OPS)} | PyTorch's fastest takes |"
    yield "| --- |" + " ---: |" * (len(OPS) + 1)
    for kernel_size, channels, height in sorted(found, key=lambda problem: (problem[0], -problem[2])):
        texts, peers = [], []
        for op in OPS:
            cell = found[kernel_size, channels, height].get(op, [])
            ours, peer = served(cell), pick(cell, "cold")
            texts.append("" if ours is None else f"{ours.median_ms:.3g} ms, {100 * (ours.floor_ratio or 0.0):.0f} %")
            peers += [ratio(peer, ours)] if ours and peer else []
        times = f"{min(peers):.1f} to {max(peers):.1f} times as long" if peers else "not timed"
        yield f"| K={kernel_size}, {channels}x{height}x{height} | {' | '.join(texts)} | {times} |"


def _line(problem: Problem, by_angles: dict[str, list[Row]]) -> str:
    op, kernel_size, channels, height = problem
    ours = {angles: row for angles, cell in by_angles.items() if (row := served(cell)) is not None}
    shares = [row.floor_ratio or 0.0 for angles, row in ours.items() if angles in ALONE]
    uneven = next(evenness(ours.values()), None) if len(alone_of(ours)) == len(ALONE) else None
    merged = next(merging(ours.values()), None)
    peers = [(ratio(peer, ours[angles]), peer) for angles, cell in by_angles.items() if angles in ours and (peer := pick(cell, "cold")) is not None]
    least = min(peers, key=lambda pair: pair[0], default=None)
    whole = ours.get(ALL)
    texts = [
        f"`{op}`, K={kernel_size}, {channels}x{height}x{height}",
        f"{whole.median_ms:.3g}" if whole else "",
        f"{100 * (whole.floor_ratio or 0.0):.0f} %" if whole else "",
        f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %" if shares else "",
        f"{uneven[0]:.2f}" if uneven else "",
        f"{merged[0]:.2f}" if merged else "",
        f"{least[0]:.2f} ({least[1].method}, {_angles(least[1])})" if least else "",
    ]
    return f"| {' | '.join(texts)} |"


def _angles(row: Row) -> str:
    return "eight angles" if row.angles == ALL else f"{row.angles}°"
