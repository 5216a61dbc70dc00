"""A kit of a few CPU kernels, made once a session and unpacked for each test that asks for it."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.kit import INSTANT, ROOT, jobs_of, keep
from tests.support.once import once


@pytest.fixture(scope="session")
def made(shared: Path) -> Path:
    """A folder with a kit of a dozen kernels."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.gpu.kit", "--target", "cpu", "--quick", "--bare", "--out", str(folder)]
        done = subprocess.run([*command, "floors", "alone-float32", "counters", "candidates-float32"], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "alone-float32           6 of    6 jobs" in done.stdout

    return once(shared / "kit", make)


@pytest.fixture
def kit(made: Path, tmp_path: Path) -> Path:
    """It unpacked into an empty folder."""
    folder = tmp_path / "kit"
    with tarfile.open(made / "kit.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def instant(kit: Path) -> Callable[[float], Path]:
    def make(pause: float) -> Path:
        (kit / "benchmarks" / "gpu" / "work.py").write_text(INSTANT.replace("PAUSE", str(pause)))
        first = jobs_of(kit, "candidates")[:4]
        keep(kit, [{**job, "name": f"{job['name']} {number}"} for number in range(10) for job in first])
        return kit

    return make
