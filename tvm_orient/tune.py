"""Tune: find the best decisions for each angle of a spec on this device, verify them, and record them.

A layer is tuned angle by angle, and of two mirrored angles (a and 180 - a) one: records then serve every layer that has the angle. Every trial is
kept in a journal beside the logs, so that a run that was stopped goes on where it was. What is recorded is measured on a quiet machine, in turn.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import importlib.metadata
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import logs, paths, schedules
from .contest import Result, contest, noise
from .device import Device
from .errors import BuildFailed, EnvironmentProblem, InvalidArgument, TuningFailed
from .journal import Journal
from .lower import Choice
from .quiet import Busy, Patience, alone
from .schedules.base import Template
from .spec import ConvSpec
from .taps import Taps
from .workshop import Workshop, Workspace

MARGIN = 0.02  # a tuned choice must beat the default by this share in the same run
_ROUND = 8  # candidates between two fits of the cost model
WAIT_S = 120.0  # seconds that a run waits for other work to end, in all
_SITTINGS = 3  # times that a comparison which contradicts itself is made


@dataclass(frozen=True)
class Progress:
    """Where a run stands, after each trial."""

    part: ConvSpec  #: the angle that is being tuned
    position: int  #: its place among the angles, from 0
    parts: int  #: how many angles
    trial: int  #: done so far
    trials: int  #: wanted
    failed: int  #: trials that did not build or run
    best_us: float | None  #: so far
    default_us: float | None  #: of the untuned choice
    seconds: float  #: since this angle began
    seconds_left: float | None  #: until the whole run ends, estimated
    waiting: tuple[float, float] | None = None  #: (share of the cores that other work uses, seconds to wait at most) while that is waited for


@dataclass(frozen=True)
class Outcome:
    """What one angle's tuning found."""

    part: ConvSpec  #: the angle
    record: logs.Record | None  #: None where the default won (the logs then say so) or where the times were noise
    default_us: float | None  #: of the untuned choice
    best_us: float | None  #: of the fastest candidate
    trials: int  #: done
    failed: int  #: trials that did not build or run
    resumed: int  #: trials taken from the journal of an earlier run
    seconds: float  #: spent on this angle
    stages: dict[str, float]  #: seconds spent on build, measure, verify, search
    note: str  #: why there is no record, for people
    written: Path | None = None  #: the log that a line was added to: the record, or that the default won
    journal: Path | None = None  #: of the trials
    doubt: str = ""  #: why the times could not be believed, so that nothing was written; empty where they could


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during tuning; outcomes: of the angles until then, the last one's as far as it came."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


class TooBusy(EnvironmentProblem):
    """Other work outlasted the wait for it; outcomes: of the angles until then."""

    def __init__(self, message: str, outcomes: list[Outcome]) -> None:
        super().__init__(message)
        self.outcomes = outcomes


_log = logging.getLogger(__name__)
Report = Callable[[Progress], None]


def distinct_parts(spec: ConvSpec) -> list[ConvSpec]:
    """The angles of a spec that need tuning: one of each mirrored pair, in order."""
    parts: list[ConvSpec] = []
    for _, _, part in spec.plain.parts():
        mirror = Taps(tuple(tuple((h, -w) for h, w in line) for line in part.taps.table))
        if not any(known.taps in (part.taps, mirror) for known in parts):
            parts.append(part)
    return parts


def tune(
    spec: ConvSpec, device: Device, *, trials: int = 64, batch: int = 8, seed: int = 0, report: Report | None = None, directory: Path | None = None,
    shop: Workshop | None = None, restart: bool = False, wait: float = WAIT_S,
) -> list[Outcome]:  # fmt: skip
    """Tune every distinct angle of a spec, and record each winner that is right and beats the untuned default.

    Args:
        trials: candidates that are timed for each angle, >= 1.
        batch: the N they are timed at, >= 1.
        report: told after each trial.
        directory: of the logs (default: the user's).
        shop: its processes are used and kept; None: one is made for this call, which compiles in this process.
        restart: forget what the journals hold of these angles at this batch, and measure all anew; records stay.
        wait: seconds to wait in all for other work on a CPU to end, >= 0.

    Raises:
        InvalidArgument: trials or batch < 1, or wait < 0.
        TooBusy: other work goes on after that wait; what was recorded before is kept.
        Unsupported: no template serves the spec.
        TuningFailed: not even the default runs.
        Interrupted: Ctrl-C, once what the current angle has found is recorded.
    """
    for name, value in (("trials", trials), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"{name} must be a whole number >= 1, got {value!r}")
    if not wait >= 0:
        raise InvalidArgument(f"wait must be seconds >= 0, got {wait!r}")
    parts = distinct_parts(spec)
    for part in parts:
        schedules.default(part, device)  # refuses before any work
    outcomes: list[Outcome] = []
    patience = Patience(device, wait)
    with contextlib.ExitStack() as stack:
        shop = shop or stack.enter_context(Workshop(device))
        stack.enter_context(alone(device))
        for position, part in enumerate(parts):
            shop.clear()
            run = _Run(part, device, shop, patience, trials, batch, seed, directory or paths.user_log_dir(), report, position, len(parts))
            try:
                outcomes.append(run.tune(restart))
            except Busy as problem:  # before its first trial
                raise TooBusy(str(problem), outcomes) from problem
            except KeyboardInterrupt as stop:  # while it waited
                raise Interrupted(outcomes) from stop
            if run.busy or run.interrupted:
                raise TooBusy(run.busy, outcomes) if run.busy else Interrupted(outcomes)
    return outcomes


