"""tvm-orient show: taps as text, as JSON and as a picture."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.command_line import orient, printed_json

GOLDEN = """\
group 0: 0 deg         group 1: 22.5 deg      group 2: 45 deg
7 of 7 taps distinct   5 of 7 taps distinct   5 of 7 taps distinct
 . . . . . . .          . . . . . . .          . . . . . 1 .
 . . . . . . .          . . . . . 1 .          . . . . 1 . .
 1 1 1[1]1 1 1          . . 1[3]1 . .          . . .[3]. . .
 . . . . . . .          . 1 . . . . .          . . 1 . . . .
 . . . . . . .          . . . . . . .          . 1 . . . . .

key k7a0_22.5_45
"""


def test_show_golden() -> None:
    assert orient("show", "--kernel-size", 7, "--angles", "0,22.5,45").stdout == GOLDEN
    assert orient("show", "k7a0_22.5_45").stdout == GOLDEN
    assert orient("show", "conv-c8h6w5-s1-zeros-float32-nchw-k7a0_22.5_45").stdout == GOLDEN


def test_show_json_and_anchor() -> None:
    shown = printed_json("show", "--kernel-size", 3, "--angles", "90", "--anchor", "start", "--dilation", 2)
    groups = [{"degrees": [90.0], "offsets": [[0, 0], [-2, 0], [-4, 0]], "distinct": 3, "asked_degrees": 90.0}]
    assert shown == {"key": "k3d2sa90", "kernel_size": 3, "groups": groups, "picture": None}
    assert printed_json("show", "t0.0.0.7.-1.2")["groups"][0]["degrees"] == []


def test_an_angle_is_called_as_it_was_asked_for() -> None:
    """30 degrees have the taps of 33.75, by which their key is called; nobody asked for that."""
    shown = orient("show", "--kernel-size", 9, "--angles", "30,33.75,120,-90").stdout
    assert "2 groups: 30, 33.75 deg (taps as 33.75 deg)" in shown
    assert "group 2: 120 deg (taps as 123.75 deg)" in shown
    assert "group 3: 270 deg\n" in shown.replace(" \n", "\n")
    assert [group["asked_degrees"] for group in printed_json("show", "--kernel-size", 9, "--angles", "30,400")["groups"]] == [30.0, 400.0]
    assert "asked_degrees" not in printed_json("show", "k9a33.75")["groups"][0]
    story = orient("explain", "--channels", 4, "--height", 8, "--width", 8, "--kernel-size", 9, "--angles", "0.785,45,405").stdout
    assert "0.785° (taps as 11.25°)" in story
    assert "taps as 45" not in story


def test_show_writes_a_png(tmp_path: Path) -> None:
    out = tmp_path / "taps.png"
    assert str(out) in orient("show", "k7a22.5", "-o", out).stdout
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "taps need --kernel-size, or a key"),
        (("k3a0", "--anchor", "start", "--kernel-size", "3"), "got k3a0 and --kernel-size, --anchor"),
        (("k3b0",), "not a taps key: 'k3b0'"),
        (("--kernel-size", "3", "--anchor", "end"), "--anchor must be center or start, got 'end'"),
        (("k3a0", "-o", os.devnull), "-o takes a plain file, got /dev/null"),  # a rename would replace the device
        (("k3a0", "-o", "nowhere/taps.png"), "nowhere/taps.png"),
    ],
)
def test_show_refuses(args: tuple[str, ...], says: str) -> None:
    assert says in orient("show", *args, code=2).stderr
    assert not Path(os.devnull).is_file()
