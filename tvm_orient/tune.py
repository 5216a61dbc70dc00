"""Tune: find the best decisions for each angle of a spec on this device, verify them, and record them.

A layer is tuned angle by angle, and of two mirrored angles (a and 180 - a) one: records then serve every layer that has the
angle. Every trial is kept in a journal beside the logs, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import logging
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock

from . import logs, paths, schedules
from .device import Device
from .errors import BuildFailed, InvalidArgument, TuningFailed
from .journal import Journal
from .lower import Choice
from .schedules.base import Template
from .spec import ConvSpec
from .taps import Taps
from .workshop import Workshop, Workspace

MARGIN = 0.02  # a tuned choice must beat the default by this share in the same run
_ROUND = 8  # candidates between two fits of the cost model
_BUSY = 0.15  # share of the cores that others may use before what a CPU measures is noise
FINAL_RUNS = 5  # of the default and the winner, in turn


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


@dataclass(frozen=True)
class Outcome:
    """What one angle's tuning found."""

    part: ConvSpec  #: the angle
    record: logs.Record | None  #: None where the default won (the logs then say so)
    default_us: float | None  #: of the untuned choice
    best_us: float | None  #: of the fastest candidate
    trials: int  #: done
    failed: int  #: trials that did not build or run
    resumed: int  #: trials taken from the journal of an earlier run
    seconds: float  #: spent on this angle
    stages: dict[str, float]  #: seconds spent on build, measure, verify, search
    note: str  #: why there is no record, for people


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during tuning; outcomes: of the angles until then, the last one's as far as it came."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__()
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
    shop: Workshop | None = None,
) -> list[Outcome]:  # fmt: skip
    """Tune every distinct angle of a spec, and record each winner that is right and beats the untuned default.

    Args:
        trials: candidates that are timed for each angle, >= 1.
        batch: the N they are timed at, >= 1.
        report: told after each trial.
        directory: of the logs (default: the user's).
        shop: its processes are used and kept; None: one is made for this call, which compiles in this process.

    Raises:
        InvalidArgument: trials or batch < 1.
        Unsupported: no template serves the spec.
        TuningFailed: not even the default runs.
        Interrupted: Ctrl-C, once what the current angle has found is recorded.
    """
    for name, value in (("trials", trials), ("batch", batch)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"{name} must be a whole number >= 1, got {value!r}")
    parts = distinct_parts(spec)
    for part in parts:
        schedules.default(part, device)  # refuses before any work
    outcomes = []
    with contextlib.ExitStack() as stack:
        shop = shop or stack.enter_context(Workshop(device))
        stack.enter_context(_device_lock(device))
        _warn_if_busy(device)
        for position, part in enumerate(parts):
            shop.clear()
            run = _Run(part, device, shop, trials, batch, seed, directory or paths.user_log_dir(), report, position, len(parts))
            outcomes.append(run.tune())
            if run.interrupted:
                raise Interrupted(outcomes)
    return outcomes


def _warn_if_busy(device: Device) -> None:
    from .timers import others_busy

    busy = others_busy() if device.kind == "cpu" else None
    if busy is not None and busy > _BUSY:
        _log.warning("other work uses %.0f %% of this machine: what is measured now is noise; stop it, or tune later", 100 * busy)


