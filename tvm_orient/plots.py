"""Pictures: taps in a terminal or a figure, oriented responses of a photograph, bars of measured times.

Figures are drawn on matplotlib's Agg canvas alone: no window, no pyplot, no global setting touched.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import EnvironmentProblem, InvalidArgument
from .labels import asked_text
from .taps import Offset, Taps

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Table = tuple[Offset, ...]

# Okabe & Ito's palette: told apart by colour-blind readers
_BLUE, _ORANGE, _GREY, _INK, _PALE = "#0072b2", "#d55e00", "#b8b8b8", "#222222", "#e2e2e2"
_TEXT_ROWS = 64  # of one drawing in a terminal
_GRID_PIXELS = 64  # across; beyond it the lines between pixels would be all there is to see


# ---- taps in a terminal -------------------------------------------------------------------------


def taps_text(taps: Taps, width: int | None = None, degrees: Sequence[float] = ()) -> str:
    """The taps over the pixel grid, for a terminal: one grid per group, side by side where they fit in width columns.

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
    """The different tables in order, each with its name (its groups, the angle asked for and that of its key), and that angle; None for free offsets."""
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
    """Least and greatest (dh, dw) of all groups and of the centre."""
    rows, columns = zip((0, 0), *(offset for table in taps.table for offset in table), strict=True)
    return (min(rows), min(columns)), (max(rows), max(columns))


