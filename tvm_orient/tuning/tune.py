"""Tuning finds the best decisions for each angle of a spec on this device, verifies them, and records them.

A layer is tuned angle by angle, and of two mirrored angles (a and 180 - a) one: records then serve every layer that has the angle. Every trial is
kept in a journal beside the logs, so that a run that was stopped goes on where it was. What is recorded is measured on a quiet machine, in turn.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from .. import env
from ..errors import InvalidArgument
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules import registry
from .angle_tuner import AngleTuner
from .builder import BuilderPool
from .quiet import Busy, Patience, alone
from .result import Interrupted, Outcome, Report, TooBusy
from .settings import Settings

WAIT_S = 120.0  # seconds that a run waits for other work to end, in all
_log = logging.getLogger(__name__)


def distinct_parts(spec: ConvSpec) -> list[ConvSpec]:
    """Returns the angles of a spec that need tuning, each as a spec of its own: one of each mirrored pair, in order."""
    parts: list[ConvSpec] = []
    for _, _, part in spec.plain.parts():
        if not any(known.taps in (part.taps, part.taps.mirrored) for known in parts):
            parts.append(part)
    return parts


def tune(
    spec: ConvSpec, device: Device, *, trials: int = 64, batch: int = 8, seed: int = 0, report: Report | None = None, directory: Path | None = None,
    shop: BuilderPool | None = None, restart: bool = False, wait: float = WAIT_S,
) -> list[Outcome]:  # fmt: skip
    """Tunes every distinct angle of a spec, and records each winner that is right and beats the untuned default; returns an outcome for each.

    Args:
        trials: candidates that are timed for each angle, >= 1.
        batch: the N that they are timed at, >= 1.
        seed: of the search; a run with the same seed and the same times proposes the same candidates.
        report: is told after each trial, and while the run waits.
        directory: the folder of the logs; None is the user's.
        shop: the builders to use, which are kept; None makes some for this call, which compile in this process.
        restart: forget what the journals hold of these angles at this batch, and measure all anew; records stay.
        wait: seconds to wait in all for other work on a CPU to end, >= 0.

    Raises:
        InvalidArgument: trials or batch < 1, or wait < 0.
        TooBusy: other work goes on after that wait; what was recorded before is kept.
        Unsupported: no template serves the spec.
        TuningFailed: not even the default runs.
        Interrupted: Ctrl-C, once what the current angle has found is recorded.
    """
    settings = Settings(trials, batch, seed, directory or env.user_log_dir(), report, restart)
    if not wait >= 0:
        raise InvalidArgument(f"wait must be seconds >= 0, got {wait!r}")
    parts = distinct_parts(spec)
    for part in parts:
        registry.default(part, device)  # refuses before any work
    outcomes: list[Outcome] = []
    patience = Patience(device, wait)
    with contextlib.ExitStack() as stack:
        shop = shop or stack.enter_context(BuilderPool(device))
        stack.enter_context(alone(device))
        for position, part in enumerate(parts):
            shop.clear()
            run = AngleTuner(part, device, shop, patience, settings, position, len(parts))
            try:
                outcomes.append(run.tune())
            except Busy as problem:  # before its first trial
                raise TooBusy(str(problem), outcomes) from problem
            except KeyboardInterrupt as stop:  # while it waited
                raise Interrupted(outcomes) from stop
            if run.busy or run.interrupted:
                raise TooBusy(run.busy, outcomes) if run.busy else Interrupted(outcomes)
    return outcomes
