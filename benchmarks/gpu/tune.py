"""Tune what ships: the table's problems, then the networks' layers, most valuable first, within a time budget.

    python -m benchmarks.gpu.tune --minutes 25                       (make gpu-tune) records go to tuning_logs/
    python -m benchmarks.gpu.tune --target cpu --quick --logs DIR    the same machinery without a GPU

A run that is stopped, by the budget or by Ctrl-C, keeps what it found, and exits with 3; the same command goes on from there.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tvm_orient.bench.grids import networks, table
from tvm_orient.errors import BuildFailed, OrientError, TuningFailed, Unsupported
from tvm_orient.problem.cpus import cores
from tvm_orient.problem.device import Device, device_for
from tvm_orient.problem.spec import OPS, ConvSpec
from tvm_orient.records import merge, store
from tvm_orient.schedules import registry
from tvm_orient.tuning.builder import BuilderPool
from tvm_orient.tuning.result import Interrupted, Outcome, Progress, TooBusy
from tvm_orient.tuning.tune import tune

from ..report.terminal import UNFINISHED, console, say

LOGS = Path(__file__).resolve().parents[2] / "tuning_logs"
DONE = "all problems are done"


def main(
    minutes: Annotated[float, typer.Option(help="Time budget; a candidate that is being measured is finished.")] = 25.0,
    target: Annotated[str, typer.Option(help="cuda, or cpu for its own table.")] = "cuda",
    trials: Annotated[int, typer.Option(help="Candidates for each angle of each problem.")] = 32,
    quick: Annotated[bool, typer.Option("--quick", help="A small part of the problems.")] = False,
    first: Annotated[int | None, typer.Option(help="Only so many problems.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images at a time, instead of the grid's.")] = None,
    processes: Annotated[int, typer.Option("--jobs", help="Processes that compile candidates.")] = cores(),
    directory: Annotated[Path, typer.Option("--logs", metavar="DIR", help="Where records go.", show_default="tuning_logs/ of the checkout")] = LOGS,
) -> None:
    """Tune what ships within a time budget, prune the logs, and report what it took and gained."""
    try:
        device = device_for(target)
        jobs = [(spec, batch or images) for spec, images in worth(device.kind, quick)][:first]
        say(f"problems: {len(jobs)} on {device.slug}, {trials} candidates an angle, {minutes:g} minutes, {processes} compilers, records in {directory}")
        with BuilderPool(device, processes) as shop:
            outcomes, reason = spend(jobs, device, trials, directory, time.monotonic() + 60 * minutes, shop)
        prune(directory, device)
        console.print(report(outcomes))
        say(f"{reason}; {sum(outcome.record is not None for outcome in outcomes)} of {len(outcomes)} angles have a record that beats the default")
        if reason != DONE:
            raise typer.Exit(UNFINISHED)
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem


def worth(kind: str, quick: bool) -> list[tuple[ConvSpec, int]]:
    """Return problems with their batches, most valuable first: the table in float32, then bfloat16, the networks' layers, float16.

    Those of eight angles alone: each tunes every one of its angles.
    """
    grids = [table(kind, quick), *([networks(quick)] if kind == "cuda" else [])]
    found = [(spec, grid.batch) for grid in grids for spec in grid.specs if len(spec.parts()) > 1]
    return sorted(found, key=lambda job: job[0].dtype == "float16")


def spend(jobs: list[tuple[ConvSpec, int]], device: Device, trials: int, directory: Path, deadline: float, shop: BuilderPool) -> tuple[list[Outcome], str]:
    """Tune the problems and return what each angle came to, until the deadline or Ctrl-C; and why it ended."""
    found: list[Outcome] = []
    finished = Finished(directory, device, trials)
    jobs = [job for job in jobs if job not in finished]
    if finished.skipped:
        say(f"{finished.skipped} problems were finished before")
    for number, (spec, batch) in enumerate(jobs, 1):
        if time.monotonic() > deadline:
            return found, f"time is over with {len(jobs) - number + 1} problems left"
        say(f"[{number}/{len(jobs)}] {spec}")
        try:
            outcomes = tune(spec, device, trials=trials, batch=batch, report=watch(deadline), directory=directory, shop=shop)
            found += outcomes
            if not any(outcome.doubt for outcome in outcomes):  # what was noise is measured again by the next run
                finished.add((spec, batch))
        except (TuningFailed, Unsupported, BuildFailed) as problem:  # of one problem: the others may do better
            say(f"  failed: {problem}")
        except TooBusy as stop:
            return found + stop.outcomes, str(stop)
        except KeyboardInterrupt as stop:
            found += stop.outcomes if isinstance(stop, Interrupted) else []
            over = time.monotonic() > deadline
            return found, f"{'time is over' if over else 'interrupted'} in problem {number} of {len(jobs)}, of which the best so far is recorded"
    return found, DONE


class Finished:
    """The problems that earlier runs finished with as many trials and the same templates: asking again would only repeat the last comparison."""

    def __init__(self, directory: Path, device: Device, trials: int) -> None:
        self.path, self.device, self.trials, self.skipped = directory / ".trials" / device.slug / "finished.jsonl", device, trials, 0
        self.known = set(self.path.read_text().splitlines()) if self.path.exists() else set()

    def _line(self, job: tuple[ConvSpec, int]) -> str:
        spec, batch = job
        templates = [f"{template.name} {template.version}" for template in registry.candidates(spec.parts()[0][2], self.device)[0]]
        return json.dumps([spec.key, batch, self.trials, templates])

    def __contains__(self, job: tuple[ConvSpec, int]) -> bool:
        found = self._line(job) in self.known
        self.skipped += found
        return found

    def add(self, job: tuple[ConvSpec, int]) -> None:
        """Keeps that a problem is finished."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(self._line(job) + "\n")