@dataclass
class _Run:
    part: ConvSpec
    device: Device
    shop: Workshop
    patience: Patience
    trials: int
    batch: int
    seed: int
    directory: Path
    report: Report | None
    position: int
    parts: int
    stages: dict[str, float] = field(default_factory=lambda: {"build": 0.0, "measure": 0.0, "verify": 0.0})
    done: list[tuple[Choice, float | None]] = field(default_factory=list)
    resumed: int = 0
    default_seconds: float | None = None
    interrupted: bool = False
    busy: str = ""  # that other work outlasted the wait, once trials had begun

    def tune(self, restart: bool) -> Outcome:
        self.start = time.perf_counter()
        templates, _ = schedules.candidates(self.part, self.device)
        self.journal = Journal(self.directory, self.device, self.part, self.batch)
        default = Choice.of(*schedules.default(self.part, self.device))
        self._wait()
        if restart:
            self.journal.forget()
        try:
            self._resume(templates)
            self.default_seconds = self._trial(default)
            for i, template in enumerate(templates):
                self._search(template, (self.trials - len(self.done)) // (len(templates) - i))
        except KeyboardInterrupt:
            self.interrupted = True
        except Busy as problem:
            self.busy = str(problem)
        return self._conclude(default)

    def _wait(self) -> None:
        """Waits for a quiet machine.

        Raises:
            Busy: there was none in time.
        """
        self.patience.wait(None if self.report is None else lambda share, left: self._tell((share, left)))

    def _resume(self, templates: Sequence[Template]) -> None:
        """Take over the trials of earlier runs that are still valid."""
        for name, version, decisions, seconds in self.journal.entries():
            template = next((t for t in templates if (t.name, t.version) == (name, version)), None)
            if template is not None and template.invalid(self.part, self.device, decisions) is None:
                self.done.append((Choice.of(template, decisions), seconds))
        self.resumed = len(self.done)

    def _search(self, template: Template, budget: int) -> None:
        """Measure up to `budget` candidates that are new; the model learns from the old ones as the search meets them."""
        if budget < 1:
            return
        from . import search
        from .tvmkit import target

        def valid(decisions: dict[str, int]) -> bool:
            return template.invalid(self.part, self.device, decisions) is None

        def features(decisions: dict[str, int]) -> Sequence[float]:
            return [math.log2(1 + value) for _, value in sorted(decisions.items())]

        enough = len(self.done) + budget

        def measure(decisions: dict[str, int]) -> float | None:
            if len(self.done) >= enough:
                raise search.Stopped
            return self._trial(Choice.of(template, decisions))

        def ahead(proposed: list[dict[str, int]]) -> None:
            known = {choice for choice, _ in self.done}
            new = [choice for decisions in proposed if (choice := Choice.of(template, decisions)) not in known]
            with self._stage("build"):
                self.shop.prepare(self.part, new[: max(0, enough - len(self.done))])
            try:
                self._wait()
            except Busy as problem:
                busy.append(problem)
                raise search.Stopped from problem

        busy: list[Busy] = []
        knobs, size = template.knobs(self.part, self.device), max(_ROUND, min(2 * _ROUND, self.shop.jobs))  # a round keeps every builder busy
        how: dict[str, Any] = {"target": target(self.device), "trials": enough + size, "round_size": size, "seed": self.seed, "ahead": ahead}
        try:
            search.search(knobs, valid, features, measure, **how)
        except search.Stopped as stopped:
            if busy:
                raise busy[0] from stopped
            if len(self.done) < enough:
                raise KeyboardInterrupt from stopped

    def _trial(self, choice: Choice) -> float | None:
        """Seconds of a choice: from this run, from the journal, or measured now; None where it fails."""
        known = next((seconds for c, seconds in self.done if c == choice), math.nan)
        if known is None or not math.isnan(known):
            return known
        seconds, error = self._measure(choice)
        self.journal.add(choice, seconds, error)
        self.done.append((choice, seconds))
        self._tell()
        return seconds

    def _measure(self, choice: Choice) -> tuple[float | None, str]:
        try:
            kernel, workspace = self._built(choice)
        except BuildFailed as problem:
            return None, str(problem)
        with self._stage("measure"):
            timing = self.shop.worker.time(self.part, self.batch, kernel, workspace)
        return timing.median, timing.error

    def _built(self, choice: Choice) -> tuple[Path, Workspace]:
        with self._stage("build"):
            return self.shop.built(self.part, choice)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.stages[name] += time.perf_counter() - start

    def _tell(self, waiting: tuple[float, float] | None = None) -> None:
        if self.report is None:
            return
        seconds, measured = time.perf_counter() - self.start, len(self.done) - self.resumed
        each = seconds / max(1, measured)
        left = each * (self.trials - len(self.done) + self.trials * (self.parts - self.position - 1))
        best = min((s for _, s in self.done if s is not None), default=None)
        failed = sum(s is None for _, s in self.done)
        where = (self.position, self.parts, len(self.done), self.trials, failed)
        self.report(Progress(self.part, *where, _us(best), _us(self.default_seconds), seconds, max(0.0, left) if measured else None, waiting))

    def _conclude(self, default: Choice) -> Outcome:
        """Verify the best, compare it with the default in turn, and record what won; nothing where the times are noise."""
        ranked = sorted(((s, c) for c, s in self.done if s is not None), key=lambda pair: pair[0])
        failures = sum(s is None for _, s in self.done)
        if not ranked and not self.interrupted and not self.busy:
            raise TuningFailed(
                f"no candidate for {self.part} builds and runs on {self.device.slug}, not even the default: "
                f"run `tvm-orient doctor`; the journal {self.journal.path} says why"
            )
        kept: logs.Record | None = None
        result: Result | None = None
        note = ""
        for seconds, choice in [] if self.busy else ranked[:3]:
            try:
                kept, result, note = self._final(choice, default, seconds)
            except BuildFailed as problem:
                note = str(problem)
                continue
            except Busy as problem:
                self.busy = str(problem)
                break
            if not note.startswith("wrong"):
                break
        doubt = self.busy or (result.doubt if result else "")
        written = None if kept is None else logs.append(kept, self.directory)
        best, base = (result.best, result.base) if result else (ranked[0][0] if ranked else None, self.default_seconds)
        total = time.perf_counter() - self.start
        stages = {**self.stages, "search": total - sum(self.stages.values())}
        record, note = (None if note else kept), (f"not recorded: {doubt}" if doubt else note)
        numbers = (len(self.done), failures, self.resumed, total, stages)
        return Outcome(self.part, record, _us(base), _us(best), *numbers, note, written, self.journal.path, doubt)

    def _final(self, choice: Choice, default: Choice, searched: float) -> tuple[logs.Record | None, Result | None, str]:
        """(record, comparison, why the winner is not in the record) of a choice that took so many seconds in the search.

        Where the default wins the record is its own, without which that of a near shape would answer.

        Raises:
            BuildFailed, Busy: as they say.
        """
        kernel, base = self._built(choice), self._built(default)
        with self._stage("verify"):
            error, wrong = self.shop.worker.verify(self.part, *kernel)
        if error is None:
            return None, None, f"wrong: {dict(choice.decisions)}: {wrong}"
        result = self._compared(base, kernel)
        if result is None:
            return None, None, "the winner did not run a second time"
        doubt = result.doubt or noise("the default", self.default_seconds, result.base) or noise("the winner", searched, result.best)
        if doubt:
            return None, dataclasses.replace(result, doubt=doubt), ""
        if choice != default and result.won(MARGIN):
            return self._record(choice, result, error), result, ""
        note = "the default is the best found" if choice == default else f"the default is within {MARGIN:.0%} of the best found, or faster"
        if choice != default:
            with self._stage("verify"):
                error, _ = self.shop.worker.verify(self.part, *base)
        kept = None if error is None or self.interrupted else self._record(default, dataclasses.replace(result, best=result.base), error)
        return kept, result, note

    def _compared(self, default: tuple[Path, Workspace], winner: tuple[Path, Workspace]) -> Result | None:
        """The comparison, made again while it contradicts itself, a few times at most; None where a kernel does not run.

        Raises:
            Busy: as `Patience.wait`.
        """
        result = None
        for _ in range(1 if self.interrupted else _SITTINGS):
            if not self.interrupted:
                self._wait()
            with self._stage("measure"):
                result = contest(self.part, self.batch, self.shop.worker, default, winner)
            if result is None or not result.doubt:
                break
        return result

    def _record(self, choice: Choice, result: Result, error: float) -> logs.Record:
        template = schedules.find(choice.template)
        median, spread, base, floor = (1e6 * seconds for seconds in result.times)
        return logs.Record(
            spec=self.part.key, template=template.name, template_version=template.version, decisions=dict(choice.decisions), device=self.device.slug,
            median_us=median, spread_us=spread, default_us=base, floor_us=floor, error=error, provenance=self._provenance(),
        )  # fmt: skip

    def _provenance(self) -> dict[str, Any]:
        packages = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "version": "tvm-orient", "cuda": "nvidia-cuda-nvrtc"}
        device = self.device
        return {
            "gpu": device.name, "cc": device.arch, "units": device.units, **({"model": device.model} if device.model else {}),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "trials": len(self.done), "seed": self.seed, "batch": self.batch,
            **{name: _version(package) for name, package in packages.items()},
        }  # fmt: skip


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
