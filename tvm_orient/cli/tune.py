"""tune: look for better kernels on this machine, and record them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import BuildFailed, TuningFailed, Unsupported
from ..spec import ConvSpec
from .base import app, complain, examples
from .board import Board
from .output import Json, angle, console, degrees, duration, layer, microseconds, print_json, speedup, table
from .problem import Target, chosen_device, takes_problem, whole

if TYPE_CHECKING:
    from ..tune import Outcome


@app.command(epilog=examples("tune --op all --channels 512 --height 14 --width 14 --kernel-size 31 --trials 64", "tune --specs keys.txt --target cpu"))
@takes_problem
def tune(
    specs: list[ConvSpec],
    trials: Annotated[int, typer.Option(parser=whole, metavar="N", help="Candidates to measure for each angle.")] = 64,
    batch: Annotated[int, typer.Option(parser=whole, metavar="N", help="Images at a time while measuring.")] = 8,
    target: Target = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the search.")] = 0,
    log_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to record in.", show_default="that of `tvm-orient logs where`")] = None,
    as_json: Json = False,
) -> None:
    """Search the schedules of each angle, verify the winners and record them. Ctrl-C keeps what was found; a second run goes on."""
    from .. import paths
    from ..logs import log_path
    from ..tune import distinct_parts
    from ..tune import tune as search

    device = chosen_device(target)
    printer = console(err=as_json)
    outcomes: list[Outcome] = []
    failures: dict[str, str] = {}
    interrupted = False
    for spec in specs:
        printer.print(layer(spec, device.slug), style="bold")
        board = Board(distinct_parts(spec), printer)
        try:
            with board:
                found = search(spec, device, trials=trials, batch=batch, seed=seed, report=board.report, directory=log_dir)
        except (TuningFailed, Unsupported, BuildFailed) as problem:  # of one op: the others may do better
            failures[spec.key] = str(problem)
            complain(str(problem))
        except BaseException as problem:
            if not board.stopping and not isinstance(problem, KeyboardInterrupt):
                raise
            interrupted = True
            reached = board.table()
            reached.caption = None
            printer.print(reached)
            printer.print()
            break
        else:
            printer.print(_table(found))
            outcomes += found
            if mirrored := _mirrored(spec, found):
                printer.print(f"{mirrored} use the records of their mirror images", style="dim")
        printer.print()
    folder = log_path(paths.user_log_dir() if log_dir is None else log_dir, device.slug, specs[0].op).parent
    if as_json:
        plain = [_plain(outcome) for outcome in outcomes]
        print_json({"device": device.slug, "folder": str(folder), "interrupted": interrupted, "outcomes": plain, "failures": failures})
    else:
        _print_end(printer, outcomes, folder)
    if interrupted:
        complain(f"interrupted: what was found until then is kept in {folder}; the same command goes on from there")
    if interrupted or failures:
        raise typer.Exit(1)


def _plain(outcome: Outcome) -> dict[str, Any]:
    record = None if outcome.record is None else outcome.record.model_dump(by_alias=True)
    kept = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome) if field.name not in ("part", "record")}
    return {"spec": outcome.part.key, "degrees": degrees(outcome.part.taps), **kept, "record": record}


def _table(outcomes: list[Outcome]) -> Table:
    """One row per angle: what a run came to."""
    numbers = ("trials", "failed", "resumed", "best", "default", "vs default", "time")
    rows = table("angle", *numbers, "result", right=numbers, fold=("result",))
    for outcome in outcomes:
        result = outcome.note or ("recorded" if outcome.record else "the default stays")
        rows.add_row(
            angle(outcome.part.taps),
            str(outcome.trials),
            Text(str(outcome.failed), style="yellow" if outcome.failed else "dim"),
            Text(str(outcome.resumed), style="" if outcome.resumed else "dim"),
            microseconds(outcome.best_us),
            microseconds(outcome.default_us),
            speedup(outcome.default_us, outcome.best_us),
            duration(outcome.seconds),
            Text(result, style="green" if outcome.record else "yellow"),
        )
    return rows


def _mirrored(spec: ConvSpec, outcomes: list[Outcome]) -> str:
    """The angles that were not tuned, because another angle's record serves them."""
    tuned = {outcome.part for outcome in outcomes}
    return " ".join(dict.fromkeys(angle(part.taps) for _, _, part in spec.parts() if part not in tuned))


def _print_end(printer: Console, outcomes: list[Outcome], folder: Path) -> None:
    """How the time was spent, and where the records are."""
    stages: dict[str, float] = {}
    for outcome in outcomes:
        for name, seconds in outcome.stages.items():
            stages[name] = stages.get(name, 0.0) + seconds
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages.items())
    if outcomes:
        printer.print(f"{duration(sum(outcome.seconds for outcome in outcomes))} in all: {spent}", soft_wrap=True)
        kept = sum(outcome.record is not None for outcome in outcomes)
        printer.print(f"{kept} of {len(outcomes)} recorded in {folder}", soft_wrap=True)
