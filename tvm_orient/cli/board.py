"""The board of a tuning run: a live table in a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..spec import ConvSpec
from .output import angle, duration, microseconds, speedup, table

if TYPE_CHECKING:
    from ..tune import Progress

_QUIET = 10.0  # seconds between lines where there is no terminal


class Board:
    """Shows each Progress that `report` is given; a context that owns the terminal while it lasts."""

    def __init__(self, specs: Sequence[ConvSpec], trials: int, printer: Console) -> None:
        self.parts = list(dict.fromkeys(part for spec in specs for _, _, part in spec.parts()))
        self.several = len({part.op for part in self.parts}) > 1
        self.trials, self.printer = trials, printer
        self.latest: dict[ConvSpec, Progress] = {}
        self.said = 0.0
        self.live = Live(get_renderable=self.table, console=printer, refresh_per_second=4, transient=True) if printer.is_terminal else None

    def __enter__(self) -> Board:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None) -> None:
        if self.live:
            self.live.stop()

    def report(self, progress: Progress) -> None:
        """Takes in what a tuning run says."""
        new, done = progress.part not in self.latest, progress.trial >= progress.trials
        self.latest[progress.part] = progress
        if progress.part not in self.parts:
            self.parts.append(progress.part)
        if self.live is None and (new or done or time.monotonic() - self.said > _QUIET):
            self.said = time.monotonic()
            self.printer.print(self._line(progress), soft_wrap=True)

    def name(self, part: ConvSpec) -> str:
        """An angle, with its op where there are several."""
        return f"{part.op} {angle(part.taps)}" if self.several else angle(part.taps)

    def table(self) -> Table:
        """One row per angle."""
        rows = table("angle", "", "trials", "failed", "best so far", "default", "default/best", "time left", right=("trials", "failed", "best so far", "default", "default/best", "time left"))
        for part in self.parts:
            seen = self.latest.get(part)
            if seen is None:
                rows.add_row(Text(self.name(part), style="dim"), ProgressBar(1, 0, width=16), *[Text("", style="dim")] * 6)
                continue
            gain = speedup(seen.default_us, seen.best_us)
            better = bool(seen.best_us and seen.default_us and seen.best_us < seen.default_us)
            left = "done" if seen.trial >= seen.trials else duration(seen.seconds_left)
            bar = ProgressBar(seen.trials, seen.trial, width=16)
            times = (microseconds(seen.best_us), microseconds(seen.default_us), Text(gain, style="green" if better else ""))
            rows.add_row(self.name(part), bar, f"{seen.trial}/{seen.trials}", Text(str(seen.failed), style="yellow" if seen.failed else "dim"), *times, left)
        return rows

    def _line(self, seen: Progress) -> str:
        failed = f", {seen.failed} failed" if seen.failed else ""
        left = "" if seen.seconds_left is None else f", {duration(seen.seconds_left)} left"
        found = f"best {microseconds(seen.best_us)}, default {microseconds(seen.default_us)}, {speedup(seen.default_us, seen.best_us)}"
        return f"[{seen.position + 1}/{seen.parts}] {self.name(seen.part)}: trial {seen.trial}/{seen.trials}{failed}, {found}{left}"
