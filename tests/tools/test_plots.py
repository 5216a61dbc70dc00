"""Drawings: the text frozen, the figures by size and by what they leave alone."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tvm_orient.errors import EnvironmentProblem, InvalidArgument
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.taps import Taps
from tvm_orient.tools.plots import responses as plots_responses
from tvm_orient.tools.plots import speed
from tvm_orient.tools.plots import taps as plots_taps

ROOT = Path(__file__).resolve().parents[2]
DIAGONAL = Taps.oriented(math.pi / 4, 7)
EIGHT = Taps.oriented(angles_between(8), 7)
FAR = Taps.from_offsets([[[0, 0], [3, 300], [-100, 4]]])
ROWS = [("tvm_orient", 0.212, True), ("untuned", 0.31, True), ("compiled_shift", 0.4, False), ("raster", 31.1, False)]


def drawn(text: str) -> str:
    """A drawing as it stands in this file: without the first newline and the trailing spaces."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def test_text_of_a_diagonal() -> None:
    assert plots_taps.taps_text(DIAGONAL, 80) == drawn("""
45 deg
5 of 7 taps distinct
 . . . . 1
 . . . 1 .
 . .[3]. .
 . 1 . . .
 1 . . . .
""")


def test_text_of_two_groups_side_by_side_and_below() -> None:
    taps = Taps.oriented(np.radians([0, 67.5]), 5)
    assert plots_taps.taps_text(taps, 43) == drawn("""
group 0: 0 deg         group 1: 67.5 deg
5 of 5 taps distinct   3 of 5 taps distinct
 . . . . .              . . 1 . .
 1 1[1]1 1              . .[3]. .
 . . . . .              . . 1 . .
""")
    below = plots_taps.taps_text(taps, 42).replace("\n\n", "\n")
    beside = plots_taps.taps_text(taps, 43).splitlines()
    assert below.splitlines() == [line[:20].rstrip() for line in beside] + [line[23:] for line in beside]


def test_text_of_free_offsets() -> None:
    cross = [[0, -1], [0, 0], [0, 2], [-1, 0], [1, 0], [0, 0]]
    assert plots_taps.taps_text(Taps.from_offsets([cross, cross]), 80) == drawn("""
free offsets
5 of 6 taps distinct
 . 1 . .
 1[2]. 1
 . 1 . .
""")
    assert plots_taps.taps_text(Taps.from_offsets([[[0, 0]] * 12]), 80).endswith("[+]")


