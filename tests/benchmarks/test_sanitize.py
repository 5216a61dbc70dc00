"""The sanitizer's driver, with a script in the sanitizer's place: cases run and are checked, summaries are read, absence is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import sanitize
import typer
from typer.testing import CliRunner

from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.schedules import registry

APP = typer.Typer()
APP.command()(sanitize.main)
HELP = 'if [ "$1" = --help ]; then echo "  --kernel-name arg"; exit; fi\n'
SKIP = 'tool=$2; while [ "${1##*/}" = "${1##*/python}" ]; do case $1 in *python*) break;; esac; shift; done\n'
RUN = 'case " $* " in *" kns=main "*) ;; *) echo "no filter"; exit 3;; esac\n' + SKIP + '"$@" || exit\n'


FEW = ["--target", "cpu", "--only", "circular", "--only", "float16"]


def script(folder: Path, body: str) -> Path:
    path = folder / "sanitizer"
    path.write_text("#!/bin/bash\n" + HELP + body)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_template_has_cases(kind: str) -> None:
    device = cpu_device() if kind == "cpu" else arch_device("sm_90a")
    shallow, deep = list(sanitize.cases(device, False)), list(sanitize.cases(device, True))
    names = {template.name for template in registry.TEMPLATES if template.kind == kind}
    for found in (shallow, deep):
        assert {choice.template for _, _, choices in found for choice in choices} == names | {registry.GENERIC[kind].name}
    assert len(deep) > 3 * len(shallow)
    assert {spec.op for _, spec, _ in shallow} == {"conv", "conv_dx", "conv_dw"}


def test_plain_cases_and_no_sanitizer_on_a_cpu() -> None:
    done = CliRunner().invoke(APP, FEW)
    assert done.exit_code == 0, done.output
    assert "0 wrong" in done.output
    assert "skipped: compute-sanitizer is for CUDA kernels" in done.output


def test_a_wrong_result_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sanitize.tolerance, "tolerance", lambda *_: -1.0)
    done = CliRunner().invoke(APP, FEW)
    assert done.exit_code == 1
    assert "wrong: conv, cpu_rows, circular: off by" in done.output


@pytest.mark.parametrize(
    ("summary", "status", "said"),
    [
        ("========= ERROR SUMMARY: 0 errors", 0, "memcheck: clean: ERROR SUMMARY: 0 errors, cases: "),
        ("========= ERROR SUMMARY: 3 errors", 9, "memcheck: FOUND: ERROR SUMMARY: 3 errors, cases: "),
        ("Error: Device not supported", 1, "memcheck: skipped: could not run: no filter"),
    ],
)
def test_summaries(summary: str, status: int, said: str, tmp_path: Path) -> None:
    program = script(tmp_path, RUN + f'echo "{summary}"; exit {status}\n')
    done = CliRunner().invoke(APP, [*FEW, "--tools", "memcheck", "--sanitizer", str(program), "--logs", str(tmp_path)])
    assert said in done.output, done.output + (tmp_path / "sanitizer-memcheck.log").read_text()
    assert done.exit_code == (1 if "FOUND" in said else 0)


def test_a_problem_that_is_none() -> None:
    done = CliRunner().invoke(APP, ["--only", "spoon"])
    assert done.exit_code == 2
    assert "only must be among eight angles" in " ".join(done.output.replace("│", "").split())


def test_a_tool_that_does_not_end(tmp_path: Path) -> None:
    program = script(tmp_path, "sleep 30\n")
    clean, text = sanitize.under(str(program), "racecheck", cpu_device(), False, ["circular"], tmp_path, 0.3)
    assert clean is None
    assert text.startswith("no end within 0 s")


def test_it_is_looked_for_in_cuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert sanitize.sanitizer.find(None) is None or not str(sanitize.find(None)).startswith(str(tmp_path))
    (tmp_path / "compute-sanitizer").mkdir()
    program = tmp_path / "compute-sanitizer" / "compute-sanitizer"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert sanitize.sanitizer.find(None) == str(program)