def watch(deadline: float) -> Callable[[Progress], None]:
    """Says where tuning is, an angle a line, and stops it at the deadline as Ctrl-C would."""

    def see(step: Progress) -> None:
        if step.trial >= step.trials and step.best_us and step.default_us:
            say(f"  {step.part.taps.key}: {step.best_us:.1f} us, default {step.default_us:.1f} us, {step.failed} failed")
        if time.monotonic() > deadline:
            raise KeyboardInterrupt

    return see


def prune(directory: Path, device: Device) -> None:
    """Keep the best record of each problem."""
    for op in OPS:
        path = store.log_path(directory, device.slug, op)
        if path.exists():
            records = store.read(path).records
            kept = merge.prune(records)
            store.write(kept, path)
            say(f"{path}: {len(kept)} records, {len(records) - len(kept)} superseded ones dropped")


def report(outcomes: list[Outcome]) -> Table:
    """Return by op and number of taps: angles, trials, seconds of a trial, where the time went, gain over the default."""
    sheet = Table("op", "K", "angles", "recorded", "trials", "failed", "s a trial", "where the time went", "gain over the default")
    groups: dict[tuple[str, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.part.op, outcome.part.kernel_size), []).append(outcome)
    for (op, taps), group in groups.items():
        trials = sum(outcome.trials - outcome.resumed for outcome in group)
        seconds = sum(outcome.seconds for outcome in group)
        stages: dict[str, float] = {}
        for outcome in group:
            for name, spent in outcome.stages.items():
                stages[name] = stages.get(name, 0.0) + spent
        parts = ", ".join(f"{name} {spent / seconds:.0%}" for name, spent in stages.items()) if seconds else ""
        gains = [outcome.default_us / outcome.best_us if outcome.record and outcome.default_us and outcome.best_us else 1.0 for outcome in group]
        mean = math.exp(sum(map(math.log, gains)) / len(gains))
        numbers = (len(group), sum(outcome.record is not None for outcome in group), trials, sum(outcome.failed for outcome in group))
        pace = f"{seconds / trials:.2f}" if trials else "-"
        sheet.add_row(op, str(taps), *map(str, numbers), pace, parts, f"{mean:.2f}x, best {max(gains):.2f}x")
    return sheet


if __name__ == "__main__":
    typer.run(main)
