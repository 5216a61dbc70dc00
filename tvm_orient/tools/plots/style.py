"""The style that all pictures share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import EnvironmentProblem, InvalidArgument
from ...problem.line_offsets import Offset

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Table = tuple[Offset, ...]

# Okabe & Ito's palette: told apart by colour-blind readers
BLUE = "#0072b2"
ORANGE = "#d55e00"
GREY = "#b8b8b8"
INK = "#222222"
PALE = "#e2e2e2"


def new_figure(width: float, height: float) -> Figure:
    """Returns an empty figure of that size in inches on an Agg canvas.

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


def save_figure(figure: Figure, path: str | Path) -> None:
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
