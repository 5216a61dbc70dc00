"""Pictures: taps in a terminal or a figure, oriented responses of a photograph, bars of measured times.

Figures are drawn on matplotlib's Agg canvas alone: no window, no pyplot, no global setting touched.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import InvalidArgument
from ...problem.labels import asked_text
from ...problem.line_offsets import Offset
from ...problem.taps import Taps
from .style import INK, ORANGE, PALE, Table, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
_TEXT_ROWS = 64  # of one drawing in a terminal
_GRID_PIXELS = 64  # across; beyond it the lines between pixels would be all there is to see


# ---- taps in a terminal -------------------------------------------------------------------------


def taps_text(taps: Taps, width: int | None = None, degrees: Sequence[float] = ()) -> str:
    """Returns the taps over the pixel grid, for a terminal: one grid per group, side by side where they fit in width columns.

    A digit is the number of taps on that pixel (+ from ten on), brackets mark the centre. Groups with the same taps
    share a grid. Taps that reach too far are drawn on cells of several pixels.

    Args:
        taps: of one group or several.
        width: columns; None is the terminal's.
        degrees: the angle that was asked for, for each group. Where they are left out a grid is named by the round angle that has its taps.

    Raises:
        InvalidArgument: not as many angles as groups.
    """
    width = max(20, shutil.get_terminal_size().columns if width is None else width)
    lowest, highest = _box(taps)
    spans = [hi - lo + 1 for lo, hi in zip(lowest, highest, strict=True)]
    cell = max(1, -(-spans[0] // _TEXT_ROWS), -(-spans[1] // (width // 2 - 1)))
    blocks = [_text_block(table, name, _cell_of(lowest, cell), _cell_of(highest, cell), cell) for table, (name, _) in _named(taps, " deg", degrees).items()]
    across = max(1, (width + 3) // (max(len(block[0]) for block in blocks) + 3))
    rows = [_beside(blocks[start : start + across]) for start in range(0, len(blocks), across)]
    return "\n\n".join(rows)


def _text_block(table: Table, name: str, lowest: Offset, highest: Offset, cell: int) -> list[str]:
    counts: dict[Offset, int] = {}
    for offset in table:
        place = _cell_of(offset, cell)
        counts[place] = counts.get(place, 0) + 1
    lines = [name, f"{len(set(table))} of {len(table)} taps distinct"]
    lines += [f"1 cell = {cell} x {cell} pixels"] if cell > 1 else []
    for h in range(lowest[0], highest[0] + 1):
        marks = [_mark(counts.get((h, w), 0)) for w in range(lowest[1], highest[1] + 1)]
        line = list(" " + " ".join(marks) + " ")
        if h == 0:
            line[-2 * lowest[1]], line[-2 * lowest[1] + 2] = "[", "]"
        lines.append("".join(line))
    widest = max(map(len, lines))
    return [line.ljust(widest) for line in lines]


def _mark(count: int) -> str:
    return "." if count == 0 else str(count) if count < 10 else "+"


def _cell_of(offset: Offset, cell: int) -> Offset:
    return (offset[0] + cell // 2) // cell, (offset[1] + cell // 2) // cell


def _beside(blocks: list[list[str]]) -> str:
    return "\n".join("   ".join(parts).rstrip() for parts in zip(*blocks, strict=True))


# ---- what drawings of taps share ----------------------------------------------------------------


def _named(taps: Taps, unit: str, degrees: Sequence[float]) -> dict[Table, tuple[str, float | None]]:
    """Returns the different tables in order, each with its name and its angle.

    The name says its groups, the angle that was asked for and that of its key. The angle is None for free offsets.
    """
    if len(degrees) not in (0, taps.groups):
        raise InvalidArgument(f"degrees must be one angle for each of {taps.groups} groups, got {len(degrees)}")
    found: dict[Table, list[int]] = {}
    for g, table in enumerate(taps.table):
        found.setdefault(table, []).append(g)
    names = {}
    for table, groups in found.items():
        line, asked = _line(table), [degrees[g] for g in groups] if degrees else []
        what = "free offsets" if line is None else asked_text(asked, line[0], unit)
        whose = f"group {groups[0]}" if len(groups) == 1 else f"{len(groups)} groups"
        names[table] = (what if len(found) == 1 else f"{whose}: {what}", None if line is None else asked[0] if asked else line[0])
    return names


def _box(taps: Taps) -> tuple[Offset, Offset]:
    """Returns the least and greatest (dh, dw) of all groups and of the centre."""
    rows, columns = zip((0, 0), *(offset for table in taps.table for offset in table), strict=True)
    return (min(rows), min(columns)), (max(rows), max(columns))


def _line(table: Table) -> tuple[float, int, int] | None:
    """Returns the angle in degrees and the first and last distance of the line whose truncation the table is; None where the key names no angle."""
    named = Taps((table,)).lines
    if named is None:
        return None
    first = 0 if named.anchor == "start" else -(len(table) // 2)
    return named.degrees[0], first * named.dilation, (first + len(table) - 1) * named.dilation


# ---- figures ------------------------------------------------------------------------------------


def taps_png(taps: Taps, path: str | Path, degrees: Sequence[float] = ()) -> None:
    """Draws the taps over the pixel grid, as PNG: one panel per different group, the ideal line, colour from the first tap to the last.

    A number on a pixel is how many taps landed there.

    Args:
        taps: of one group or several.
        path: of the PNG.
        degrees: the angle that was asked for, for each group, as `taps_text`; the lines are drawn along them.

    Raises:
        EnvironmentProblem: no matplotlib.
        InvalidArgument: the folder of path does not exist, or not as many angles as groups.
    """
    names = _named(taps, "°", degrees)
    lowest, highest = _surroundings(*_box(taps))
    rows, columns = highest[0] - lowest[0] + 1, highest[1] - lowest[1] + 1
    across = min(4, len(names))
    down = -(-len(names) // across)
    pixel = (5.0 if len(names) == 1 else 3.4) / max(rows, columns)  # inches
    figure = new_figure(across * max(1.6, pixel * columns) + 1.0, down * (pixel * rows + 0.55) + 0.1)
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, (table, (name, angle)) in zip(axes.flat, names.items(), strict=False):
        axis.set(xlim=(lowest[1] - 0.5, highest[1] + 0.5), ylim=(highest[0] + 0.5, lowest[0] - 0.5), aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"{name}\n{len(set(table))} pixels for {len(table)} taps", fontsize=11, color=INK)
        _draw_grid(axis, lowest, highest)
        _draw_taps(axis, table, 72 * pixel)
        _draw_line(axis, table, angle)
    _tap_scale(figure, axes, taps.kernel_size)
    save_figure(figure, path)


def _surroundings(lowest: Offset, highest: Offset) -> tuple[Offset, Offset]:
    """Returns the box with a margin, at least a quarter as high as wide and two fifths as wide as high."""
    rows, columns = highest[0] - lowest[0] + 1, highest[1] - lowest[1] + 1
    margin = 1 + max(rows, columns) // 32
    more_h, more_w = max(margin, (columns // 4 - rows + 1) // 2), max(margin, (2 * rows // 5 - columns + 1) // 2)
    return (lowest[0] - more_h, lowest[1] - more_w), (highest[0] + more_h, highest[1] + more_w)


def _draw_grid(axis: Axes, lowest: Offset, highest: Offset) -> None:
    (top, left), (bottom, right) = lowest, highest
    if max(bottom - top, right - left) <= _GRID_PIXELS:
        axis.hlines(np.arange(top, bottom) + 0.5, left - 0.5, right + 0.5, color=PALE, linewidth=0.6, zorder=0)
        axis.vlines(np.arange(left, right) + 0.5, top - 0.5, bottom + 0.5, color=PALE, linewidth=0.6, zorder=0)
    for spine in axis.spines.values():
        spine.set_color(PALE)


def _draw_taps(axis: Axes, table: Table, size: float) -> None:
    """Draws the pixels that taps land on; size: side of a pixel in points."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for (dh, dw), landed in Taps((table,)).distinct(0).items():
        colour = colormaps["cividis"](_shade(float(np.mean(landed)) / max(1, len(table) - 1)))
        axis.add_patch(Rectangle((dw - 0.5, dh - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=min(0.8, size / 12), zorder=1))
        if size < 4:  # a pixel too small to see
            axis.plot([dw], [dh], marker="s", markersize=5, color=colour, zorder=1)
        if len(landed) > 1 and size > 5:
            badge = {"boxstyle": f"circle,pad={0.15 if size > 12 else 0.02}", "facecolor": "white", "edgecolor": "none"}
            axis.text(dw, dh, str(len(landed)), ha="center", va="center", fontsize=min(13.0, 0.6 * size), color=INK, weight="bold", bbox=badge, zorder=4)
    axis.add_patch(Rectangle((-0.5, -0.5), 1, 1, fill=False, edgecolor=INK, linewidth=min(1.6, size / 4), zorder=3))
    if size < 4:
        axis.plot([0], [0], marker="+", markersize=9, color=INK, zorder=3)


def _draw_line(axis: Axes, table: Table, degrees: float | None) -> None:
    """Draws the line before truncation, as an arrow from the first tap to the last."""
    line = _line(table)
    if line is None or degrees is None or line[1] == line[2]:
        return
    angle, first, last = math.radians(degrees), line[1], line[2]
    x, y = math.cos(angle), -math.sin(angle)
    arrow = {"arrowstyle": "-|>", "color": ORANGE, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", (last * x, last * y), (first * x, first * y), arrowprops=arrow, zorder=2)


def _shade(fraction: float) -> float:
    return 0.12 + 0.88 * fraction  # the darkest blues look like ink


def _tap_scale(figure: Figure, axes: Any, taps: int) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap

    shades = ListedColormap(colormaps["cividis"](np.linspace(_shade(0), _shade(1), 256)))
    bar = figure.colorbar(ScalarMappable(cmap=shades), ax=axes, fraction=0.03, pad=0.02, aspect=30, ticks=[0, 1])
    bar.ax.set_yticklabels(["first tap", "last tap"] if taps > 1 else ["", ""], fontsize=9)
    bar.outline.set_visible(False)
