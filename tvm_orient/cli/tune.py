"""tune: look for better kernels on this machine, and record them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..errors import BuildFailed, TuningFailed, Unsupported
from ..spec import ConvSpec
from .base import app, complain, examples
from .board import Board
from .output import Json, angle, console, duration, layer, microseconds, print_json, speedup, table
from .problem import Target, chosen_device, takes_problem

if TYPE_CHECKING:
    from ..tune import Outcome


@app.command(epilog=examples("tune --op all --channels 512 --height 14 --width 14 --kernel-size 31 --trials 64", "tune --specs keys.txt --target cpu"))
@takes_problem
def tune(
    specs: list[ConvSpec],
    trials: Annotated[int, typer.Option(min=1, help="Candidates to measure for each angle.")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time while measuring.")] = 8,
    target: Target = None,
    seed: Annotated[int, typer.Option(help="Of the search.")] = 0,
    log_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to record in.", show_default="that of `tvm-orient logs where`")] = None,
    as_json: Json = False,
) -> None:
    """Search the schedules of each angle, verify the winners and record them. Ctrl-C keeps what was found; a second run goes on."""
    from .. import paths
    from ..logs import log_path
    from ..tune import tune as search

    device = chosen_device(target)
    printer = console(err=as_json)
    outcomes: list[Outcome] = []
    failures: dict[str, str] = {}
    interrupted = False
    with Board(specs, trials, printer) as board:
        try:
            for spec in specs:
                try:
                    outcomes += search(spec, device, trials=trials, batch=batch, seed=seed, report=board.report, directory=log_dir)
                except (TuningFailed, Unsupported, BuildFailed) as problem:  # of one op: the others may do better
                    failures[spec.key] = str(problem)
        except KeyboardInterrupt:
            interrupted = True
    files = [str(log_path(paths.user_log_dir() if log_dir is None else log_dir, device.slug, op)) for op in dict.fromkeys(spec.op for spec in specs)]
    if as_json:
        print_json({"device": device.slug, "files": files, "interrupted": interrupted, "outcomes": [_plain(outcome) for outcome in outcomes], "failures": failures})
    else:
        if interrupted:
            printer.print(board.table())
        _print(printer, specs, outcomes, device.slug)
        printer.print(f"\nrecords in {', '.join(files)}", soft_wrap=True)
    for key, problem in failures.items():
        complain(f"{key}: {problem}")
    if interrupted:
        complain(f"interrupted: what was found until then is kept in {', '.join(files)}; the same command goes on from there")
    if interrupted or failures:
        raise typer.Exit(1)


def _plain(outcome: Outcome) -> dict[str, Any]:
    record = None if outcome.record is None else outcome.record.model_dump(by_alias=True)
    kept = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome) if field.name not in ("part", "record")}
    return {"spec": outcome.part.key, "angle": angle(outcome.part.taps), **kept, "record": record}


def _print(printer: Console, specs: list[ConvSpec], outcomes: list[Outcome], device: str) -> None:
    for spec in specs:
        mine = [outcome for outcome in outcomes if outcome.part in {part for _, _, part in spec.parts()}]
        if not mine:
            continue
        printer.print()
        printer.print(layer(spec, device), style="bold")
        rows = table("angle", "trials", "best", "default", "default/best", "time", "result", right=("trials", "best", "default", "default/best", "time"), fold=("result",))
        for outcome in mine:
            result = outcome.note or ("recorded" if outcome.record else "the default stays")
            times = (microseconds(outcome.best_us), microseconds(outcome.default_us), speedup(outcome.default_us, outcome.best_us), duration(outcome.seconds))
            rows.add_row(angle(outcome.part.taps), _trials(outcome), *times, Text(result, style="green" if outcome.record else "yellow"))
        printer.print(rows)
    stages: dict[str, float] = {}
    for outcome in outcomes:
        for name, seconds in outcome.stages.items():
            stages[name] = stages.get(name, 0.0) + seconds
    if outcomes:
        spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages.items())
        printer.print(f"\n{duration(sum(outcome.seconds for outcome in outcomes))} in all: {spent}", soft_wrap=True)


def _trials(outcome: Outcome) -> str:
    notes = [f"{outcome.failed} failed"] * bool(outcome.failed) + [f"{outcome.resumed} from before"] * bool(outcome.resumed)
    return f"{outcome.trials}" + (f" ({', '.join(notes)})" if notes else "")
