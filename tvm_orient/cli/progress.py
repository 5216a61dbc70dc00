"""The board of a tuning run: a live table in a terminal, now and then a line elsewhere, and a gentle Ctrl-C."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..problem.spec import ConvSpec
from .application import complain
from .output import QUIET_S, angle, duration, microseconds, speedup, table

if TYPE_CHECKING:
    from ..tuning.result import Progress

_STOPPING = "stopping after this trial; Ctrl-C again stops at once"


class Board:
    """Shows each Progress that `report` is given for these parts of a spec; a context that owns the terminal while it lasts.

    There the first Ctrl-C makes the next report raise KeyboardInterrupt, so that the trial that is running is kept, and so that
    the interrupt does not come up inside TVM or an import, which make other errors of it; the second one raises at once.
    """

    def __init__(self, parts: Sequence[ConvSpec], printer: Console) -> None:
        self.parts, self.printer = parts, printer
        self.latest: dict[ConvSpec, Progress] = {}
        self.current: Progress | None = None
        self.said = 0.0
        self.stopping = False
        self.live = Live(get_renderable=self.table, console=printer, refresh_per_second=4, transient=True) if printer.is_terminal else None

    def __enter__(self) -> Board:
        self.before = signal.signal(signal.SIGINT, self._interrupted)
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        signal.signal(signal.SIGINT, self.before)
        if self.live:
            self.live.stop()

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True
        if self.live is None:
            complain(_STOPPING)

    def report(self, progress: Progress) -> None:
        """Takes in what a tuning run says.

        Raises:
            KeyboardInterrupt: somebody pressed Ctrl-C before.
        """
        new = progress.part not in self.latest or (progress.waiting is None) != (self.current is None or self.current.waiting is None)
        done = progress.trial >= progress.trials and progress.waiting is None
        self.latest[progress.part] = self.current = progress
        if self.live is None and (new or done or time.monotonic() - self.said > QUIET_S):
            self.said = time.monotonic()
            self.printer.print(_line(progress), soft_wrap=True)
        if self.stopping:
            raise KeyboardInterrupt

    def table(self) -> Table:
        """Returns one row per angle."""
        numbers = ("trials", "failed", "best so far", "default", "vs default", "time")
        rows = table("angle", "", *numbers, right=numbers)
        for part in self.parts:
            seen = self.latest.get(part)
            if seen is None:
                rows.add_row(Text(angle(part.taps), style="dim"), ProgressBar(1, 0, width=16))
                continue
            over = seen is not self.current or seen.trial >= seen.trials  # a small space is searched before the trials are spent
            better = bool(seen.best_us and seen.default_us and seen.best_us < seen.default_us)
            rows.add_row(
                angle(part.taps),
                ProgressBar(seen.trials, seen.trials if over else seen.trial, width=16),
                f"{seen.trial}/{seen.trials}",
                Text(str(seen.failed), style="yellow" if seen.failed else "dim"),
                microseconds(seen.best_us),
                microseconds(seen.default_us),
                Text(speedup(seen.default_us, seen.best_us), style="green" if better else ""),
                duration(seen.seconds),
            )
        left = None if self.current is None else self.current.seconds_left
        waiting = None if self.current is None else self.current.waiting
        if self.stopping or waiting or left is not None:
            rows.caption = Text(
                _STOPPING if self.stopping else _waits(*waiting) if waiting else f"about {duration(left)} left", style="" if self.stopping else "dim"
            )
            rows.caption_justify = "right"
        return rows


def _waits(share: float, left: float) -> str:
    return f"other work uses {share:.0%} of the cores: waiting for it to end, {duration(left)} at most"


def _line(seen: Progress) -> str:
    if seen.waiting:
        return f"{seen.part.op} {angle(seen.part.taps)} ({seen.position + 1} of {seen.parts}): {_waits(*seen.waiting)}"
    failed = f", {seen.failed} failed" if seen.failed else ""
    found = "" if seen.best_us is None else f", best {microseconds(seen.best_us)}"
    gain = f", {speedup(seen.default_us, seen.best_us)} as fast as the default" if seen.best_us and seen.default_us else ""
    left = "" if seen.seconds_left is None else f", about {duration(seen.seconds_left)} left"
    return f"{seen.part.op} {angle(seen.part.taps)} ({seen.position + 1} of {seen.parts}): trial {seen.trial}/{seen.trials}{failed}{found}{gain}{left}"