@contextlib.contextmanager
def _device_lock(device: Device) -> Any:
    """One tuner a device at a time: two would measure each other."""
    path = Path(tempfile.gettempdir()) / f"tvm_orient-{os.getuid()}-{device.slug}-{device.index}.lock"
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning("another process is tuning on %s (it holds %s): waiting for it", device.slug, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Run:
    part: ConvSpec
    device: Device
    shop: Workshop
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

    def tune(self) -> Outcome:
        self.start = time.perf_counter()
        templates, _ = schedules.candidates(self.part, self.device)
        self.journal = Journal(self.directory, self.device, self.part, self.batch)
        default = Choice.of(*schedules.default(self.part, self.device))
        try:
            self._resume(templates)
            self.default_seconds = self._trial(default)
            for i, template in enumerate(templates):
                self._search(template, (self.trials - len(self.done)) // (len(templates) - i))
        except KeyboardInterrupt:
            self.interrupted = True
        return self._conclude(default)

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

        knobs, size = template.knobs(self.part, self.device), max(_ROUND, min(2 * _ROUND, self.shop.jobs))  # a round keeps every builder busy
        how: dict[str, Any] = {"target": target(self.device), "trials": enough + size, "round_size": size, "seed": self.seed, "ahead": ahead}
        try:
            search.search(knobs, valid, features, measure, **how)
        except search.Stopped as stopped:
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

    def _tell(self) -> None:
        if self.report is None:
            return
        seconds, measured = time.perf_counter() - self.start, len(self.done) - self.resumed
        each = seconds / max(1, measured)
        left = each * (self.trials - len(self.done) + self.trials * (self.parts - self.position - 1))
        best = min((s for _, s in self.done if s is not None), default=None)
        failed = sum(s is None for _, s in self.done)
        where = (self.position, self.parts, len(self.done), self.trials, failed)
        self.report(Progress(self.part, *where, _us(best), _us(self.default_seconds), seconds, max(0.0, left) if measured else None))

    def _conclude(self, default: Choice) -> Outcome:
        """Verify the best, measure it against the default in turn, and record it where it wins by the margin."""
        ranked = sorted(((s, c) for c, s in self.done if s is not None), key=lambda pair: pair[0])
        note, record, best, base = "", None, None, self.default_seconds
        failures = sum(s is None for _, s in self.done)
        if not ranked and not self.interrupted:
            raise TuningFailed(
                f"no candidate for {self.part} builds and runs on {self.device.slug}, not even the default: "
                f"run `tvm-orient doctor`; the journal {self.journal.path} says why"
            )
        for _, choice in ranked[:3]:
            if choice == default:
                note = "the default is the best found"
                break
            try:
                record, best, base, note = self._final(choice, default)
            except BuildFailed as problem:
                note = str(problem)
                continue
            if not note.startswith("wrong"):
                break
        kept = record
        if record is None and not self.interrupted and not note.startswith("wrong"):
            kept = self._default_record(default)
        if kept is not None:
            logs.append(kept, self.directory)
        total = time.perf_counter() - self.start
        stages = {**self.stages, "search": total - sum(self.stages.values())}
        fastest = best if best is not None else ranked[0][0] if ranked else None
        return Outcome(self.part, record, _us(base), _us(fastest), len(self.done), failures, self.resumed, total, stages, note)

    def _default_record(self, default: Choice) -> logs.Record | None:
        """That the default won here: without it a record of the nearest shape would answer. None where it does not build, run or pass."""
        try:
            kernel, workspace = self._built(default)
        except BuildFailed:
            return None
        with self._stage("verify"):
            error, _ = self.shop.worker.verify(self.part, kernel, workspace)
        with self._stage("measure"):
            timing = self.shop.worker.time(self.part, self.batch, kernel, workspace)
            floor = self.shop.worker.copy_seconds(self.part.bytes_moved(self.batch))
        if error is None or timing.median is None:
            return None
        return self._record(default, timing.median, timing.spread, timing.median, floor, error)

    def _final(self, choice: Choice, default: Choice) -> tuple[logs.Record | None, float | None, float | None, str]:
        kernel, workspace = self._built(choice)
        with self._stage("verify"):
            error, wrong = self.shop.worker.verify(self.part, kernel, workspace)
        if error is None:
            return None, None, self.default_seconds, f"wrong: {dict(choice.decisions)}: {wrong}"
        base_kernel, base_workspace = self._built(default)
        ours: list[float] = []
        theirs: list[float] = []
        spreads: list[float] = []
        with self._stage("measure"):
            for _ in range(FINAL_RUNS):
                for kept, library, space in ((theirs, base_kernel, base_workspace), (ours, kernel, workspace)):
                    timing = self.shop.worker.time(self.part, self.batch, library, space)
                    if timing.median is not None:
                        kept.append(timing.median)
                        if kept is ours:
                            spreads.append(timing.spread)
            floor = self.shop.worker.copy_seconds(self.part.bytes_moved(self.batch))
        if not ours or not theirs:
            return None, None, self.default_seconds, "the winner did not run a second time"
        best, base = statistics.median(ours), statistics.median(theirs)
        if best > base * (1 - MARGIN):
            return None, best, base, f"the default is within {MARGIN:.0%} of the best found"
        return self._record(choice, best, statistics.median(spreads), base, floor, error), best, base, ""

    def _record(self, choice: Choice, best: float, spread: float, base: float, floor: float, error: float) -> logs.Record:
        template = schedules.find(choice.template)
        return logs.Record(
            spec=self.part.key, template=template.name, template_version=template.version, decisions=dict(choice.decisions), device=self.device.slug,
            median_us=best * 1e6, spread_us=spread * 1e6, default_us=base * 1e6, floor_us=floor * 1e6, error=error, provenance=self._provenance(),
        )  # fmt: skip

    def _provenance(self) -> dict[str, Any]:
        packages = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "version": "tvm-orient", "cuda": "nvidia-cuda-nvrtc"}
        return {
            "gpu": self.device.name,
            "cc": self.device.arch,
            "units": self.device.units,
            **({"model": self.device.model} if self.device.model else {}),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "trials": len(self.done),
            "seed": self.seed,
            "batch": self.batch,
            **{name: _version(package) for name, package in packages.items()},
        }


def _us(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e6


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
