"""A kit of CUDA kernels made here and run to its end on a machine with a stand-in for the driver: every step, every launch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.driver import Machine, why_not
from tests.support.rehearsal import Job, Rehearsal, rehearse

ROOT = Path(__file__).resolve().parents[2]

PARTS = ("floors", "alone-float32", "merged-float32", "counters", "candidates-float32", "peers", "alone-float16")


def sanitized(jobs: list[Job]) -> list[Job]:
    """The kernels of the table once more, as cases of the sanitizer's."""
    return [{**job, "part": "sanitizer", "do": "sanitizer"} for job in jobs if job["part"].startswith(("alone", "merged"))]


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Rehearsal:
    if reason := why_not():
        pytest.skip(reason)
    folder, base = tmp_path_factory.mktemp("rehearsal"), tmp_path_factory.getbasetemp()
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--quick", "--bare", "--out", str(folder / "made"), *PARTS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not compiled" not in done.stdout
    machine = Machine((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "machine")
    return rehearse(folder / "made" / "kit.tar.xz", folder / "run", machine, more=sanitized)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_step_runs_to_its_end(rehearsed: Rehearsal) -> None:
    assert rehearsed.status == 0, rehearsed.said
    assert "stopped" not in rehearsed.said
    assert " left" not in rehearsed.said
    for step in ("floors", "table", "candidates", "peers", "halves"):
        assert f"{step}: " in rehearsed.said, rehearsed.said
    assert {name.partition("/")[0] for name in rehearsed.results} >= {"floors", "alone-float32", "merged-float32", "ncu", "memcheck", "racecheck", "peers"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_kernel_is_bad_and_each_launch_is_told_what_its_problem_implies(rehearsed: Rehearsal) -> None:
    """card.py holds the line that the driver logs of each launch against the problem; one that differs is a failed job."""
    assert not [result for result in rehearsed.results.values() if "error" in result]
    assert rehearsed.launches > len(rehearsed.results)
