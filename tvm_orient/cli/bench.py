"""bench: our kernels against the fastest ways of computing the same thing with PyTorch alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from ..problem.spec import ConvSpec
from .application import app, complain, examples
from .output import Json, console, plain_file, print_json, progress
from .spec_options import Target, chosen_device, takes_problem, whole


@app.command(epilog=examples("bench --op all --channels 512 --height 14 --width 14 --kernel-size 31 --batch 8", "bench --specs keys.txt --csv speed.csv"))
@takes_problem
def bench(
    specs: list[ConvSpec],
    target: Target = None,
    batch: Annotated[int, typer.Option(parser=whole, metavar="N", help="Images at a time.")] = 8,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Time what PyTorch alone can do too.")] = True,
    repeats: Annotated[int, typer.Option(parser=whole, metavar="N", help="Timed calls of each; the median counts.")] = 30,
    csv: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every row there too.")] = None,
    as_json: Json = False,
) -> None:
    """Time our kernels and their peers, with cold and warm caches; what fails the check against the reference gets no time."""
    from ..bench.bench import bench as measured
    from ..bench.rows import write_csv
    from ..bench.tables import table

    plain_file(csv)
    device = chosen_device(target)
    with progress(console(err=True)) as report:
        rows = measured(specs, device, batch=batch, peers=peers, repeats=repeats, report=report)
    if csv is not None:
        write_csv(rows, csv)
    if as_json:
        print_json({"device": dataclasses.asdict(device), "batch": batch, "rows": [dataclasses.asdict(row) for row in rows]})
    else:
        console().print(table(rows))
        if csv is not None:
            console().print(f"wrote {csv}", soft_wrap=True)
    failed = [row for row in rows if row.ours and row.note.startswith(("failed", "wrong"))]
    for row in failed:
        complain(f"{row.spec}: {row.method} {row.note}")
    if failed:
        raise typer.Exit(1)
