"""tvm-orient tune: what it says while it searches, and how it ends."""

from __future__ import annotations

import io
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.command_line import PLAIN, TINY, fake, orient, printed_json, record
from tvm_orient import env
from tvm_orient.cli.application import app
from tvm_orient.errors import TuningFailed
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.tuning.result import Interrupted, Outcome, Progress, TooBusy


def distinct_parts(spec: ConvSpec) -> list[ConvSpec]:
    return [part for _, _, part in spec.parts()][:2]


def searching(stop: str = "", **seen: Any) -> Callable[..., list[Outcome]]:
    """A tune that measures nothing; stop names the op at which it is interrupted or fails, or how; seen is updated with what it was given."""

    def tune(
        spec: ConvSpec, device: Any, *, trials: int, batch: int, seed: int, report: Callable[[Progress], None], directory: Path | None, **how: Any
    ) -> list[Outcome]:  # fmt: skip
        given.update(how)
        parts = distinct_parts(spec)
        folder = directory or env.user_log_dir()
        stages = {"build": 3.0, "measure": 0.5}
        doubt = "the copy took 1 to 9 us in 5 turns" if stop == "doubt" else ""

        def outcome(place: int, part: ConvSpec) -> Outcome:
            row = None if doubt or place else record(part.key)
            written = None if doubt else folder / device.slug / "conv.jsonl"  # where the default won that is written
            return Outcome(part, row, 20.0, 10.0, trials, 1, 2, 3.5, stages, f"not recorded: {doubt}" if doubt else "", written, None, doubt)

        for place, part in enumerate(parts):
            for trial in range(trials + 1):
                report(Progress(part, place, len(parts), trial, trials, 1, 10.0 if trial else None, 20.0, trial, None))
                if stop in ("first", "interrupt", "busy") and (place, trial) == (0 if stop == "first" else 1, 2):
                    (folder / ".trials" / device.slug).mkdir(parents=True, exist_ok=True)
                    done = [outcome(0, parts[0])] if stop != "first" else []
                    raise TooBusy("other work uses 55% of the cores", done) if stop == "busy" else Interrupted(done)
                if stop == "ctrl-c" and (place, trial) == (1, 2):
                    os.kill(os.getpid(), signal.SIGINT)
        if stop == spec.op:
            raise TuningFailed(f"nothing for {spec.op} builds")
        return [outcome(place, part) for place, part in enumerate(parts)]

    given = seen.get("given", {})
    return tune


def fake_tune(monkeypatch: pytest.MonkeyPatch, tune: Callable[..., Any]) -> None:
    fake(monkeypatch, "tuning.tune", distinct_parts=distinct_parts, tune=tune)


def test_tune_reports_in_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, searching())
    said = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5).stdout
    assert "conv 0° (1 of 2): trial 5/5, 1 failed, best 10.0 us, 2.00x as fast as the default" in said
    assert said.count("trial ") == 4  # the first and the last of each angle
    assert f"2 of 2 angles recorded in {user_logs / cpu_device().slug}: 1 tuned, 1 where the default won" in said
    assert "7.0 s in all: build 6.0 s, measure 1.0 s" in said
    assert "the default stays" in said


def test_tune_json_is_pure(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, searching())
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--op", "all", "--trials", 5, "--json")
    found = json.loads(result.stdout)
    assert [(outcome["degrees"], outcome["record"] is not None) for outcome in found["outcomes"]] == [([0.0], True), ([90.0], False)] * 3
    assert found["interrupted"] is False
    assert found["failures"] == {}
    assert "trial 5/5" in result.stderr


def test_tune_interrupted_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, searching("interrupt"))
    folder, journal = user_logs / cpu_device().slug, user_logs / ".trials" / cpu_device().slug
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1)
    assert f"interrupted: 1 record in {folder} and the trials in {journal} are kept, and the same command goes on from there" in result.stderr
    assert "2/5" in result.stdout
    found = printed_json("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--log-dir", user_logs / "x", code=1)
    assert (found["interrupted"], found["journal"]) == (True, str(user_logs / "x" / ".trials" / cpu_device().slug))
    assert len(found["outcomes"]) == 1


