"""Making a kit: what its archive holds, packing it again, and going on where its making was cut."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from tests.support.kit import ROOT, jobs_of


def test_what_the_archive_holds(made: Path) -> None:
    """The archive holds no compiled Python, no hidden file, and what was compiled by this code alone."""
    with tarfile.open(made / "kit.tar.xz") as archive:
        names = archive.getnames()
    assert not [name for name in names if "__pycache__" in name or "/." in name]
    assert {"kit.json", "jobs.jsonl", "run.py", "benchmarks/gpu/run.py", "tvm_orient/schedules/base.py", "tvm_orient/toolchain/worker.py"} <= set(names)
    entries = {name.split("/")[1] for name in names if name.startswith("kernels/")}
    jobs = [json.loads(line) for line in (made / "jobs.jsonl").read_text().splitlines()]
    assert entries == {kernel["entry"] for job in jobs for kernel in (job, *job["tuned"].values())} - {""}


def test_packing_alone_compiles_nothing(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    lost = copy / "kernels" / next(job["entry"] for job in jobs_of(copy, "candidates") if job["spec"].startswith("conv_dw"))
    shutil.rmtree(lost)
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--target", "cpu", "--quick", "--bare", "--out", str(copy), "--pack-only"]
    done = subprocess.run([*command, "floors", "candidates-float32"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "candidates-float32     11 of   12 jobs" in done.stdout, done.stdout + done.stderr
    assert "1 not compiled" in done.stdout
    assert lost.name not in (copy / "jobs.jsonl").read_text()
    small = subprocess.run([*command, "--mib", "2.01"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert "did not fit" in small.stdout, small.stdout


@pytest.mark.long
def test_a_kit_whose_making_was_cut_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "kit"
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--target", "cpu", "--quick", "--bare", "--out", str(out), "alone-float32"]
    for ending in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=lambda: signal.signal(2, signal.SIG_DFL), cwd=ROOT
        )
        threads = Path(f"/proc/{process.pid}/task")  # each of which has started a compiler
        before = len(list(out.glob("kernels/conv*/kernel.so")))
        for _ in range(2400):
            if any(path.read_text() for path in threads.glob("*/children")) and len(list(out.glob("kernels/conv*/kernel.so"))) > before:
                break
            time.sleep(0.05)
        process.send_signal(ending)
        said, _ = process.communicate(timeout=30)
    assert process.returncode in (130, 0), said
    made = {path: path.stat().st_mtime_ns for path in out.glob("kernels/conv*/kernel.so")}
    assert len(made) >= 2, "each of the two runs compiled one"
    packed = subprocess.run([*command, "--pack-only"], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    with tarfile.open(out / "kit.tar.xz") as archive:
        kernels = [name for name in archive.getnames() if name.endswith("kernel.so")]
    assert kernels, packed  # a job is packed once all of its kernels are there
    assert "6 of    6 jobs" in subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert {path: path.stat().st_mtime_ns for path in made} == made, "what was compiled is not compiled again"
