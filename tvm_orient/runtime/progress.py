"""Waiting for kernels: a bar on standard error where a terminal looks on, silence otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

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
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True, elapsed_when_finished=True))
    weights = {making: making.foreseen + _START_S for making in begun}
    with Progress(*columns, console=printer, transient=True) as bar:
        task = bar.add_task("", total=sum(weights.values()))
        while True:
            done = [making for making in begun if making.done]
            said = f"{len(done)} of {len(begun)} kernels ready"
            bar.update(task, completed=sum(weights[making] for making in done), description=said)
            if makings.current().wait(begun, _REDRAW_S) or makings.current().closed:
                return