def test_tune_interrupted_names_only_what_exists(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, searching("first"))
    journal = user_logs / ".trials" / cpu_device().slug
    said = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1).stderr
    assert f"interrupted: no record yet; the trials in {journal} are kept, and the same command goes on from there" in said
    assert journal.is_dir()

    def at_once(*_: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    fake_tune(monkeypatch, at_once)
    said = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--log-dir", user_logs / "y", code=1).stderr
    assert "interrupted before the first trial: nothing was written" in said


def test_tune_on_a_busy_machine_ends_with_what_was_found(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    given: dict[str, Any] = {}
    fake_tune(monkeypatch, searching("busy", given=given))
    args = ("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--op", "all", "--trials", 5, "--wait", 7, "--restart")
    result = orient(*args, code=1)
    assert f"error: other work uses 55% of the cores; the trials until then are kept in {user_logs / '.trials' / cpu_device().slug}" in result.stderr
    assert "1 of 1 angles recorded" in result.stdout
    assert given == {"restart": True, "wait": 7.0}
    found = json.loads(orient(*args, "--json", code=1).stdout)
    assert (found["busy"], len(found["outcomes"])) == ("other work uses 55% of the cores", 1)


def test_tune_says_what_it_does_not_believe(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, searching("doubt"))
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1)
    assert "0 of 2 angles recorded: nothing was written" in result.stdout
    assert "not recorded: the copy took 1 to 9 us in 5 turns" in " ".join(result.stdout.split())
    assert "error: 2 of 2 angles are not recorded: what was measured contradicts itself" in result.stderr


def test_ctrl_c_waits_for_the_trial_that_is_running(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, searching("ctrl-c"))
    before = signal.getsignal(signal.SIGINT)
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1)
    assert "error: stopping after this trial; Ctrl-C again stops at once" in result.stderr
    assert "error: interrupted before the first trial: nothing was written" in result.stderr  # by a tune that writes none
    assert "3/5" in result.stdout
    assert "4/5" not in result.stdout
    assert signal.getsignal(signal.SIGINT) is before


def test_tune_goes_on_after_an_op_that_fails(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, searching("conv_dx"))
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--op", "all", "--trials", 5, "--json", code=1)
    found = json.loads(result.stdout)
    assert len(found["outcomes"]) == 4
    assert list(found["failures"].values()) == ["nothing for conv_dx builds"]
    assert "error: nothing for conv_dx builds" in result.stderr


def test_tune_board_in_a_terminal() -> None:
    from rich.console import Console

    from tvm_orient.cli.progress import Board

    spec = ConvSpec("conv", 8, 6, 5, Taps.from_key("k3a0_90_45"))
    out = io.StringIO()
    printer = Console(force_terminal=True, width=100, color_system=None, file=out)
    parts = [part for _, _, part in spec.parts()]
    with Board(parts, printer) as board:
        board.report(Progress(parts[0], 0, 3, 3, 4, 1, 10.0, 20.0, 3.0, 0.0))
        board.report(Progress(parts[1], 1, 3, 2, 4, 0, None, 2000.0, 8.0, 65.0))
    assert "45°" in out.getvalue()
    board.report(Progress(parts[1], 1, 3, 2, 4, 0, None, 2000.0, 8.0, 65.0, (0.55, 110.0)))
    printer.print(board.table())
    assert "other work uses 55% of the cores: waiting for it to end, 1 min 50 s at most" in out.getvalue()
    board.report(Progress(parts[1], 1, 3, 2, 4, 0, None, 2000.0, 8.0, 65.0))
    out.truncate(0)
    printer.print(board.table())
    assert "about 1 min 05 s left" in out.getvalue()
    rows = [re.sub("━+.?━*", "", line).split() for line in out.getvalue().strip("\0").splitlines() if "°" in line]
    assert rows == [
        ["0°", "3/4", "1", "10.0", "us", "20.0", "us", "2.00x", "3.0", "s"],
        ["90°", "2/4", "0", "-", "2.00", "ms", "-", "8.0", "s"],
        ["45°"],
    ]


def test_tune_for_real(user_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # the lock of the device: whoever else tunes here is not waited for
    monkeypatch.setattr("tvm_orient.evaluate.machine.others_busy", lambda: 0.0)  # other tests are no reason to wait,
    result = CliRunner(env=PLAIN).invoke(app, ["tune", "--target", "cpu", *TINY, "--kernel-size", "5", "--angles", "45,135", "--trials", "4", "--batch", "1"])
    said = result.stdout
    assert result.exit_code == ("not recorded" in said), result.output  # but may be one to record nothing
    assert "conv 45° (1 of 1): trial 4/4, best" in said
    assert re.search(r"45° +4 +0 +0 +[\d.]+ [mu]s +[\d.]+ [mu]s +[\d.]+x ", said), said
    assert "135° use the records of their mirror images" in said
