"""One angle tuned: its candidates are searched on a quiet machine, each trial is kept in the journal, and the fastest are judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import BuildFailed, TuningFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..records import store
from ..schedules import registry
from ..schedules.base import Template
from ..schedules.choices import Choice
from .builder import BuilderPool
from .journal import Journal
from .quiet import Busy, Patience
from .result import Outcome, Progress, in_microseconds
from .settings import Settings
from .stages import Stages
from .winner import Judge, Verdict

_ROUND = 8  # candidates between two fits of the cost model, at least


@dataclass
class AngleTuner:
    """One angle of a tuning run: the trials that were done, and how the search ended."""

    part: ConvSpec  #: the angle, alone
    device: Device
    shop: BuilderPool  #: compiles candidates and measures them
    patience: Patience  #: what is left of the time to wait for other work
    settings: Settings
    position: int  #: the angle's place in the run, from 0
    parts: int  #: how many angles the run has
    stages: Stages = field(default_factory=Stages)
    done: list[tuple[Choice, float | None]] = field(default_factory=list)  #: (choice, seconds or None where it failed), in order
    resumed: int = 0  #: how many of them are an earlier run's
    default_seconds: float | None = None  #: of the untuned choice
    interrupted: bool = False  #: Ctrl-C ended the search
    busy: str = ""  #: that other work outlasted the wait, once trials had begun

    def tune(self) -> Outcome:
        """Searches, and returns what the search and the last comparison came to.

        Raises:
            Busy: other work outlasted the wait before the first trial.
            TuningFailed: not even the default runs.
        """
        templates, _ = registry.candidates(self.part, self.device)
        self.journal = Journal(self.settings.directory, self.device, self.part, self.settings.batch)
        default = Choice.of(*registry.default(self.part, self.device))
        self._wait()
        if self.settings.restart:
            self.journal.forget()
        try:
            self._resume(templates)
            self.default_seconds = self._trial(default)
            for i, template in enumerate(templates):
                self._search(template, (self.settings.trials - len(self.done)) // (len(templates) - i))
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
        self.patience.wait(None if self.settings.report is None else lambda share, left: self._tell((share, left)))

    def _resume(self, templates: Sequence[Template[Any]]) -> None:
        """Takes over the trials of earlier runs that are still valid."""
        for choice, seconds in self.journal.entries():
            template = next((t for t in templates if (t.name, t.version) == (choice.template, choice.version)), None)
            if template is not None and template.invalid(self.part, self.device, choice.by_name) is None:
                self.done.append((choice, seconds))
        self.resumed = len(self.done)

    def _search(self, template: Template[Any], budget: int) -> None:
        """Measures up to `budget` candidates that are new; the model learns from the old ones as the search meets them."""
        if budget < 1:
            return
        from ..toolchain.tvm import target
        from . import search

        enough = len(self.done) + budget
        busy: list[Busy] = []

        def measure(decisions: dict[str, int]) -> float | None:
            if len(self.done) >= enough:
                raise search.Stopped
            return self._trial(Choice.of(template, template.config(decisions)))

        def ahead(proposed: list[dict[str, int]]) -> None:
            known = {choice for choice, _ in self.done}
            new = [choice for decisions in proposed if (choice := Choice.of(template, template.config(decisions))) not in known]
            with self.stages.within("build"):
                self.shop.prepare(self.part, new[: max(0, enough - len(self.done))])
            try:
                self._wait()
            except Busy as problem:
                busy.append(problem)
                raise search.Stopped from problem

        knobs = template.knobs(self.part, self.device)
        space = search.Space(knobs, lambda decisions: template.invalid(self.part, self.device, decisions) is None, _features)
        size = max(_ROUND, min(2 * _ROUND, self.shop.jobs))  # a round keeps every builder busy
        try:
            search.search(space, measure, target=target(self.device), trials=enough + size, round_size=size, seed=self.settings.seed, ahead=ahead)
        except search.Stopped as stopped:
            if busy:
                raise busy[0] from stopped
            if len(self.done) < enough:
                raise KeyboardInterrupt from stopped

    def _trial(self, choice: Choice) -> float | None:
        """Returns the seconds of a choice: from this run, from the journal, or measured now; None where it fails."""
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
            with self.stages.within("build"):
                kernel, workspace = self.shop.built(self.part, choice)
        except BuildFailed as problem:
            return None, str(problem)
        with self.stages.within("measure"):
            timing = self.shop.worker.time(self.part, self.settings.batch, kernel, workspace)
        return timing.median, timing.error

    def _tell(self, waiting: tuple[float, float] | None = None) -> None:
        if self.settings.report is None:
            return
        seconds, measured, trials = self.stages.total, len(self.done) - self.resumed, self.settings.trials
        each = seconds / max(1, measured)
        left = each * (trials - len(self.done) + trials * (self.parts - self.position - 1))
        best = min((s for _, s in self.done if s is not None), default=None)
        failed = sum(s is None for _, s in self.done)
        where = (self.position, self.parts, len(self.done), trials, failed)
        times = (in_microseconds(best), in_microseconds(self.default_seconds), seconds, max(0.0, left) if measured else None)
        self.settings.report(Progress(self.part, *where, *times, waiting))

    def _conclude(self, default: Choice) -> Outcome:
        """Has the best judged, and records what won; nothing where the times are noise."""
        ranked = sorted(((s, c) for c, s in self.done if s is not None), key=lambda pair: pair[0])
        if not ranked and not self.interrupted and not self.busy:
            raise TuningFailed(
                f"no candidate for {self.part} builds and runs on {self.device.slug}, not even the default: "
                f"run `tvm-orient doctor`; the journal {self.journal.path} says why"
            )
        verdict = Verdict()
        if not self.busy:
            judge = Judge(self.part, self.device, self.shop, self.stages, self.settings, self._wait, len(self.done), self.interrupted)
            try:
                verdict = judge.verdict(ranked, default, self.default_seconds)
            except Busy as problem:
                self.busy = str(problem)
        doubt, result = self.busy or verdict.doubt, verdict.result
        written = None if verdict.record is None else store.append(verdict.record, self.settings.directory)
        best, base = (result.best, result.base) if result else (ranked[0][0] if ranked else None, self.default_seconds)
        total = self.stages.total
        numbers = (len(self.done), sum(s is None for _, s in self.done), self.resumed, total, self.stages.shares(total))
        record, note = (None if verdict.note else verdict.record), (f"not recorded: {doubt}" if doubt else verdict.note)
        return Outcome(self.part, record, in_microseconds(base), in_microseconds(best), *numbers, note, written, self.journal.path, doubt)


def _features(decisions: dict[str, int]) -> Sequence[float]:
    """Returns what the cost model sees of a candidate: the logarithms of its knobs, by name."""
    return [math.log2(1 + value) for _, value in sorted(decisions.items())]