def _line(table: Table) -> tuple[float, int, int] | None:
    """Angle in degrees and first and last distance of the line whose truncation the table is; None where the key names no angle."""
    head, found, angle = Taps((table,)).key.partition("a")
    if not found:
        return None
    step = int(head.removesuffix("s").partition("d")[2] or 1)
    first = 0 if head.endswith("s") else -(len(table) // 2)
    return float(angle), first * step, (first + len(table) - 1) * step


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
    figure = _figure(across * max(1.6, pixel * columns) + 1.0, down * (pixel * rows + 0.55) + 0.1)
    axes = figure.subplots(down, across, squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, (table, (name, angle)) in zip(axes.flat, names.items(), strict=False):
        axis.set(xlim=(lowest[1] - 0.5, highest[1] + 0.5), ylim=(highest[0] + 0.5, lowest[0] - 0.5), aspect="equal", xticks=[], yticks=[])
        axis.set_title(f"{name}\n{len(set(table))} pixels for {len(table)} taps", fontsize=11, color=_INK)
        _draw_grid(axis, lowest, highest)
        _draw_taps(axis, table, 72 * pixel)
        _draw_line(axis, table, angle)
    _tap_scale(figure, axes, taps.kernel_size)
    _save(figure, path)


def _surroundings(lowest: Offset, highest: Offset) -> tuple[Offset, Offset]:
    """The box with a margin, at least a quarter as high as wide and two fifths as wide as high."""
    rows, columns = highest[0] - lowest[0] + 1, highest[1] - lowest[1] + 1
    margin = 1 + max(rows, columns) // 32
    more_h, more_w = max(margin, (columns // 4 - rows + 1) // 2), max(margin, (2 * rows // 5 - columns + 1) // 2)
    return (lowest[0] - more_h, lowest[1] - more_w), (highest[0] + more_h, highest[1] + more_w)


def _draw_grid(axis: Axes, lowest: Offset, highest: Offset) -> None:
    (top, left), (bottom, right) = lowest, highest
    if max(bottom - top, right - left) <= _GRID_PIXELS:
        axis.hlines(np.arange(top, bottom) + 0.5, left - 0.5, right + 0.5, color=_PALE, linewidth=0.6, zorder=0)
        axis.vlines(np.arange(left, right) + 0.5, top - 0.5, bottom + 0.5, color=_PALE, linewidth=0.6, zorder=0)
    for spine in axis.spines.values():
        spine.set_color(_PALE)


def _draw_taps(axis: Axes, table: Table, size: float) -> None:
    """The pixels that taps land on; size: side of a pixel in points."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for (dh, dw), landed in Taps((table,)).distinct(0).items():
        colour = colormaps["cividis"](_shade(float(np.mean(landed)) / max(1, len(table) - 1)))
        axis.add_patch(Rectangle((dw - 0.5, dh - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=min(0.8, size / 12), zorder=1))
        if size < 4:  # a pixel too small to see
            axis.plot([dw], [dh], marker="s", markersize=5, color=colour, zorder=1)
        if len(landed) > 1 and size > 5:
            badge = {"boxstyle": f"circle,pad={0.15 if size > 12 else 0.02}", "facecolor": "white", "edgecolor": "none"}
            axis.text(dw, dh, str(len(landed)), ha="center", va="center", fontsize=min(13.0, 0.6 * size), color=_INK, weight="bold", bbox=badge, zorder=4)
    axis.add_patch(Rectangle((-0.5, -0.5), 1, 1, fill=False, edgecolor=_INK, linewidth=min(1.6, size / 4), zorder=3))
    if size < 4:
        axis.plot([0], [0], marker="+", markersize=9, color=_INK, zorder=3)


def _draw_line(axis: Axes, table: Table, degrees: float | None) -> None:
    """The line before truncation, as an arrow from the first tap to the last."""
    line = _line(table)
    if line is None or degrees is None or line[1] == line[2]:
        return
    angle, first, last = math.radians(degrees), line[1], line[2]
    x, y = math.cos(angle), -math.sin(angle)
    arrow = {"arrowstyle": "-|>", "color": _ORANGE, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
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


def responses_png(image: ArrayLike, responses: ArrayLike, angles_degrees: Sequence[float], path: str | Path) -> None:
    """Draws, as PNG, a photograph, its oriented responses, and which orientation wins where.

    Responses are drawn in grey like the photograph, light is high, on one scale that stands beside them; it is symmetric about zero where a
    response is negative, and begins at zero elsewhere.

    In the last picture the hue is the direction, and the brightness the length, of a vector that wraps at 180 degrees (the
    double-angle representation of orientation: Granlund, In search of a general picture processing operator, 1978)::

        sum_a |response_a| * exp(2i * angle_a)

    Args:
        image: (H, W) or (H, W, 3), 0..1 or uint8.
        responses: (A, H', W'), one per angle.
        angles_degrees: (A,).
        path: of the PNG.

    Raises:
        EnvironmentProblem: no matplotlib.
        InvalidArgument: shapes that do not fit, or the folder of path does not exist.
    """
    picture, maps, angles = np.asarray(image), np.asarray(responses, dtype=np.float64), np.asarray(angles_degrees, dtype=np.float64)
    if picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
        raise InvalidArgument(f"image must have shape (H, W) or (H, W, 3), got {picture.shape}")
    if maps.ndim != 3 or maps.size == 0 or angles.shape != maps.shape[:1]:
        raise InvalidArgument(f"responses must have shape (A, H, W) with one angle each, got {maps.shape} for {angles.size} angles")
    across = -(-len(maps) // 2) + 1
    shape = float(np.clip(picture.shape[0] / picture.shape[1], 0.4, 2.0))
    figure = _figure(2.5 * across, 2 * (2.5 * shape + 0.25) + 0.1)
    axes = figure.subplots(2, across)
    for axis in axes.flat:
        axis.set_axis_off()
    _show(axes[0, 0], picture, "photograph", cmap="gray")
    _show(axes[1, 0], _orientation_colours(maps, angles), "dominant orientation")
    _wheel(axes[1, 0], maps.shape[1] / maps.shape[2])
    reach = float(np.percentile(np.abs(maps), 99.5)) or 1.0  # a few extremes would leave the rest grey
    for axis, response, angle in zip(axes[:, 1:].flat, maps, angles, strict=False):
        drawn = _show(axis, response, f"{angle:g}°", cmap="gray", vmin=-reach if maps.min() < 0 else 0.0, vmax=reach)
    bar = figure.colorbar(drawn, ax=axes[:, 1:], fraction=0.03, pad=0.02, aspect=30, extend="both" if maps.min() < 0 else "max")
    bar.set_label("response", fontsize=9, color=_INK)
    bar.ax.tick_params(labelsize=8)
    _save(figure, path)


def _show(axis: Axes, picture: NDArray[Any], title: str, **how: Any) -> Any:
    drawn = axis.imshow(picture, interpolation="nearest" if max(picture.shape[:2]) < 64 else "antialiased", **how)
    axis.set_title(title, fontsize=11, color=_INK, pad=4)
    return drawn


def _orientation_colours(maps: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """(H, W, 3): hue from the doubled angle, brightness from the strength."""
    doubled = np.tensordot(np.exp(2j * np.radians(angles)), np.abs(maps), axes=1)
    strength = np.abs(doubled)
    strength = np.clip(strength / (float(np.percentile(strength, 99)) or 1.0), 0, 1)
    return _hues(np.angle(doubled) / (2 * np.pi), strength**0.7)


def _hues(turn: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    from matplotlib.colors import hsv_to_rgb

    return np.asarray(hsv_to_rgb(np.stack([turn % 1.0, np.full_like(turn, 0.85), value], -1)))


def _wheel(axis: Axes, shape: float) -> None:
    """The legend of orientation: a half disc in a corner, because directions 180 degrees apart are the same. shape: H / W."""
    side = np.linspace(-1, 1, 181)
    x, y = np.meshgrid(side, np.linspace(1, 0, 91))
    radius = np.hypot(x, y)
    colours = _hues(np.arctan2(y, x) / np.pi, np.ones_like(radius))
    inside = ((radius <= 1) & (radius >= 0.35)).astype(float)
    corner = axis.inset_axes((0.62, 0.03, 0.34, min(0.25 / shape, 0.9)))
    corner.set_facecolor((0, 0, 0, 0.6))
    corner.imshow(np.dstack([colours, inside]), extent=(-1, 1, 0, 1), interpolation="bilinear")
    for degrees in (0, 45, 90, 135, 180):
        turn = math.radians(degrees)
        corner.text(1.32 * math.cos(turn), 1.2 * math.sin(turn), f"{degrees}", color="white", fontsize=6.5, ha="center", va="center")
    corner.set(xlim=(-1.65, 1.65), ylim=(-0.2, 1.45), xticks=[], yticks=[])
    for spine in corner.spines.values():
        spine.set_visible(False)


def speed_png(rows: Iterable[tuple[str, float, bool]], path: str | Path) -> None:
    """Horizontal bars of time. rows: (label, milliseconds, is_ours); the labels give each time as a multiple of our best.

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
    figure = _figure(8.0, 0.42 * len(bars) + 0.75)
    axis = figure.subplots()
    places = np.arange(len(bars))
    axis.barh(places, [time for _, time, _ in bars], height=0.68, color=[_BLUE if ours else _GREY for *_, ours in bars])
    for place, (_, time, ours) in zip(places, bars, strict=True):
        text = f"{_three_digits(time)} ms" + ("" if ours and time == best else f"   {_three_digits(time / best)}x")
        weight = "bold" if ours else "normal"
        axis.annotate(text, (time, place), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9.5, color=_INK, weight=weight)
    axis.set_yticks(places, [label for label, *_ in bars], fontsize=10)
    for tick, (*_, ours) in zip(axis.get_yticklabels(), bars, strict=True):
        tick.set(color=_BLUE if ours else _INK, weight="bold" if ours else "normal")
    axis.set(ylim=(len(bars) - 0.4, -0.6), xlim=(0, 1.22 * max(time for _, time, _ in bars)))
    axis.set_xlabel("milliseconds, and as a multiple of our best", fontsize=9.5, color=_INK)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=9)
    axis.spines[["top", "right", "left"]].set_visible(False)
    _save(figure, path)


def _three_digits(value: float) -> str:
    return f"{value:#.3g}".rstrip(".") if value < 1000 else f"{value:.0f}"


def _figure(width: float, height: float) -> Figure:
    """An empty figure of that size in inches on an Agg canvas.

    Raises:
        EnvironmentProblem: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as problem:
        raise EnvironmentProblem("pictures need matplotlib, which is not installed: run `pip install 'tvm-orient[plot]'`") from problem
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    """Writes the figure as PNG in one step: readers see the old file or the whole new one."""
    path = Path(path)
    if not path.parent.is_dir():
        raise InvalidArgument(f"the folder of a picture must exist, got {str(path)!r}: make {str(path.parent)!r} first")
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            # no version of the writer in it: the same picture is the same file
            figure.savefig(file, format="png", dpi=144, bbox_inches="tight", pad_inches=0.12, metadata={"Software": None})
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
