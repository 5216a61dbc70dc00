"""The command line as a whole: help, starting, exit codes, streams, and one line for what goes wrong."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.support.command_line import ROOT, TINY, VERBS, orient, real
from tvm_orient.cli.application import app

# ---- help and start -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_shows_an_example(verb: str) -> None:
    said = orient(*verb.split(), "--help").stdout
    assert re.search(rf"Examples?\s+\$ tvm-orient {verb}", said), said


def test_help_says_degrees() -> None:
    assert "DEGREES" in orient("--help").stdout
    assert "DEGREES" in orient("tune", "--help").stdout


def test_help_names_every_verb_in_order() -> None:
    said = orient("--help").stdout
    found = [verb for verb in re.findall(r"│ (\w+) ", said) if verb in VERBS]
    assert found == ["doctor", "show", "tune", "build", "explain", "check", "bench", "logs", "cache", "demo"]


def test_starting_imports_nothing_heavy() -> None:
    code = "import sys\nfrom tvm_orient.cli import app\napp(['--help'], standalone_mode=False)\nprint(sorted({name.split('.')[0] for name in sys.modules}))"
    done = real("-c", code)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "tvm", "tvm_ffi", "matplotlib", "xgboost"}.intersection(re.findall(r"'(\w+)'", done.stdout.splitlines()[-1]))


def test_module_and_version() -> None:
    done = real("-m", "tvm_orient", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"tvm-orient \d+\.\d+\.\d+\n", done.stdout)


# ---- errors and streams -------------------------------------------------------------------------


def test_no_gpu_is_a_failure_not_bad_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.problem.device.cuda_devices", lambda: ())
    assert orient("explain", *TINY, "--target", "cuda", code=1).stderr.startswith("error: no CUDA GPU on this machine")


def test_unknown_verb_and_option() -> None:
    orient("frobnicate", code=2)
    orient("show", "--frobnicate", code=2)


@pytest.mark.parametrize(
    ("problem", "code", "says"),
    [
        (PermissionError(13, "Permission denied", "/some/where"), 1, "error: /some/where: Permission denied"),
        (KeyboardInterrupt(), 1, "error: interrupted"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "error: this needs torch, which is not installed"),
    ],
)
def test_what_is_not_ours_is_one_line_too(problem: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise problem

    monkeypatch.setattr("tvm_orient.tools.plots.taps.taps_text", fail)
    said = orient("show", "k3a0", code=code).stderr
    assert said.startswith(says)
    assert len(said.splitlines()) == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.tools.plots.taps.taps_text", lambda *_: 1 // 0)
    assert isinstance(CliRunner().invoke(app, ["show", "k3a0"]).exception, ZeroDivisionError)


@pytest.mark.parametrize("args", [("show", "--kernel-size", "301", "--json"), ("show", "--kernel-size", "301"), ("--help",)])
def test_a_reader_that_leaves_hears_nothing_more(args: tuple[str, ...]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "tvm_orient", *args], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # type: ignore[union-attr]
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_is_printed_to(encoding: str) -> None:
    command = [sys.executable, "-m", "tvm_orient", "show", *TINY[-2:], "--angles", "30"]
    for verb in (command, [*command[:3], "explain", "--target", "cpu", *TINY, "--angles", "30"]):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        done = subprocess.run(verb, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
        said = done.stdout.decode(encoding)
        assert ("30 deg" if encoding == "ascii" or "show" in verb else "30\N{DEGREE SIGN}") in said, said
