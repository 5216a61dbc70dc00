"""The pictures of docs/semantics.md, computed with the library's own taps and reference: `make docs-pictures` draws them again.

The same matplotlib gives the same bytes, so a second run changes nothing.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Arc, Rectangle

from tvm_orient import Taps
from tvm_orient.evaluate import reference
from tvm_orient.problem.line_offsets import oriented_offsets

# Okabe & Ito's palette, as in tvm_orient/tools/plots/style.py; a tap has one colour in every picture, from the first (dark) to the last (light)
BLUE, ORANGE, GREY, INK, PALE = "#0072b2", "#d55e00", "#8a8a8a", "#222222", "#d6d6d6"
IMAGES = Path(__file__).resolve().parent / "img"
Offset = tuple[int, int]
Axes = Any


# ---- what the pictures share --------------------------------------------------------------------


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(width, height), facecolor="white")


def panel(parent: Figure, place: Sequence[float], title: str, rows: tuple[int, int], columns: tuple[int, int]) -> Axes:
    """Axes at a place (left, bottom, width, height) with a grid of pixels; rows grow downwards."""
    axes = parent.add_axes(tuple(place))
    axes.set(xlim=(columns[0] - 0.5, columns[1] + 0.5), ylim=(rows[1] + 0.5, rows[0] - 0.5), aspect="equal", xticks=[], yticks=[])
    axes.set_title(title, fontsize=9.5, color=INK, pad=5)
    axes.hlines(np.arange(rows[0], rows[1]) + 0.5, columns[0] - 0.5, columns[1] + 0.5, color=PALE, linewidth=0.6, zorder=0)
    axes.vlines(np.arange(columns[0], columns[1]) + 0.5, rows[0] - 0.5, rows[1] + 0.5, color=PALE, linewidth=0.6, zorder=0)
    for spine in axes.spines.values():
        spine.set_color(PALE)
    return axes


def colour(position: float, taps: int) -> Any:
    """Of tap `position` of so many."""
    return colormaps["cividis"](0.12 + 0.88 * position / max(1, taps - 1))


def ink_on(face: Any) -> str:
    """Black or white, whichever reads better on a colour."""
    return "white" if 0.3 * face[0] + 0.59 * face[1] + 0.11 * face[2] < 0.5 else INK


def pixel(axes: Axes, h: float, w: float, face: Any, text: str = "", size: float = 7.5, **how: Any) -> None:
    """One pixel, with a text in it."""
    axes.add_patch(Rectangle((w - 0.5, h - 0.5), 1, 1, **{"facecolor": face, "edgecolor": "white", "linewidth": 0.8, "zorder": 1, **how}))
    if text:
        axes.text(w, h, text, ha="center", va="center", fontsize=size, color=ink_on(face) if isinstance(face, tuple) else INK, zorder=5)


def frame(axes: Axes, h: float, w: float, edge: str = INK) -> None:
    """A frame around the pixel that an output belongs to."""
    axes.add_patch(Rectangle((w - 0.5, h - 0.5), 1, 1, fill=False, edgecolor=edge, linewidth=1.6, zorder=4))


def arrow(axes: Axes, start: Sequence[float], end: Sequence[float], shade: str = ORANGE, width: float = 1.3, **how: Any) -> None:
    """From (h, w) to (h, w)."""
    style = {"arrowstyle": "-|>", "color": shade, "linewidth": width, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 9, **how}
    axes.annotate("", (end[1], end[0]), (start[1], start[0]), arrowprops=style, zorder=6)


def names(landed: Iterable[int]) -> str:
    """Tap numbers as people write them: 3, or 2-4."""
    numbers = list(landed)
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}"


def draw_taps(axes: Axes, taps: Taps, text: Callable[[tuple[int, ...]], str]) -> None:
    """The pixels of a one-group table around the origin, each with what text(taps that land there) says."""
    for (dh, dw), landed in taps.distinct(0).items():
        pixel(axes, dh, dw, colour(float(np.mean(landed)), taps.kernel_size), text(landed))
    frame(axes, 0, 0)


def links(axes: Axes, pixels: Sequence[int], title: str, label: Callable[[int], str], size: float = 7.0) -> None:
    """Taps in a row, the pixels they land on in a row below, and a link from each tap to its pixel; pixels: offset of each tap."""
    count = len(pixels)
    axes.set(xlim=(-count / 2 - 0.2, count / 2 + 0.2), ylim=(-0.62, 1.55), xticks=[], yticks=[])
    axes.set_title(title, fontsize=9.5, color=INK, pad=3)
    axes.spines[:].set_visible(False)
    for s, place in enumerate(pixels):
        k, shade = s - count // 2, colour(s, count)
        axes.plot([k, place], [0.82, 0.42], color=shade, linewidth=1.3, solid_capstyle="round", zorder=1)
        axes.plot([k], [1.0], marker="o", markersize=11, color=shade, zorder=2)
        axes.text(k, 0.99, label(s), ha="center", va="center", fontsize=size, color=ink_on(shade), zorder=3)
    for place in sorted(set(pixels)):
        landed = [s for s, other in enumerate(pixels) if other == place]
        face = colour(float(np.mean(landed)), count)
        axes.add_patch(Rectangle((place - 0.46, -0.12), 0.92, 0.52, facecolor=face, edgecolor=INK if place == 0 else "white", linewidth=1.4, zorder=2))
        axes.text(place, 0.13, str(len(landed)), ha="center", va="center", fontsize=size + 0.5, color=ink_on(face), weight="bold", zorder=3)


def line(degrees: float, kernel_size: int, dilation: int = 1, anchor: Any = "center") -> Taps:
    """One line, by the library's own rule."""
    return Taps.oriented(math.radians(degrees), kernel_size, dilation, anchor)


