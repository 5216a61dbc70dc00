"""Bars of measured times."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import InvalidArgument
from .style import BLUE, GREY, INK, new_figure, save_figure

if TYPE_CHECKING:
    pass


def speed_png(rows: Iterable[tuple[str, float, bool]], path: str | Path) -> None:
    """Draws, as PNG, horizontal bars of time, whose labels give each time as a multiple of our best.

    Args:
        rows: (label, milliseconds, whether it is ours) of each bar.
        path: where the picture goes.

    Raises:
        EnvironmentProblem: no matplotlib.
        InvalidArgument: no rows, a time that is not positive, or no such folder.
    """
    bars = list(rows)
    if not bars:
        raise InvalidArgument("rows must hold at least one (label, milliseconds, is_ours), got none")
    for label, milliseconds, _ in bars:
        if not (math.isfinite(milliseconds) and milliseconds > 0):
            raise InvalidArgument(f"milliseconds must be finite and positive, got {milliseconds!r} for {label!r}")
    best = min([time for _, time, ours in bars if ours] or [time for _, time, _ in bars])
    figure = new_figure(8.0, 0.42 * len(bars) + 0.75)
    axis = figure.subplots()
    places = np.arange(len(bars))
    axis.barh(places, [time for _, time, _ in bars], height=0.68, color=[BLUE if ours else GREY for *_, ours in bars])
    for place, (_, time, ours) in zip(places, bars, strict=True):
        text = f"{_three_digits(time)} ms" + ("" if ours and time == best else f"   {_three_digits(time / best)}x")
        weight = "bold" if ours else "normal"
        axis.annotate(text, (time, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5, color=INK, weight=weight)
    axis.set_yticks(places, [label for label, *_ in bars], fontsize=10)
    for tick, (*_, ours) in zip(axis.get_yticklabels(), bars, strict=True):
        tick.set(color=BLUE if ours else INK, weight="bold" if ours else "normal")
    axis.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, 1.22 * max(time for _, time, _ in bars)))
    axis.set_xlabel("milliseconds, and as a multiple of our best", fontsize=9.5, color=INK)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    save_figure(figure, path)


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"
