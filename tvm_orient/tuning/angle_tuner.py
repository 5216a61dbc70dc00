"""One angle tuned: searched, verified, judged and recorded."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BuildFailed, TuningFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..records import store
from ..records.record import Record
from ..schedules import registry
from ..schedules.base import Template
from ..schedules.choices import Choice
from ..toolchain import versions
from .builder import BuilderPool, Workspace
from .journal import Journal
from .quiet import Busy, Patience
from .result import Outcome, Progress, Report, in_microseconds
from .winner import Result, contest, noise

MARGIN = 0.02  # a tuned choice must beat the default by this share in the same run
_ROUND = 8  # candidates between two fits of the cost model
_SITTINGS = 3  # times that a comparison which contradicts itself is made


@dataclass
class AngleTuner:
    part: ConvSpec
    device: Device
    shop: BuilderPool
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
        templates, _ = registry.candidates(self.part, self.device)
        self.journal = Journal(self.directory, self.device, self.part, self.batch)
        default = Choice.of(*registry.default(self.part, self.device))
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

    def _resume(self, templates: Sequence[Template[Any]]) -> None:
        """Take over the trials of earlier runs that are still valid."""
        for name, version, decisions, seconds in self.journal.entries():
            template = next((t for t in templates if (t.name, t.version) == (name, version)), None)
            if template is not None and template.invalid(self.part, self.device, decisions) is None:
                self.done.append((Choice.of(template, template.config(decisions)), seconds))
        self.resumed = len(self.done)

    def _search(self, template: Template[Any], budget: int) -> None:
        """Measure up to `budget` candidates that are new; the model learns from the old ones as the search meets them."""
        if budget < 1:
            return
        from ..toolchain.tvm import target
        from . import search

        def valid(decisions: dict[str, int]) -> bool:
            return template.invalid(self.part, self.device, decisions) is None

        def features(decisions: dict[str, int]) -> Sequence[float]:
            return [math.log2(1 + value) for _, value in sorted(decisions.items())]

        enough = len(self.done) + budget

        def measure(decisions: dict[str, int]) -> float | None:
            if len(self.done) >= enough:
                raise search.Stopped
            return self._trial(Choice.of(template, template.config(decisions)))

        def ahead(proposed: list[dict[str, int]]) -> None:
            known = {choice for choice, _ in self.done}
            new = [choice for decisions in proposed if (choice := Choice.of(template, template.config(decisions))) not in known]
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
        self.report(
            Progress(self.part, *where, in_microseconds(best), in_microseconds(self.default_seconds), seconds, max(0.0, left) if measured else None, waiting)
        )

    def _conclude(self, default: Choice) -> Outcome:
        """Verify the best, compare it with the default in turn, and record what won; nothing where the times are noise."""
        ranked = sorted(((s, c) for c, s in self.done if s is not None), key=lambda pair: pair[0])
        failures = sum(s is None for _, s in self.done)
        if not ranked and not self.interrupted and not self.busy:
            raise TuningFailed(
                f"no candidate for {self.part} builds and runs on {self.device.slug}, not even the default: "
                f"run `tvm-orient doctor`; the journal {self.journal.path} says why"
            )
        kept: Record | None = None
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
        written = None if kept is None else store.append(kept, self.directory)
        best, base = (result.best, result.base) if result else (ranked[0][0] if ranked else None, self.default_seconds)
        total = time.perf_counter() - self.start
        stages = {**self.stages, "search": total - sum(self.stages.values())}
        record, note = (None if note else kept), (f"not recorded: {doubt}" if doubt else note)
        numbers = (len(self.done), failures, self.resumed, total, stages)
        return Outcome(self.part, record, in_microseconds(base), in_microseconds(best), *numbers, note, written, self.journal.path, doubt)

    def _final(self, choice: Choice, default: Choice, searched: float) -> tuple[Record | None, Result | None, str]:
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

    def _record(self, choice: Choice, result: Result, error: float) -> Record:
        template = registry.find(choice.template)
        median, spread, base, floor = (1e6 * seconds for seconds in result.times)
        return Record(
            spec=self.part.key, template=template.name, template_version=template.version, decisions=dict(choice.decisions), device=self.device.slug,
            median_us=median, spread_us=spread, default_us=base, floor_us=floor, error=error, provenance=self._provenance(),
        )  # fmt: skip

    def _provenance(self) -> dict[str, Any]:
        device = self.device
        return {
            "gpu": device.name, "cc": device.arch, "units": device.units, **({"model": device.model} if device.model else {}),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "trials": len(self.done), "seed": self.seed, "batch": self.batch,
            **versions.provenance(),
        }  # fmt: skip