@pytest.mark.parametrize(
    "taps",
    [DIAGONAL, EIGHT, FAR, Taps.oriented(angles_between(8), 63), Taps.from_offsets([[[-32768, 32768], [3, 32768]]])],
    ids=["one", "eight", "far", "long", "farthest"],
)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_text_fits(taps: Taps, width: int) -> None:
    text = plots_taps.taps_text(taps, width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("[") == text.count("]") == len(set(taps.table))
    assert text.isascii()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pytest.importorskip("matplotlib")
    return tmp_path / "picture.png"


def size(path: Path) -> tuple[int, int]:
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        return image.size


def responses(path: Path, count: int = 8) -> None:
    draw = np.random.default_rng(0)
    plots_responses.responses_png(draw.random((30, 40, 3)), draw.standard_normal((count, 30, 40)), [180 * i / count for i in range(count)], path)


@pytest.mark.parametrize("taps", [DIAGONAL, EIGHT, FAR, Taps.oriented(0.0, 31), Taps.oriented(math.pi / 2, 1)], ids=["one", "eight", "far", "flat", "dot"])
def test_taps_png(taps: Taps, picture: Path) -> None:
    plots_taps.taps_png(taps, picture)
    width, height = size(picture)
    assert 500 < width < 2500
    assert 150 < height < 2500


def figure_of(draw: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The figure that a drawing would save."""
    made: list[Any] = []
    for drawing in (plots_taps, plots_responses):
        monkeypatch.setattr(drawing, "save_figure", lambda figure, path: made.append(figure))
    draw()
    return made[0]


def test_names_are_the_angles_asked_for(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taps = Taps.oriented(np.radians([30.0, 45.0]), 9)
    drawn_one = figure_of(lambda: plots_taps.taps_png(taps, picture, [30.0, 45.0]), monkeypatch)
    titles = [axis.get_title().splitlines()[0] for axis in drawn_one.axes[:2]]
    assert titles == ["group 0: 30° (taps as 33.75°)", "group 1: 45°"]
    (arrow, *_) = [text for text in drawn_one.axes[0].texts if hasattr(text, "arrow_patch")]
    assert math.degrees(math.atan2(-arrow.xy[1], arrow.xy[0])) == pytest.approx(30.0)
    assert plots_taps.taps_text(taps, 80, [30.0, 45.0]).startswith("group 0: 30 deg (taps as 33.75 deg)   group 1: 45 deg")
    assert plots_taps.taps_text(taps, 80).startswith("group 0: 33.75 deg")
    with pytest.raises(InvalidArgument, match="one angle for each of 2 groups, got 1"):
        plots_taps.taps_text(taps, 80, [30.0])


@pytest.mark.parametrize("lowest", [-1.0, 0.0])
def test_light_is_high_in_responses(lowest: float, picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = np.linspace(lowest, 1.0, 24).reshape(2, 3, 4)
    figure = figure_of(lambda: plots_responses.responses_png(np.zeros((3, 4)), maps, [0, 90], picture), monkeypatch)
    drawn_maps = [axis.images[0] for axis in figure.axes if axis.get_title() in ("0°", "90°")]
    assert len(drawn_maps) == 2
    for image in drawn_maps:
        light = image.cmap(np.linspace(0, 1, 9))[:, :3] @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(light) > 0.05).all()
        assert image.get_clim() == (pytest.approx(lowest, abs=0.01), pytest.approx(1.0, abs=0.01))
    (scale,) = [axis for axis in figure.axes if axis.get_ylabel() == "response"]
    assert scale.get_ylim() == drawn_maps[0].get_clim()


@pytest.mark.parametrize("count", [1, 3, 8])
def test_responses_png(count: int, picture: Path) -> None:
    responses(picture, count)
    width, height = size(picture)
    assert 2.5 * 144 * (1 + -(-count // 2)) * 0.9 < width < 2000
    assert 400 < height < 900


def test_speed_png(picture: Path) -> None:
    speed.speed_png(ROWS, picture)
    width, height = size(picture)
    assert 1000 < width < 1400
    assert 250 < height < 500


@pytest.mark.parametrize(("angle", "hue"), [(0, 0.0), (45, 0.25), (90, 0.5), (180, 0.0), (-45, 0.75)])
def test_hue_is_the_doubled_angle(angle: float, hue: float, picture: Path) -> None:
    from matplotlib.colors import rgb_to_hsv

    maps = np.zeros((2, 1, 2))
    maps[0, 0, 0] = -1.0  # the sign of a response has no direction
    colours = rgb_to_hsv(plots_responses._orientation_colours(maps, np.array([angle, 10.0])))
    assert (colours[0, 0, 0] - hue + 0.5) % 1 == pytest.approx(0.5, abs=1e-6)
    assert colours[0, :, 2] == pytest.approx([1.0, 0.0])


def test_same_picture_same_bytes_and_nothing_beside_it(picture: Path) -> None:
    plots_taps.taps_png(DIAGONAL, picture)
    first = picture.read_bytes()
    plots_taps.taps_png(DIAGONAL, picture)
    assert picture.read_bytes() == first
    assert os.listdir(picture.parent) == [picture.name]


def test_a_failed_write_leaves_the_old_picture(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    picture.write_bytes(b"old")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        speed.speed_png(ROWS, picture)
    assert picture.read_bytes() == b"old"
    assert os.listdir(picture.parent) == [picture.name]


def test_global_state_is_left_alone(picture: Path) -> None:
    code = f"""
import sys
from tvm_orient.problem.taps import Taps
from tvm_orient.tools.plots import speed, taps
assert "matplotlib" not in sys.modules
speed.speed_png({ROWS!r}, {str(picture)!r})
taps.taps_png(Taps.oriented(0.5, 5), {str(picture)!r})
assert "matplotlib.pyplot" not in sys.modules
import matplotlib
assert matplotlib.rcParams == matplotlib.rcParamsOrig
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MPLBACKEND", None)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    for draw in (lambda path: plots_taps.taps_png(DIAGONAL, path), lambda path: speed.speed_png(ROWS, path), responses):
        with pytest.raises(EnvironmentProblem, match="matplotlib"):
            draw(tmp_path / "picture.png")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("draw", "rule"),
    [
        (lambda path: plots_taps.taps_png(DIAGONAL, path.parent / "missing" / "picture.png"), "folder of a picture must exist"),
        (lambda path: speed.speed_png([], path), "at least one"),
        (lambda path: speed.speed_png([("a", 0.0, True)], path), "positive"),
        (lambda path: speed.speed_png([("a", math.nan, True)], path), "positive"),
        (lambda path: plots_responses.responses_png(np.zeros((4, 4, 2)), np.zeros((1, 4, 4)), [0], path), "image must have shape"),
        (lambda path: plots_responses.responses_png(np.zeros((4, 4)), np.zeros((2, 4, 4)), [0], path), "one angle each"),
    ],
)
def test_misfits_are_refused(draw: Callable[[Path], None], rule: str, picture: Path) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        draw(picture)
    assert not picture.exists()
