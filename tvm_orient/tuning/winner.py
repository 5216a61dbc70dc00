"""The end of a tuning run for one angle: its fastest candidates are verified, compared with the default, and what won is recorded."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BuildFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..records.record import Record
from ..schedules.choices import Choice
from ..toolchain import versions
from .builder import BuilderPool, Workspace
from .contest import Result, contest, noise
from .settings import Settings
from .stages import Stages

MARGIN = 0.02  # share by which a tuned choice must beat the default in the same run
_MAX_FINALISTS = 3  # candidates that are verified at most, the fastest first, where the ones before were wrong
_MAX_SITTINGS = 3  # times that a comparison which contradicts itself is made at most


@dataclass(frozen=True)
class Verdict:
    """The outcome of the last comparison of one angle."""

    record: Record | None = None  #: what is to be written: the winner, or the default where it won; None where neither is certain
    result: Result | None = None  #: the comparison; None where none was made or a kernel did not run
    note: str = ""  #: why the winner is not in the record, for people

    @property
    def doubt(self) -> str:
        """Why the times could not be believed; empty where they could."""
        return self.result.doubt if self.result else ""


@dataclass
class Judge:
    """Verifies and compares the fastest candidates of a search, and makes the record of what won."""

    part: ConvSpec  #: the angle, alone
    device: Device
    shop: BuilderPool
    stages: Stages
    settings: Settings
    wait: Callable[[], None]  #: returns once the machine is quiet, else raises Busy
    trials: int  #: how many were done
    interrupted: bool  #: Ctrl-C ended the search: the comparison is made once, without waiting

    def verdict(self, ranked: Sequence[tuple[float, Choice]], default: Choice, default_seconds: float | None) -> Verdict:
        """Returns what the comparison of the first right candidate with the default came to.

        Args:
            ranked: (seconds in the search, choice) of the candidates that ran, the fastest first.
            default: the choice that the template makes untuned.
            default_seconds: what it took in the search; None where it did not run.

        Raises:
            Busy: other work outlasted the wait.
        """
        verdict = Verdict()
        for seconds, choice in ranked[:_MAX_FINALISTS]:
            try:
                verdict = self._compared_with_default(choice, seconds, default, default_seconds)
            except BuildFailed as problem:
                verdict = Verdict(note=str(problem))
                continue
            if not verdict.note.startswith("wrong"):
                break
        return verdict

    def _compared_with_default(self, choice: Choice, searched: float, default: Choice, default_seconds: float | None) -> Verdict:
        """Returns the verdict on one candidate; where the default wins the record is its own, without which that of a near shape would answer.

        Raises:
            BuildFailed, Busy: as they say.
        """
        with self.stages.within("build"):
            kernel, base = self.shop.built(self.part, choice), self.shop.built(self.part, default)
        with self.stages.within("verify"):
            error, wrong = self.shop.worker.verify(self.part, *kernel)
        if error is None:
            return Verdict(note=f"wrong: {choice.by_name}: {wrong}")
        result = self._result(base, kernel)
        if result is None:
            return Verdict(note="the winner did not run a second time")
        doubt = result.doubt or noise("the default", default_seconds, result.base) or noise("the winner", searched, result.best)
        if doubt:
            return Verdict(result=dataclasses.replace(result, doubt=doubt))
        if choice != default and result.won(MARGIN):
            return Verdict(self._record(choice, result, error), result)
        note = "the default is the best found" if choice == default else f"the default is within {MARGIN:.0%} of the best found, or faster"
        if choice != default:
            with self.stages.within("verify"):
                error, _ = self.shop.worker.verify(self.part, *base)
        kept = None if error is None or self.interrupted else self._record(default, dataclasses.replace(result, best=result.base), error)
        return Verdict(kept, result, note)

    def _result(self, default: tuple[Path, Workspace], winner: tuple[Path, Workspace]) -> Result | None:
        """Returns the comparison, made again while it contradicts itself, a few times at most; None where a kernel does not run.

        Raises:
            Busy: other work outlasted the wait.
        """
        result = None
        for _ in range(1 if self.interrupted else _MAX_SITTINGS):
            if not self.interrupted:
                self.wait()
            with self.stages.within("measure"):
                result = contest(self.part, self.settings.batch, self.shop.worker, default, winner)
            if result is None or not result.doubt:
                break
        return result

    def _record(self, choice: Choice, result: Result, error: float) -> Record:
        median, spread, base, floor = (1e6 * seconds for seconds in result.times)
        return Record(
            spec=self.part.key, template=choice.template, template_version=choice.version, decisions={**choice.by_name}, device=self.device.slug,
            median_us=median, spread_us=spread, default_us=base, floor_us=floor, error=error, provenance=self._provenance(),
        )  # fmt: skip

    def _provenance(self) -> dict[str, Any]:
        """Returns what a record keeps of the machine and the run that it was made by."""
        device = self.device
        return {
            "gpu": device.name, "cc": device.arch, "units": device.units, **({"model": device.model} if device.model else {}),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "trials": self.trials, "seed": self.settings.seed,
            "batch": self.settings.batch, **versions.provenance(),
        }  # fmt: skip
