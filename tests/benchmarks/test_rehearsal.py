"""A kit of CUDA kernels made here and run to its end on a machine with a stand-in for the driver: every step, every launch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.driver import Machine, why_not
from tests.support.rehearsal import Job, Rehearsal, rehearse

ROOT = Path(__file__).resolve().parents[2]

FEW = ("floors", "alone-float32")
ALL = (*FEW, "counters", "merged-float32", "candidates-float32", "peers", "alone-float16")
STEPS = {
    "alone-float32": "table",
    "merged-float32": "table",
    "candidates-float32": "candidates",
    "alone-float16": "halves",
}  # where another name


def sanitized(jobs: list[Job]) -> list[Job]:
    """The kernels of the table once more, as cases of the sanitizer's."""
    return [{**job, "part": "sanitizer", "do": "sanitizer"} for job in jobs if job["part"].startswith(("alone", "merged"))]


@pytest.fixture(scope="module", params=[pytest.param(FEW, id="few", marks=pytest.mark.long), pytest.param(ALL, id="all", marks=pytest.mark.long)])
def rehearsed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, shared: Path) -> tuple[tuple[str, ...], Rehearsal]:
    """Parts of a kit, and what came of their rehearsal."""
    if reason := why_not():
        pytest.skip(reason)
    folder, parts = tmp_path_factory.mktemp("rehearsal"), request.param
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--quick", "--bare", "--out", str(folder / "made"), *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not compiled" not in done.stdout
    more = sanitized if parts == ALL else lambda jobs: sanitized(jobs)[:1]
    return parts, rehearse(folder / "made" / "kit.tar.xz", folder / "run", Machine(shared / "machine"), more=more)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_step_runs_to_its_end_and_no_kernel_is_bad(rehearsed: tuple[tuple[str, ...], Rehearsal]) -> None:
    """Each launch is told what its problem implies: card.py holds the line that the driver logs of it against the problem; one that differs is a failed job."""
    parts, run = rehearsed
    assert run.status == 0, run.said
    assert "stopped" not in run.said
    assert " left" not in run.said
    for part in set(parts) - {"counters"}:
        assert f"{STEPS.get(part, part)}: " in run.said, run.said
    found = {name.partition("/")[0] for name in run.results}
    assert found >= {"floors", "alone-float32", "memcheck", "racecheck", *(("merged-float32", "peers", "ncu") if parts == ALL else ())}
    assert not [result for result in run.results.values() if "error" in result]
    assert run.launches > len(run.results)