# ---- the pictures -------------------------------------------------------------------------------


def rounding() -> Figure:
    """The real line and the pixels that its taps are cut to, and the rule along one axis."""
    page = figure(7.6, 2.7)
    degrees, size = 22.5, 15
    taps, half = line(degrees, size), size // 2
    axes = panel(page, (0.01, 0.06, 0.62, 0.82), f"{size} taps at {degrees:g}°: each goes to the next whole offset toward 0", (-3, 3), (-7, 7))
    draw_taps(axes, taps, lambda landed: "")
    for k, (dh, dw) in zip(range(-half, half + 1), taps.table[0], strict=True):
        real = (-math.sin(math.radians(degrees)) * k, math.cos(math.radians(degrees)) * k)
        axes.plot([real[1]], [real[0]], marker="o", markersize=4.2, color=ORANGE, markeredgecolor="white", markeredgewidth=0.6, zorder=7)
        if k:
            arrow(axes, real, (dh, dw), INK, 0.9, mutation_scale=6)
    up, along = -math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    axes.plot([-7.4 * along, 7.4 * along], [-7.4 * up, 7.4 * up], color=ORANGE, linewidth=1.1, zorder=2)
    axes.text(-7.1, -2.5, "orange: the line and its taps\narrows: truncation", fontsize=8, color=INK, va="center")

    steps = page.add_axes((0.71, 0.185, 0.265, 0.675))
    real = np.linspace(-3.4, 3.4, 1361)
    for rule, shade, width, name in ((np.floor, PALE, 2.4, "down"), (np.round, GREY, 1.4, "nearest"), (np.trunc, BLUE, 2.2, "toward 0 (the rule)")):
        whole = rule(real)
        whole[1:][np.diff(whole) != 0] = np.nan  # a gap where it jumps
        steps.plot(real, whole, color=shade, linewidth=width, label=name, solid_capstyle="butt")
    steps.plot([-3.4, 3.4], [-3.4, 3.4], color=ORANGE, linewidth=1.0, zorder=0)
    steps.set(xlim=(-3.5, 3.5), ylim=(-3.9, 3.9), xticks=range(-3, 4), yticks=range(-3, 4))
    steps.set_title("along one axis", fontsize=9.5, color=INK, pad=5)
    steps.set_xlabel("real offset, in pixels", fontsize=8, labelpad=2)
    steps.set_ylabel("offset of the tap", fontsize=8, labelpad=0)
    steps.tick_params(labelsize=7.5, length=2)
    steps.legend(fontsize=7, frameon=False, loc="upper left", handlelength=1.2, borderaxespad=0.1, labelspacing=0.25)
    steps.spines[["top", "right"]].set_visible(False)
    return page


