"""Pictures of what oriented filters see in a photograph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import InvalidArgument
from .style import INK, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
    figure = new_figure(2.5 * across, 2 * (2.5 * shape + 0.25) + 0.1)
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
    bar.set_label("response", fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, path)


def _show(axis: Axes, picture: NDArray[Any], title: str, **how: Any) -> Any:
    drawn = axis.imshow(picture, interpolation="nearest" if max(picture.shape[:2]) < 64 else "antialiased", **how)
    axis.set_title(title, fontsize=11, color=INK, pad=4)
    return drawn


def _orientation_colours(maps: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns (H, W, 3) in red, green and blue from 0 to 1: hue from the doubled angle, brightness from the strength."""
    doubled = np.tensordot(np.exp(2j * np.radians(angles)), np.abs(maps), axes=1)
    strength = np.abs(doubled)
    strength = np.clip(strength / (float(np.percentile(strength, 99)) or 1.0), 0, 1)
    return _hues(np.angle(doubled) / (2 * np.pi), strength**0.7)


def _hues(turn: NDArray[np.float64], value: NDArray[np.float64]) -> NDArray[np.float64]:
    from matplotlib.colors import hsv_to_rgb

    return np.asarray(hsv_to_rgb(np.stack([turn % 1.0, np.full_like(turn, 0.85), value], -1)))


def _wheel(axis: Axes, shape: float) -> None:
    """Draws the legend of orientation: a half disc in a corner, because directions 180 degrees apart are the same. shape: H / W."""
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
