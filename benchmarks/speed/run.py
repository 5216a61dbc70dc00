"""Measure the tables: our kernels, the floor and the peers over a grid, into a CSV file and two pictures.

    python -m benchmarks.speed.run --target cpu            every peer in every cell: hours, most of them dense kernels; make bench leaves those out
    python -m benchmarks.speed.run --target cuda           (make gpu-bench)
    python -m benchmarks.speed.run --quick --peers none    a first look, in a minute or two

Each cell is written when it is done: a run that is stopped keeps them, and --resume goes on from there; one that --minutes ended
exits with 3. What compiles (our kernels and
the peers) is compiled before by --jobs processes at once, into caches on the disk. The machine must be quiet: the busy column and the
spread tell when it was not. `report.targets` compares the file with the targets.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from tvm_orient.bench.bench import bench
from tvm_orient.bench.grids import EIGHT, GRIDS
from tvm_orient.bench.methods import angles_text
from tvm_orient.bench.peers import registry
from tvm_orient.bench.rows import Row, cells, losses, pick, read_csv, write_csv
from tvm_orient.bench.tables import markdown
from tvm_orient.bench.tables import table as sheet
from tvm_orient.errors import OrientError
from tvm_orient.problem.cpus import cores
from tvm_orient.problem.device import Device, device_for
from tvm_orient.problem.spec import ConvSpec

from ..report.plot import draw
from ..report.roofline import draw as roofline
from ..report.sheets import RESULTS
from ..report.terminal import UNFINISHED, console, say
from .compile_ahead import compile_ahead, late

_EIGHT = " ".join(f"{angle:g}" for angle in EIGHT)


class Among(enum.StrEnum):
    """Which cells get peers: every one, those of eight angles or of angle 0, or none."""

    ALL = "all"
    SOME = "some"
    NONE = "none"


def main(
    target: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    grid: Annotated[str, typer.Option(help=f"One of {', '.join(GRIDS)}.")] = "table",
    quick: Annotated[bool, typer.Option("--quick", help="A small part of the grid, fewer calls, cold only.")] = False,
    peers: Annotated[Among, typer.Option(help="Cells in which to time what PyTorch alone can do too; some: those of eight angles or of angle 0.")] = Among.ALL,
    without: Annotated[list[str] | None, typer.Option(metavar="PEER", help="Leave this peer out; may be given again.")] = None,
    cold: Annotated[bool, typer.Option("--cold", help="The cold cache only.")] = False,
    batch: Annotated[int | None, typer.Option(help="Images at a time, instead of the grid's.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed calls of each method in each state.")] = None,
    first: Annotated[int | None, typer.Option(help="Only so many cells.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no cell after so long.")] = None,
    patience: Annotated[float | None, typer.Option(help="Seconds that a peer may take to compile and run once.")] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes that compile before the first cell; 0: each cell compiles its own.", show_default="cores")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the cells that the CSV file has.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="Where to write; the pictures lie beside it.")] = None,
) -> None:
    """Measure our kernels, the floor and the peers over a grid, and name every cell where a peer wins."""
    deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
    known = [peer.name for peer in registry.PEERS]
    if unknown := [name for name in without or [] if name not in known]:
        raise typer.BadParameter(f"without must be among {', '.join(known)}, got {unknown[0]!r}")
    if grid not in GRIDS:
        raise typer.BadParameter(f"grid must be one of {', '.join(GRIDS)}, got {grid!r}")
    try:
        device = device_for(target)
        chosen = GRIDS[grid](device.kind, quick)
        images, specs = batch or chosen.batch, chosen.specs[:first]
        path = out or RESULTS / f"{'-'.join([device.slug, *([grid] if grid != 'table' else []), *(['quick'] if quick else [])])}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_csv(path) if resume and path.exists() else []
        done = {row.cell for row in rows}
        left = [(spec, rivals(spec, peers, without or [])) for spec in specs if (spec.key, images) not in done]
        say(f"cells: {len(left)} of {len(specs)} to do on {device.slug} at N={images}")
        ahead = cores() if jobs is None else jobs
        if ahead:
            said, ready = compile_ahead(left, device, images, ahead, (time.monotonic() + deadline) / 2, patience)
            say(said)
            left.sort(key=lambda cell: late(cell, ready))  # in order otherwise; with --resume their peers are compiled next time
        unfinished = 0
        for number, (spec, names) in enumerate(left, 1):
            if time.monotonic() > deadline:
                unfinished = len(left) - number + 1
                say(f"{unfinished} cells left: the time given is over; --resume goes on from here")
                break
            new = measured(spec, device, images, names, repeats or (8 if quick else 30), cold or quick, f"{number}/{len(left)}", patience)
            rows += new
            write_csv(rows, path)
            console.print(sheet(new))
            torch.compiler.reset()  # the peers of a cell are not needed again
        summary(rows, path)
        if unfinished:
            raise typer.Exit(UNFINISHED)
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem


def rivals(spec: ConvSpec, peers: Among, without: Sequence[str]) -> list[str]:
    """Returns the names of the peers that a cell is to have."""
    wanted = peers is Among.ALL or (peers is Among.SOME and angles_text(spec) in (_EIGHT, "0"))
    return [peer.name for peer in registry.PEERS if peer.name not in without] if wanted else []


def measured(spec: ConvSpec, device: Device, batch: int, peers: list[str], repeats: int, cold: bool, place: str, patience: float | None) -> list[Row]:
    """Measures one cell, while a terminal shows what is being done; returns its rows."""
    with console.status(place) as status:
        return bench(
            [spec],
            device,
            batch=batch,
            peers=peers,
            repeats=repeats,
            report=lambda text: status.update(f"{place} {text}"),
            states=("cold",) if cold else ("cold", "warm"),
            patience=patience,
        )


def summary(rows: list[Row], path: Path) -> None:
    """Prints the cells as a table for a page, the pictures, and where a peer wins."""
    if not any(row.median_ms for row in rows):
        say("nothing was measured")
        return
    say(markdown(rows))
    pictures = [draw(rows, path.with_suffix(".png")), roofline(rows, path.with_name(f"{path.stem}-roofline.png"))]
    say("\n" + "\n".join(map(str, [path, *filter(None, pictures)])) + "\n")
    groups = cells(rows).values()
    met = [group for group in groups if pick(group, "cold") and pick(group, "cold", ours=True)]
    lost = losses(rows)
    say(f"ours is the fastest in {len(met) - len(lost)} of the {len(met)} cells where a peer computes the same function")
    for row in lost:
        say(f"  {row.problem}: {row.method} takes {row.vs_ours:.3f} of our time ({row.median_ms:.3f} ms)")
    for row in rows:
        if row.note.startswith(("wrong", "failed")):
            say(f"  {row.problem}: {row.method}: {row.note}")
    if busy := [row for row in rows if row.busy is not None and row.busy > 0.1]:
        say(f"warning: others kept up to {max(row.busy or 0 for row in busy):.0%} of the cores busy; measure again on a quiet machine")


if __name__ == "__main__":
    typer.run(main)
