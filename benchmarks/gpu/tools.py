"""Run the steps of a GPU run that need a tool of CUDA's: hardware counters by Nsight Compute, memcheck and racecheck by compute-sanitizer.

A tool runs several jobs in one process. One that ends it before its time is recorded as the fault, and those behind it get another process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tvm_orient.toolchain.worker import bind

from . import sanitizer
from .results import Results, write

SECTIONS = (
    "SpeedOfLight", "SchedulerStats", "WarpStateStats", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables", "Occupancy", "LaunchStats",
    "InstructionStats", "ComputeWorkloadAnalysis",
)  # fmt: skip
_AT_ONCE = {"counters": 6, "sanitizer": 40}  # jobs of one process
_MAX_S = {"counters": 90.0, "sanitizer": 150.0}  # seconds of one process
_MIN_LEFT_S = 20.0  # seconds: with less left no process is begun
_SPARE_S = 5.0  # seconds that a process must leave to the run for its end
_Job = dict[str, Any]
_Begin = Callable[[int, list[str], float], tuple[str, str]]  # (number, command, seconds) -> (what the tool found, why it did not end as it should)


class Running(Protocol):
    """Name what a step needs of the run that it is part of."""

    results: Results
    environment: dict[str, str]

    @property
    def left(self) -> float:
        """Returns the seconds until the deadline."""

    def say(self, text: str) -> None:
        """Says a line."""

    def record(self, name: str, job: _Job, answer: dict[str, Any]) -> None:
        """Keeps a result."""


def counters(run: Running, jobs: Sequence[_Job]) -> None:
    """Read hardware counters of one launch of each job's kernels, in files that the module `counters` reads."""
    program = sanitizer.program("ncu", ("bin", "nsight-compute", "."))
    if program is None:
        run.say("counters: skipped: ncu is neither on PATH nor in a folder of CUDA")
        return
    sections = [word for name in SECTIONS for word in ("--section", name)]
    how = ["--clock-control", "none", "--kernel-name", "regex:main_kernel", "--csv", "--page", "raw", "--print-units", "base", *sections]

    def profile(number: int, once: list[str], seconds: float) -> tuple[str, str]:
        log, report = run.results.place("ncu.log"), run.results.place(f"ncu-{number}.csv")
        status = sanitizer.limited([program, *how, "--log-file", str(report), *once], log, seconds, run.environment, bind)
        return "", "" if status == 0 else f"no end within {seconds:.0f} s" if status is None else f"ncu ended with {status}: {_last(log, report)}"

    _in_turns(run, "counters", jobs, "ncu", profile)


def sanitize(run: Running, jobs: Sequence[_Job]) -> None:
    """Accesses out of bounds and hazards in shared memory, of every case."""
    program = sanitizer.find(None)
    if program is None:
        run.say("sanitizer: skipped: compute-sanitizer is neither on PATH nor in a folder of CUDA")
        return
    for tool in sanitizer.TOOLS:

        def check(number: int, once: list[str], seconds: float, tool: str = tool) -> tuple[str, str]:
            clean, said = sanitizer.under(program, tool, once, run.results.place(f"{tool}-{number}.log"), seconds, run.environment, bind)
            run.say(f"{tool}: {said}")
            return (said if clean is False else ""), (said if clean is None else "")

        _in_turns(run, "sanitizer", jobs, tool, check)


def _in_turns(run: Running, step: str, jobs: Sequence[_Job], tool: str, begin: _Begin) -> None:
    """Runs jobs under a tool, several in a process."""
    waiting = [job for job in jobs if _name(tool, job) not in run.results.found]
    blamed: list[str] = []  # jobs with which a process ended that had launched nothing
    run.say(f"--- {step}: {len(waiting)} of {len(jobs)} jobs under {tool}")
    while waiting:
        if run.left < _MIN_LEFT_S:
            run.say(f"{step}: {len(waiting)} jobs left under {tool}: the time is over")
            return
        some = waiting[: _AT_ONCE[step]]
        number = sum(name.startswith(f"{tool}/") for name in run.results.found)
        listed, done = run.results.place(f"{tool}-{number}.json"), run.results.place(f"{tool}-{number}.jsonl")
        done.unlink(missing_ok=True)
        write(listed, json.dumps(some))
        once = [sys.executable, "-P", "-m", "benchmarks.gpu.work", "--once", str(listed), str(done)]
        found, problem = begin(number, once, min(_MAX_S[step], run.left - _SPARE_S))
        launched = len(done.read_text().splitlines()) if done.exists() else 0
        whole = {"found": found} if found else {"error": problem} if problem and launched == len(some) else {}
        for job in some[:launched]:
            run.record(_name(tool, job), job, {"tool": tool, "file": number, **whole})
        if launched < len(some):
            if problem.startswith("no end") and run.left < _MIN_LEFT_S:
                continue  # the run's own end, not the job's
            job = some[launched]
            run.record(_name(tool, job), job, {"tool": tool, "file": number, "error": found or problem or "its process ended"})
            blamed = [] if launched else [*blamed, _name(tool, job)]
            launched += 1
            if len(blamed) == 2:
                run.results.take_back(blamed)
                run.say(f"{step}: left: nothing runs under {tool} here: {problem}")
                return
        waiting = waiting[launched:]
        run.say(f"{step}: {launched} jobs under {tool}, {found or problem or 'nothing found'}")


def _name(tool: str, job: _Job) -> str:
    return f"{tool}/{job['name']}/{job['entry']}"


def _last(*paths: Path) -> str:
    """Returns the last line that one of these files has."""
    said = [line for path in paths if path.exists() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return said[-1].strip()[-200:] if said else "it said nothing"
