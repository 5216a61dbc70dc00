"""Measure the tables: our kernels, the floor and the peers over a grid, into a CSV file and a picture.

    python benchmarks/run.py --target cpu            (make bench: about an hour on two cores, most of it peers that compile)
    python benchmarks/run.py --target cuda           (make gpu-bench)
    python benchmarks/run.py --quick --no-peers      a first look, in a minute or two

Each cell is written when it is done: a run that is stopped keeps them, and --resume goes on from there. The machine must be
quiet: the busy column and the spread tell when it was not.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from grids import Grid, networks, table
from plot import draw
from terminal import console, say

from tvm_orient.bench import bench, losses, markdown, read_csv, write_csv
from tvm_orient.bench import table as sheet
from tvm_orient.device import device_for
from tvm_orient.errors import OrientError
from tvm_orient.spec import ConvSpec
from tvm_orient.speeds import Row, cells, pick

RESULTS = Path(__file__).resolve().parent / "results"


def main(
    target: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "auto",
    grid: Annotated[str, typer.Option(help="table, or networks: the layers of the published networks.")] = "table",
    quick: Annotated[bool, typer.Option("--quick", help="A small part of the grid, fewer calls, cold only.")] = False,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Time what PyTorch alone can do too.")] = True,
    batch: Annotated[int | None, typer.Option(help="Images at a time, instead of the grid's.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed calls of each method in each state.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Begin no cell after so long.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the cells that the CSV file has.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="Where to write; the picture lies beside it.")] = None,
) -> None:
    """Measure, write, and name every cell where a peer wins."""
    try:
        device = device_for(target)
        chosen = networks(quick) if grid == "networks" else table(device.kind, quick)
        chosen = Grid(batch or chosen.batch, chosen.specs)
        words = [device.slug, *(["networks"] if grid == "networks" else []), *(["quick"] if quick else [])]
        path = out or RESULTS / f"{'-'.join(words)}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = read_csv(path) if resume and path.exists() else []
        count = repeats or (8 if quick else 30)
        deadline = time.monotonic() + 60 * minutes if minutes is not None else float("inf")
        done = {row.cell for row in rows}
        left = [spec for spec in chosen.specs if (spec.key, chosen.batch) not in done]
        for number, spec in enumerate(left, 1):
            if time.monotonic() > deadline:
                say(f"{len(left) - number + 1} cells left: the time given is over; --resume goes on from here")
                break
            new = measured(spec, target, chosen.batch, peers, count, quick, f"{number}/{len(left)}")
            rows += new
            write_csv(rows, path)
            console.print(sheet(new))
            torch.compiler.reset()  # the peers of a cell are not needed again
        summary(rows, path)
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem


def measured(spec: ConvSpec, target: str, batch: int, peers: bool, repeats: int, quick: bool, place: str) -> list[Row]:
    """One cell, with what is being done shown in a terminal."""
    with console.status(place) as status:
        return bench(
            [spec],
            device_for(target),
            batch=batch,
            peers=peers,
            repeats=repeats,
            report=lambda text: status.update(f"{place} {text}"),
            states=("cold",) if quick else ("cold", "warm"),
        )


def summary(rows: list[Row], path: Path) -> None:
    """The cells as a table for a page, the picture, and where a peer wins."""
    if not any(row.median_ms for row in rows):
        say("nothing was measured")
        return
    say(markdown(rows))
    picture = draw(rows, path.with_suffix(".png"))
    say(f"\n{path}\n{picture}\n")
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
