"""tune: look for better kernels on this machine, and record them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import BuildFailed, TuningFailed, Unsupported
from ..problem.spec import ConvSpec
from .application import app, complain, examples
from .output import Json, angle, console, duration, layer, microseconds, print_json, speedup, table
from .progress import Board
from .spec_options import Target, chosen_device, takes_problem, whole

if TYPE_CHECKING:
    from ..problem.device import Device
    from ..tuning.result import Outcome


@app.command(epilog=examples("tune --op all --channels 512 --height 14 --width 14 --kernel-size 31 --trials 64", "tune --specs keys.txt --target cpu"))
@takes_problem
def tune(
    specs: list[ConvSpec],
    trials: Annotated[int, typer.Option(parser=whole, metavar="N", help="Candidates to measure for each angle.")] = 64,
    batch: Annotated[int, typer.Option(parser=whole, metavar="N", help="Images at a time while measuring.")] = 8,
    target: Target = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the search.")] = 0,
    log_dir: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to record in.", show_default="that of `tvm-orient logs where`")] = None,
    restart: Annotated[bool, typer.Option("--restart", help="Forget the trials of these problems in the journal, and measure all anew.")] = False,
    wait: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="How long other work on this machine is waited for, for each op.")] = 120,
    as_json: Json = False,
) -> None:
    """Search the schedules of each angle, verify the winners and record them. Ctrl-C keeps what was found; a second run goes on.

    Nothing is recorded where other work made the times noise; exit 1 then. Trials are kept in a journal, .trials in the folder of logs.
    """
    from .. import env
    from ..records.store import log_path
    from ..tuning.journal import journals
    from ..tuning.tune import tune as search

    device = chosen_device(target)
    printer = console(err=as_json)
    how: dict[str, Any] = {"trials": trials, "batch": batch, "seed": seed, "directory": log_dir, "restart": restart, "wait": wait}
    found = _Found()
    for spec in specs:
        if not _search(found, spec, device, printer, functools.partial(search, spec, device, **how)):
            break
        printer.print()
    directory = env.user_log_dir() if log_dir is None else log_dir
    folder, journal = log_path(directory, device.slug, specs[0].op).parent, journals(directory, device)
    if as_json:
        where = {"device": device.slug, "folder": str(folder), "journal": str(journal)}
        outcomes = [_plain(outcome) for outcome in found.outcomes]
        print_json({**where, "interrupted": found.interrupted, "busy": found.busy, "outcomes": outcomes, "failures": found.failures})
    elif not found.interrupted:
        _print_end(printer, found.outcomes, folder)
    if _complain_of(found, folder, journal):
        raise typer.Exit(1)


@dataclass
class _Found:
    """The results of a run over several specs so far, and what ended it before the last of them."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  #: by the key of a spec, why it was not tuned
    interrupted: bool = False  #: by Ctrl-C
    busy: str = ""  #: why the machine was too busy to tune on; empty where it was not


def _search(found: _Found, spec: ConvSpec, device: Device, printer: Console, search: Callable[..., list[Outcome]]) -> bool:
    """Tunes one spec, shows it on a board and adds what it came to; returns whether the next spec is to be tuned.

    Args:
        search: tunes the spec; told a report.
    """
    from ..tuning.result import Interrupted, TooBusy
    from ..tuning.tune import distinct_parts

    printer.print(layer(spec, device.slug), style="bold")
    board = Board(distinct_parts(spec), printer)
    try:
        with board:
            outcomes = search(report=board.report)
    except (TuningFailed, Unsupported, BuildFailed) as problem:  # of one op: the others may do better
        found.failures[spec.key] = str(problem)
        complain(str(problem))
        return True
    except TooBusy as problem:  # which goes for every op
        found.busy = str(problem)
        found.outcomes += problem.outcomes
        if problem.outcomes:
            printer.print(_table(problem.outcomes))
        return False
    except BaseException as problem:
        if not board.stopping and not isinstance(problem, KeyboardInterrupt):
            raise
        found.interrupted = True
        found.outcomes += problem.outcomes if isinstance(problem, Interrupted) else []
        reached = board.table()
        reached.caption = None
        printer.print(reached)
        printer.print()
        return False
    printer.print(_table(outcomes))
    found.outcomes += outcomes
    if mirrored := _mirrored(spec, outcomes):
        printer.print(f"{mirrored} use the records of their mirror images", style="dim")
    return True


def _complain_of(found: _Found, folder: Path, journal: Path) -> bool:
    """Says on standard error what ended a run early or kept angles from being recorded; returns whether anything did."""
    doubtful = sum(bool(outcome.doubt) for outcome in found.outcomes)
    if found.interrupted:
        complain(_interrupted(found.outcomes, folder, journal))
    if found.busy:
        complain(f"{found.busy}; the trials until then are kept in {journal}" if journal.is_dir() else found.busy)
    elif doubtful:
        of = f"{doubtful} of {len(found.outcomes)} angles are not recorded"
        complain(f"{of}: what was measured contradicts itself (see above); tune again on a quiet machine")
    return bool(found.interrupted or found.failures or found.busy or doubtful)


def _interrupted(outcomes: list[Outcome], folder: Path, journal: Path) -> str:
    """Returns where what was found until Ctrl-C is, of the places that exist."""
    written = sum(outcome.written is not None for outcome in outcomes)
    kept = [f"{written} {'record' if written == 1 else 'records'} in {folder}"] if written else []
    if journal.is_dir():
        kept.append(f"the trials in {journal}")
    if not kept:
        return "interrupted before the first trial: nothing was written"
    return f"interrupted: {'no record yet; ' if not written else ''}{' and '.join(kept)} are kept, and the same command goes on from there"


def _plain(outcome: Outcome) -> dict[str, Any]:
    record = None if outcome.record is None else outcome.record.model_dump(by_alias=True)
    kept = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome) if field.name not in ("part", "record", "written", "journal")}
    places = {name: None if path is None else str(path) for name, path in (("written", outcome.written), ("journal", outcome.journal))}
    return {"spec": outcome.part.key, "degrees": outcome.part.taps.degrees, **kept, "record": record, **places}


def _table(outcomes: list[Outcome]) -> Table:
    """Returns a table of what a run came to, a row an angle."""
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
            Text(result, style="green" if outcome.record else "red" if outcome.doubt else "yellow"),
        )
    return rows


def _mirrored(spec: ConvSpec, outcomes: list[Outcome]) -> str:
    """Returns the angles that were not tuned, because another angle's record serves them."""
    tuned = {outcome.part for outcome in outcomes}
    return " ".join(dict.fromkeys(angle(part.taps) for _, _, part in spec.parts() if part not in tuned))


def _print_end(printer: Console, outcomes: list[Outcome], folder: Path) -> None:
    """Prints how the time was spent, and where the records are."""
    stages: dict[str, float] = {}
    for outcome in outcomes:
        for name, seconds in outcome.stages.items():
            stages[name] = stages.get(name, 0.0) + seconds
    spent = ", ".join(f"{name} {duration(seconds)}" for name, seconds in stages.items())
    if outcomes:
        printer.print(f"{duration(sum(outcome.seconds for outcome in outcomes))} in all: {spent}", soft_wrap=True)
        tuned, written = (sum(getattr(outcome, name) is not None for outcome in outcomes) for name in ("record", "written"))
        which = f"{tuned} tuned, {written - tuned} where the default won" if written else "nothing was written"
        printer.print(f"{written} of {len(outcomes)} angles recorded{f' in {folder}' if written else ''}: {which}", soft_wrap=True)
