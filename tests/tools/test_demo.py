"""Demo: its pieces, and the whole with a tuner that finds nothing on a picture that is small."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tvm_orient import ConvSpec, Taps, angles_between, env
from tvm_orient.bench.rows import DEFAULT, TUNED, Row
from tvm_orient.errors import EnvironmentProblem, InvalidArgument
from tvm_orient.evaluate import reference
from tvm_orient.problem.device import cpu_device
from tvm_orient.tools import demo
from tvm_orient.tuning.result import Outcome, Progress, TooBusy
from tvm_orient.tuning.tune import distinct_parts


def small_photograph() -> np.ndarray[Any, np.dtype[np.float32]]:
    """A bright line at 45 degrees, counter-clockwise from the right."""
    picture = np.zeros((32, 32), dtype=np.float32)
    picture[np.arange(32)[::-1], np.arange(32)] = 1
    return picture


def finds_nothing(spec: ConvSpec, device: Any, *, trials: int, batch: int, report: Callable[[Progress], None], wait: float) -> list[Outcome]:
    found = []
    parts = distinct_parts(spec)
    for position, part in enumerate(parts):
        report(Progress(part, position, len(parts), trials, trials, 0, 8.0, 9.0, 1.0, 1.0))
        found.append(Outcome(part, None, 9.0, 8.9, trials, 0, 0, 1.0, {"measure": 1.0}, "the default stays"))
    return found


@pytest.fixture
def printed() -> Console:
    return Console(file=io.StringIO(), width=120, markup=False, emoji=False, highlight=False)


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_the_steps(tmp_path: Path, printed: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_photograph", small_photograph)
    monkeypatch.setattr(env, "shipped_log_dir", lambda: tmp_path / "none shipped")  # whose records might answer for a near shape
    monkeypatch.setattr(demo, "tune", finds_nothing)
    monkeypatch.setattr(demo, "_PEERS", ("grouped_raster",))  # the compiled ones take a minute
    assert demo.run(tmp_path / "new" / "pictures", 2, printed) == 0
    said = text(printed)
    for word in (
        "(3, 8, 32, 32)",
        "10 candidates measured",
        "0 of 5 angles beat",
        "right",
        "the same bits",
        "a dense kernel per angle",
        "kept the default",
        "the untuned kernel stands",
    ):
        assert word in said
    for name in ("montage.png", "speed.png"):
        assert (tmp_path / "new" / "pictures" / name).stat().st_size > 10_000
        assert name in said


def test_a_wrong_result_is_said(tmp_path: Path, printed: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_photograph", small_photograph)
    monkeypatch.setattr(demo, "tune", finds_nothing)
    monkeypatch.setattr(demo, "oriented_conv2d", lambda x, weight, theta: torch.zeros_like(x))
    assert demo.run(tmp_path, 2, printed) == 1
    assert "WRONG" in text(printed)
    assert list(tmp_path.iterdir()) == []


def test_the_demo_goes_on_untuned_where_the_machine_is_busy(printed: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    def busy(*_: Any, report: Callable[[Progress], None], **how: Any) -> list[Outcome]:
        part = ConvSpec("conv", 8, 32, 32, Taps.oriented(0.0, 31))
        report(Progress(part, 0, 5, 0, 2, 0, None, None, 1.0, None, (0.5, 3.0)))
        raise TooBusy("other work uses 50% of the cores", [Outcome(part, None, 9.0, 8.0, 2, 0, 0, 1.0, {}, "", doubt="busy")])

    monkeypatch.setattr(demo, "tune", busy)
    demo._tune(ConvSpec("conv", 8, 32, 32, Taps.oriented(angles_between(8), 31)), cpu_device(), 2, 3, printed)
    said = text(printed)
    assert "stopped: other work uses 50% of the cores" in said
    assert "0 of 1 angles beat the untuned kernel; 1 are not recorded" in said
    assert "recorded in" not in said


def row(method: str, milliseconds: float) -> Row:
    kinds = {"int": 0, "str": "", "bool": True}
    blank = {field.name: kinds.get(str(field.type)) for field in dataclasses.fields(Row)}
    return Row(**{**blank, "method": method, "cache": "cold", "median_ms": milliseconds})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tuned", "said"), [(None, "stands"), (1.0, "alike"), (1.01, "alike"), (0.8, "tuning made the layer 1.25 times as fast"), (1.2, "1.20 times as long")]
)
def test_the_verdict_is_what_was_measured(tuned: float | None, said: str) -> None:
    rows = [row(DEFAULT, 1.0), row("native", 3.0), *([row(TUNED, tuned)] if tuned else [])]
    assert said in demo._verdict(rows)


def test_lines_stand_out_in_their_direction() -> None:
    x, weight = demo._bands(small_photograph()), demo._weights()
    assert x.shape == (3, 8, 32, 32)
    assert torch.equal(weight.sum(1), weight.sum(1)[:1].expand(8))
    y = reference.conv(x, weight, Taps.oriented(angles_between(8), 31)).sum(0)
    along = torch.arange(8, 24)
    strength = y[:, 31 - along, along].abs().mean(1)
    assert strength.argmax() == 2  # 45 of 0, 22.5, 45, ...


def test_the_photograph_ships() -> None:
    picture = demo._photograph()
    assert picture.shape == (512, 512)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 1


@pytest.mark.parametrize(("module", "package"), [("skimage", "scikit-image"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_named(module: str, package: str, tmp_path: Path, printed: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else found(name, *more))
    with pytest.raises(EnvironmentProblem, match=f"{package}.*pip install 'tvm-orient\\[demo\\]'"):
        demo.run(tmp_path / "out", 2, printed)
    assert not (tmp_path / "out").exists()


def test_pictures_need_a_folder(tmp_path: Path, printed: Console) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InvalidArgument, match="which is a file"):
        demo.run(tmp_path / "file", 2, printed)
    assert (tmp_path / "file").read_text() == "mine"