def float32() -> Figure:
    """What one bit of a cosine moves: the table of the library, and the table of a cosine that is a little off."""
    page = figure(7.6, 3.6)
    size = 15
    k = np.arange(size, dtype=np.float32) - np.float32(size // 2)
    one_below = np.trunc(np.nextafter(np.float32(1), np.float32(0)) * k).astype(int)
    half = np.trunc(np.float32(0.5) * k).astype(int)
    own = {degrees: [dw for _, dw in line(degrees, size).table[0]] for degrees in (0, 60)}
    cosine = np.cos(np.float64(np.float32(math.radians(60)))).astype(np.float32)
    moved = [sum(a != b for a, b in zip(own[degrees], other, strict=True)) for degrees, other in ((0, one_below), (60, half))]
    cases = (
        ((0.01, 0.53), own[0], "0°: cos = 1  (the table)"),
        ((0.01, 0.06), one_below.tolist(), f"0°: cos = 0.99999994, one bit less: {moved[0]} taps move"),
        ((0.51, 0.53), own[60], f"60°: float32 cos = {cosine:.8f}  (the table)"),
        ((0.51, 0.06), half.tolist(), f"60°: cos = 1/2, as on paper: {moved[1]} taps move"),
    )
    for (left, bottom), pixels, title in cases:
        axes = page.add_axes((left, bottom, 0.48, 0.36))
        links(axes, pixels, title, lambda s: str(s - size // 2), 6.5)
        for place in sorted(set(pixels)):
            axes.text(place, -0.33, f"{place}", ha="center", va="center", fontsize=6.5, color=INK)
    page.text(0.5, 0.025, "circles: k of each tap     squares: pixels along the row, dw below, number of taps inside", ha="center", fontsize=8, color=INK)
    return page


def collisions() -> Figure:
    """31 taps on 21 pixels, and how many pixels are left at every angle."""
    page = figure(7.6, 4.3)
    size = 31
    taps = line(45, size)
    axes = page.add_axes((0.01, 0.62, 0.98, 0.32))
    title = f"{size} taps at 45° land on {len(taps.distinct(0))} pixels: weights that share a pixel are added first"
    links(axes, [dw for _, dw in taps.table[0]], title, str, 6.5)
    axes.text(0, -0.42, "circles: taps s      squares: pixels of the diagonal, with the number of taps on each", ha="center", fontsize=8, color=INK)

    curves = page.add_axes((0.075, 0.105, 0.9, 0.4))
    degrees = np.arange(0, 721) / 4
    theta = np.radians(degrees).astype(np.float32)
    for kernel_size, shade in ((31, BLUE), (15, ORANGE), (7, GREY)):
        counts = [len({tuple(offset) for offset in table}) for table in oriented_offsets(theta, kernel_size).tolist()]
        curves.plot(degrees, counts, color=shade, linewidth=1.3, drawstyle="steps-mid")
        eight = [degrees.tolist().index(22.5 * i) for i in range(8)]
        curves.plot(degrees[eight], np.asarray(counts)[eight], linestyle="none", marker="o", markersize=4, color=shade)
        curves.text(181.5, kernel_size, f"K = {kernel_size}", color=shade, fontsize=8.5, va="center", weight="bold")
    curves.set(xlim=(-1, 196), ylim=(0, 33), xticks=np.arange(0, 181, 22.5), yticks=(0, 7, 15, 31))
    curves.set_xticklabels([f"{value:g}°" for value in np.arange(0, 181, 22.5)], fontsize=8)
    curves.tick_params(axis="y", labelsize=8)
    curves.grid(axis="y", color=PALE, linewidth=0.6)
    curves.set_axisbelow(True)
    curves.set_title("pixels that K taps land on, by angle (dots: eight directions)", fontsize=9.5, color=INK, pad=4)
    curves.spines[["top", "right"]].set_visible(False)
    return page


def sign() -> Figure:
    """Which way the taps lie: four angles, with the number of each tap."""
    page = figure(7.6, 2.45)
    size = 7
    for i, degrees in enumerate((0, 45, 90, 135)):
        axes = panel(page, (0.01 + 0.2475 * i, 0.1, 0.2375, 0.78), f"theta = {degrees}°", (-5, 5), (-5, 5))
        taps = line(degrees, size)
        draw_taps(axes, taps, names)
        turn = math.radians(degrees)
        arrow(axes, (-3.7 * math.sin(turn), 3.7 * math.cos(turn)), (-4.5 * math.sin(turn), 4.5 * math.cos(turn)))
        if degrees:
            end = math.radians(degrees - 16)  # short of the taps
            axes.plot([0.6, 3.9], [0, 0], color=ORANGE, linewidth=0.9, linestyle=(0, (2, 2)), zorder=0)
            axes.add_patch(Arc((0, 0), 5.2, 5.2, theta1=16 - degrees, theta2=0, color=ORANGE, linewidth=1.2, zorder=6))
            tip = (-2.6 * math.sin(end), 2.6 * math.cos(end))
            arrow(axes, tip, (tip[0] - 0.45 * math.cos(end), tip[1] - 0.45 * math.sin(end)), mutation_scale=8)
        if not degrees:
            arrow(axes, (-4.4, -4.4), (-4.4, -2.2), INK, 1.0)
            arrow(axes, (-4.4, -4.4), (-2.2, -4.4), INK, 1.0)
            axes.text(-2.0, -4.3, "dw", fontsize=8.5, va="center", color=INK)
            axes.text(-4.3, -1.6, "dh", fontsize=8.5, ha="center", va="center", color=INK)
    note = "numbers: taps s = 0 ... 6     frame: the output's own pixel     orange: direction of theta, toward tap K - 1"
    page.text(0.5, 0.03, note, ha="center", fontsize=8, color=INK)
    return page


def correlation() -> Figure:
    """What an output reads, and what one bright pixel becomes: the same line, turned by 180 degrees."""
    page = figure(7.6, 2.85)
    size, plane, centre = 7, 11, 5
    taps, weights = line(22.5, size, anchor="start"), torch.arange(1.0, size + 1)[None]
    one = torch.zeros(1, 1, plane, plane)
    one[0, 0, centre, centre] = 1
    reads, gives = reference.conv_dx(one, weights, taps, plane, plane)[0, 0], reference.conv(one, weights, taps)[0, 0]
    shown = ((one[0, 0], "x: one bright pixel"), (reads, "what one output reads of x"), (gives, "y: what the bright pixel becomes"))
    for i, (values, title) in enumerate(shown):
        axes = panel(page, (0.01 + 0.33 * i, 0.1, 0.32, 0.78), title, (0, plane - 1), (0, plane - 1))
        for h, w in np.argwhere(values.numpy() != 0).tolist():
            value = float(values[h, w])
            pixel(axes, h, w, (0.0, 0.447, 0.698, 1.0) if i == 0 else colour(value - 1, size), f"{value:g}", 7.5)
        frame(axes, centre, centre)
    note = 'numbers: values of x, weights, values of y     22.5°, anchor="start", weights 1 ... 7; the frame is one place in all three'
    page.text(0.5, 0.03, note, ha="center", fontsize=8, color=INK)
    return page


def one_output(taps: Taps, plane: Offset, stride: Offset, output: Offset, padding_mode: str) -> dict[Offset, list[int]]:
    """The pixels of x that one output reads, each with its taps: by the reference's adjoint, one tap at a time."""
    height, width = plane
    one = torch.zeros(1, 1, -(-height // stride[0]), -(-width // stride[1]))
    one[0, 0, output[0], output[1]] = 1
    found: dict[Offset, list[int]] = {}
    for s in range(taps.kernel_size):
        weights = torch.eye(taps.kernel_size)[s][None]
        for h, w in np.argwhere(reference.conv_dx(one, weights, taps, height, width, stride, padding_mode)[0, 0].numpy()).tolist():
            found.setdefault((h, w), []).append(s)
    return found


def stride() -> Figure:
    """Which pixel an output belongs to, and what it reads."""
    page = figure(7.6, 3.0)
    plane, step, taps, output = (7, 9), (2, 3), line(45, 7), (2, 1)
    out = (-(-plane[0] // step[0]), -(-plane[1] // step[1]))
    x = panel(page, (0.05, 0.16, 0.5, 0.74), f"x: {plane[0]} x {plane[1]} pixels", (0, plane[0] - 1), (0, plane[1] - 1))
    y = panel(page, (0.62, 0.16, 0.33, 0.74), f"y: ceil(7/2) x ceil(9/3) = {out[0]} x {out[1]} pixels", (0, out[0] - 1), (0, out[1] - 1))
    for (h, w), landed in one_output(taps, plane, step, output, "zeros").items():
        pixel(x, h, w, colour(float(np.mean(landed)), taps.kernel_size), names(landed), 8)
    for p, q in sorted(np.ndindex(out), key=lambda place: place == output):  # the highlighted one last, on top
        edge = ORANGE if (p, q) == output else INK
        pixel(y, p, q, "none", f"{p}, {q}", 8)
        frame(x, p * step[0], q * step[1], edge)
        frame(y, p, q, edge)
    for h in range(plane[0]):
        x.text(-0.7, h, str(h), ha="right", va="center", fontsize=7, color=INK)
    for w in range(plane[1]):
        x.text(w, plane[0] - 0.1, str(w), ha="center", va="center", fontsize=7, color=INK)
    note = "stride (2, 3)     frames: the pixel (2p, 3q) of output (p, q)     orange: output (2, 1), which reads the numbered taps"
    page.text(0.5, 0.03, note, ha="center", fontsize=8, color=INK)
    return page


def padding() -> Figure:
    """A line that leaves the plane: zeros, or the other side."""
    page = figure(7.6, 2.9)
    plane, taps, output = (7, 9), line(22.5, 11), (1, 7)
    rows, columns = (-2, plane[0]), (-1, plane[1] + 3)
    cases = (("zeros", 'padding_mode="zeros": taps outside read 0'), ("circular", 'padding_mode="circular": they read the other side'))
    for i, (mode, title) in enumerate(cases):
        axes = panel(page, (0.01 + 0.495 * i, 0.1, 0.485, 0.8), title, rows, columns)
        axes.add_patch(Rectangle((columns[0] - 0.5, rows[0] - 0.5), columns[1] + 2, rows[1] + 3, facecolor="#ececec", linewidth=0, zorder=-2))
        axes.add_patch(Rectangle((-0.5, -0.5), plane[1], plane[0], facecolor="white", linewidth=0, zorder=-1))
        axes.add_patch(Rectangle((-0.5, -0.5), plane[1], plane[0], fill=False, edgecolor=INK, linewidth=1.2, zorder=3))
        for (h, w), landed in one_output(taps, plane, (1, 1), output, mode).items():
            pixel(axes, h, w, colour(float(np.mean(landed)), taps.kernel_size), names(landed))
        for (dh, dw), landed in taps.distinct(0).items():
            h, w = output[0] + dh, output[1] + dw
            if 0 <= h < plane[0] and 0 <= w < plane[1]:
                continue
            axes.add_patch(Rectangle((w - 0.4, h - 0.4), 0.8, 0.8, fill=False, edgecolor=GREY, linewidth=1.0, linestyle=(0, (2, 1.5)), zorder=3))
            axes.text(w, h, names(landed), ha="center", va="center", fontsize=7.5, color=INK, zorder=5)
        frame(axes, *output)
    note = "white: the plane     numbers: taps s     dashed: taps that lie outside     frame: the output's own pixel"
    page.text(0.5, 0.025, note, ha="center", fontsize=8, color=INK)
    return page


def anchor() -> Figure:
    """Center and start, and dilation."""
    page = figure(7.6, 4.15)
    cases = (
        (line(22.5, 7), 'anchor="center": k = -3 ... 3'),
        (line(22.5, 7, anchor="start"), 'anchor="start": k = 0 ... 6'),
        (line(22.5, 7, 2), "center, dilation 2: k = -6, -4 ... 6"),
        (line(22.5, 7, 2, "start"), "start, dilation 2: k = 0, 2 ... 12"),
    )
    for i, (taps, title) in enumerate(cases):
        start = i % 2
        columns = (-2, 12) if start else (-7, 7)
        rows = (-5, 1) if start else (-3, 3)
        axes = panel(page, (0.01 + 0.495 * (i % 2), 0.545 - 0.475 * (i // 2), 0.485, 0.4), title, rows, columns)
        draw_taps(axes, taps, names)
    page.text(0.5, 0.02, "seven taps at 22.5°     numbers: taps s     frame: the output's own pixel", ha="center", fontsize=8, color=INK)
    return page


PICTURES = {draw.__name__: draw for draw in (rounding, float32, collisions, sign, correlation, stride, padding, anchor)}


def main(folder: Path) -> None:
    """Draws every picture into a folder, as SVG."""
    # letters as outlines: the same on every machine. No date, no version of the writer, and names that depend on the picture alone
    matplotlib.rcdefaults()  # nobody's own settings
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": "tvm_orient"}):
        for name, draw in PICTURES.items():
            draw().savefig(folder / f"{name}.svg", format="svg", metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
