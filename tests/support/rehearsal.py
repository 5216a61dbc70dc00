"""The GPU run of a kit on the machine of driver.py: every step to its end, without a GPU.

    python tests/support/rehearsal.py .gpu_kit/kit.tar.xz        a whole kit, and how long the run took but for what a GPU does

`rehearse` unpacks a kit into an empty folder and runs its one command there. Processes that run kernels load card.py before anything else.
Every problem gets a single image, since what a GPU does the host does here; all else of the kit stays as it is.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.results import read
from tests.support.driver import Machine, why_not

_ROOT = Path(__file__).resolve().parents[2]
_STARTS = """
import os, sys
if "benchmarks.gpu.work" in sys.orig_argv:
    sys.path.append({root!r})
    from tests.support import card
"""  # Python imports it in each process that finds it
Job = dict[str, Any]
# what stands in for Nsight Compute and compute-sanitizer: they run what they are given, and say what these say
_NCU = """#!/bin/bash
while [ "$1" != "--log-file" ]; do shift; done
report=$2; shift 2
"$@" || exit
echo '"ID","Kernel Name","gpu__time_duration.sum"' > "$report"
echo '"","","ns"' >> "$report"
"""
_SANITIZER = """#!/bin/bash
if [ "$1" = --help ]; then echo --kernel-name; exit; fi
while [[ "$1" != *python* ]]; do shift; done
"$@" || exit
echo "ERROR SUMMARY: 0 errors"; echo "RACECHECK SUMMARY: 0 hazards displayed"
"""


@dataclass(frozen=True)
class Rehearsal:
    """What came of it."""

    status: int  # of the command
    said: str
    results: dict[str, dict[str, Any]]  # by job
    wall: float  # seconds of the run
    device: float  # seconds of them in what a GPU does: kernels, and torch's own ops on its tensors
    launches: int  # that the driver saw


def rehearse(archive: Path, folder: Path, machine: Machine, *options: str, more: Callable[[list[Job]], list[Job]] = lambda jobs: []) -> Rehearsal:
    """Unpacks a kit into `folder`, which must not be there, and runs it to its end, by the installed packages instead of those that it carries.

    Args:
        more: jobs beside those of the kit, made of them.
    """
    kit, tools = folder / "kit", folder / "tools"
    tools.mkdir(parents=True)
    with tarfile.open(archive) as packed:
        packed.extractall(kit, filter="data")
    shutil.rmtree(kit / "site", ignore_errors=True)  # it is for one version of Python
    jobs = [{**json.loads(line), "batch": 1} for line in (kit / "jobs.jsonl").read_text().splitlines()]
    (kit / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in [*jobs, *more(jobs)]))
    for name, text in (("ncu", _NCU), ("compute-sanitizer", _SANITIZER), ("sitecustomize.py", _STARTS.format(root=str(_ROOT)))):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    log, spent = folder / "driver.jsonl", folder / "spent"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("TVM_ORIENT", "PYTHONPATH", "OUT", "CUDA"))}
    told = {
        "LD_LIBRARY_PATH": str(machine.stand_in), "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(tools),
        "STAND_IN_LOG": str(log), "REHEARSAL_SPENT": str(spent),
    }  # fmt: skip
    spent.mkdir()
    command = [sys.executable, str(kit / "run.py"), "--out", str(folder / "out"), *options]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=kept | told, cwd=folder)
    wall = time.monotonic() - begin
    seconds = sum(float(path.read_text()) for path in spent.iterdir())
    launches = sum('"what": "launch"' in line for line in log.open()) if log.exists() else 0
    return Rehearsal(done.returncode, done.stdout + done.stderr[-3000:], read(folder / "out"), wall, seconds, launches)


def main(archive: Path) -> None:
    """Rehearse a kit in a folder of its own, and say what came of it."""
    if reason := why_not():
        raise SystemExit(f"there can be no stand-in for a GPU here: {reason}")
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    done = rehearse(archive, folder / "run", Machine(folder / "machine"), "--minutes", "60")
    bad = sum("error" in result for result in done.results.values())
    print(done.said)
    print(f"{len(done.results)} results, {bad} bad, {done.launches} launches, all as their problems imply but for the bad ones; {folder}")
    print(f"{done.wall:.0f} s, {done.wall - done.device:.0f} s of them without what a GPU does")
    raise SystemExit(done.status or bool(bad))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
