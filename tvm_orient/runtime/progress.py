"""Waiting for kernels: a bar on standard error where a terminal looks on, silence otherwise."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from . import makings
from .makings import Declined, Making

_REDRAW_S = 0.2  # seconds between two looks at what is done
_START_S = 1.0  # seconds that are foreseen for every kernel beside its compiling, so that none counts for nothing


def wait_for(begun: Sequence[Making], printer: Console | None = None) -> None:
    """Waits until makings are done; shows how many are, and about how long the others take, where a terminal looks on.

    Args:
        printer: None is standard error.

    Raises:
        OrientError: one of them failed; the first in their order.
    """
    queue, printer = makings.current(), printer or Console(stderr=True)
    try:
        if not queue.wait(begun, _REDRAW_S):
            if printer.is_terminal:
                _show(begun, printer)
            else:
                queue.wait(begun)
    finally:
        queue.release(begun)  # after Ctrl-C nobody waits for the rest
    for making in begun:
        if making.problem is not None and not isinstance(making.problem, Declined):
            raise making.problem


def _show(begun: Sequence[Making], printer: Console) -> None:
    """Shows a bar until all are done."""
    weights = {making: making.foreseen + _START_S for making in begun}
    total, start = sum(weights.values()), time.monotonic()
    with Progress(TextColumn("{task.description}"), BarColumn(), console=printer, transient=True) as bar:
        task = bar.add_task("", total=total)
        while True:
            ready = [making for making in begun if making.done]
            done = sum(weights[making] for making in ready)
            left = f", about {(time.monotonic() - start) * (total - done) / done:.0f} s left" if done else ""
            bar.update(task, completed=done, description=f"{len(ready)} of {len(begun)} kernels ready{left}")
            if makings.current().wait(begun, _REDRAW_S) or makings.current().closed:
                return
