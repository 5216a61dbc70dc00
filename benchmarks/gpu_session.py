"""Everything that a GPU is wanted for, in one command that may be cut at any moment and called again: docs/gpu.md has the steps.

    python benchmarks/gpu_session.py --minutes 9.3                    (make gpu-session) on the machine with the GPU
    python benchmarks/gpu_session.py --target cpu --quick --minutes 5 the same stages without one
    python benchmarks/gpu_session.py --collect results.tar.gz         afterwards, in the checkout: results and records to their places

Stages run one after another, each in a process of its own with a limit, what tells most first. A stage that its limit ended is
unfinished, and goes on when all have had their turn, or in the next call: what was done stands in --state. While a stage runs, report.md
and results.tar.gz under --out are kept up to date.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grids  # noqa: F401  makes a bare checkout importable
import typer
from terminal import UNFINISHED, say
from verdict import joined, lines, notes, report

from tvm_orient import logs
from tvm_orient.device import device_for
from tvm_orient.errors import OrientError
from tvm_orient.spec import OPS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
_REFRESH_S, _GRACE_S, _LEAST_S, _TRIES = 20.0, 10.0, 20.0, 3
_KEPT = ("*.csv", "*.png", "*.xml", "*.log", "state.json", "tuning_logs/**/*.jsonl", "tuning_logs/.trials/**/*.jsonl")


@dataclass(frozen=True)
class Stage:
    """One thing to do: its command, and the most seconds of one turn; what is in it is told its minutes where timed."""

    name: str
    command: tuple[str, ...]
    seconds: float
    timed: bool = False


def stages(target: str, state: Path, quick: bool) -> list[Stage]:
    """What is worth doing, in order."""
    python, small = sys.executable, ("--quick", "--first", "1", "--batch", "1") if quick else ()

    def bench(name: str, seconds: float, *more: str) -> Stage:
        patience = "10" if quick else "90"
        command = (python, str(HERE / "run.py"), "--target", target, "--resume", "--patience", patience, "--out", str(state / f"{name}.csv"), *more, *small)
        return Stage(name, command, seconds, timed=True)

    def check(name: str, seconds: float, *more: str) -> Stage:
        files = ("tests/test_gpu.py",) if quick else ()
        return Stage(name, (python, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={state / name}.xml", *files, *more), seconds)

    def tune(name: str, trials: int, seconds: float) -> Stage:
        command = (python, str(HERE / "tune_gpu.py"), "--target", target, "--trials", str(2 if quick else trials), "--logs", str(state / "tuning_logs"), *small)
        return Stage(name, command, seconds, timed=True)

    rivals = "none" if quick else "some"
    clean = (python, str(HERE / "sanitize.py"), "--target", target, "--logs", str(state), "--seconds", "150")
    return [
        Stage("facts", (python, "-m", "tvm_orient", "doctor"), 60),
        check("check-fast", 120, "-k", "small or axes or stream or graph"),
        bench("untuned", 150, "--peers", "none", *(() if quick else ("--first", "198"))),  # the table in float32, and eight angles in halves
        tune("tune", 24, 330),
        bench("tuned", 360, "--peers", "some"),
        Stage("sanitize", clean, 330),
        check("check", 300),
        bench("networks", 150, "--grid", "networks", "--peers", rivals),
        bench("batch1", 90, "--grid", "batch1", "--peers", rivals),
        Stage("protocol", (python, str(HERE / "protocol.py"), "--target", target, "--out", str(state / "protocol.csv"), *(("--quick",) if quick else ())), 120),
        bench("published", 90, "--grid", "published", "--peers", "none" if quick else "all"),
        tune("tune-more", 64, 600),
    ]


class Session:
    """What was done, in which files, until when."""

    def __init__(self, target: str, state: Path, out: Path, deadline: float, quick: bool) -> None:
        self.target, self.state, self.out, self.deadline, self.quick = target, state, out, deadline, quick
        for folder in (state, out, state / "tuning_logs"):
            folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[str, dict[str, object]] = {}
        with contextlib.suppress(OSError, ValueError):
            self.done = json.loads((state / "state.json").read_text())

    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def run(self, wanted: list[Stage]) -> None:
        """Turns, until all is done, nothing more may be tried, or the time is over."""
        while self.left() > _LEAST_S:
            waiting = [stage for stage in wanted if self._status(stage) not in ("done", "failed") and self._tries(stage) < _TRIES]
            if not waiting:
                break
            self.turn(min(waiting, key=self._tries))
        self.publish()

    def _status(self, stage: Stage) -> object:
        return self.done.get(stage.name, {}).get("status")

    def _tries(self, stage: Stage) -> int:
        return int(str(self.done.get(stage.name, {}).get("tries", 0)))

    def turn(self, stage: Stage) -> None:
        """Runs one stage within its limit and the time left; writes what came of it."""
        limit, begin = min(stage.seconds, self.left() - _GRACE_S), time.monotonic()
        command = [*stage.command, *(("--minutes", f"{max(0.05, (limit - 15) / 60):.2f}") if stage.timed else ())]
        say(f"[{stage.name}] {limit:.0f} s at most: {' '.join(command)}")
        with (self.state / f"{stage.name}.log").open("a") as log:
            status = _call(command, log, self._environment(stage), limit, self.publish)
        outcome = {0: "done", UNFINISHED: "unfinished", None: "unfinished"}.get(status, "failed")
        if outcome == "failed" and self._tries(stage) == 0:
            outcome = "again"
        spent = time.monotonic() - begin
        before = float(str(self.done.get(stage.name, {}).get("seconds", 0.0)))
        self.done[stage.name] = {"status": outcome, "tries": self._tries(stage) + 1, "seconds": round(before + spent, 1), "exit": status}
        _write(self.state / "state.json", json.dumps(self.done, indent=1))
        say(f"[{stage.name}] {outcome} after {spent:.0f} s: {_last_line(self.state / f'{stage.name}.log')}")
        self.publish()

    def _environment(self, stage: Stage) -> dict[str, str]:
        chosen = self.state / ("no_logs" if stage.name == "untuned" else "tuning_logs")
        places = {"TVM_ORIENT_LOG_DIR": chosen, "TVM_ORIENT_CACHE_DIR": self.state / "kernels"}
        caches = {"TORCHINDUCTOR_CACHE_DIR": self.state / "inductor", "TRITON_CACHE_DIR": self.state / "triton"}
        return {**os.environ, "PYTHONUNBUFFERED": "1", **{name: str(path) for name, path in {**places, **caches}.items()}}

    def publish(self) -> None:
        """report.md and results.tar.gz under out, each replaced whole."""
        _write(self.out / "report.md", "\n".join(self.report()) + "\n")
        temporary = self.out / "results.partial"
        with tarfile.open(temporary, "w:gz") as archive:
            for path in sorted({path for pattern in _KEPT for path in self.state.glob(pattern) if path.is_file()}):
                archive.add(path, path.relative_to(self.state).as_posix())
        os.replace(temporary, self.out / "results.tar.gz")

    def report(self) -> list[str]:
        """The stages, the end of each log, and the verdict over what is measured."""
        text = ["# GPU session", "", "| stage | status | seconds | turns | last line |", "| --- | --- | ---: | ---: | --- |"]
        for name, facts in self.done.items():
            text.append(f"| {name} | {facts['status']} | {facts['seconds']} | {facts['tries']} | {_last_line(self.state / f'{name}.log')} |")
        for name in ("untuned", "tuned"):
            with contextlib.suppress(OrientError):
                rows = joined([self.state / f"{name}.csv"])
                text += ["", f"## {name}", "", *report(lines(rows, self.quick)), *notes(rows, self.quick)]
        for name in ("networks", "batch1", "published"):
            with contextlib.suppress(OrientError):
                text += ["", f"## {name}", "", *notes(joined([self.state / f"{name}.csv"]), False)]
        return text


def _call(command: list[str], log: object, environment: dict[str, str], limit: float, refresh: Callable[[], None]) -> int | None:
    """The exit status; None where the limit ended it: Ctrl-C first, which lets it write what it has."""
    begin = shown = time.monotonic()
    process = subprocess.Popen(  # type: ignore[call-overload]
        command, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT, env=environment, start_new_session=True, preexec_fn=_heed
    )
    try:
        while time.monotonic() - begin < limit:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return int(process.wait(1.0))
            if time.monotonic() - shown > _REFRESH_S:
                refresh()
                shown = time.monotonic()
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_S)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):  # what it started too
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _heed() -> None:
    """In a new process, before its command: Ctrl-C ends it, though a shell that started this session in the background had it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _last_line(path: Path) -> str:
    with contextlib.suppress(OSError):
        said = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        return said[-1].replace("|", "/")[:160] if said else ""
    return ""


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def collect(archive: Path, state: Path, results: Path, shipped: Path) -> list[str]:
    """Unpacks a session into state, copies its tables to results, and merges its records into the shipped logs; says what went where."""
    state.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive) as packed:
        packed.extractall(state, filter="data")
    said = []
    slugs = [folder.name for folder in sorted((state / "tuning_logs").glob("[!.]*")) if folder.is_dir()]
    for slug in slugs:
        for op in OPS:
            found = logs.log_path(state / "tuning_logs", slug, op)
            if found.exists():
                place = logs.log_path(shipped, slug, op)
                place.parent.mkdir(parents=True, exist_ok=True)
                records = [*(logs.read(place).records if place.exists() else []), *logs.read(found).records]
                kept = logs.prune(records)
                logs.write(kept, place)
                said.append(f"{place}: {len(kept)} records")
    results.mkdir(parents=True, exist_ok=True)
    for table in sorted(state.glob("*.csv")):
        with table.open(newline="") as file:
            device = next((row["device"] for row in csv.DictReader(file)), None)
        if device is None:
            continue
        name = device if table.stem == "tuned" else f"{device}-{table.stem}"
        for tail in (".csv", ".png", "-roofline.png"):
            if (made := state / f"{table.stem}{tail}").exists():
                shutil.copyfile(made, results / f"{name}{tail}")
                said.append(str(results / f"{name}{tail}"))
    return said


def main(
    minutes: Annotated[float, typer.Option(help="Time for this call.")] = 9.3,
    target: Annotated[str, typer.Option(help="cuda, or cpu.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="One tiny problem a stage.")] = False,
    only: Annotated[str | None, typer.Option(metavar="STAGES", help="Those stages alone, separated by commas.")] = None,
    state: Annotated[Path, typer.Option(metavar="DIR", help="What lasts between calls.")] = ROOT / ".gpu_session",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the report and the archive go.", show_default="$OUT, or out in the state")] = None,
    archive: Annotated[Path | None, typer.Option("--collect", metavar="TAR", help="Put the results of a session to their places in this checkout.")] = None,
) -> None:
    """Run the stages, or collect what they left."""
    deadline = time.monotonic() + 60 * minutes
    try:
        if archive is not None:
            for line in collect(archive, state, HERE / "results", ROOT / "tuning_logs"):
                say(line)
            return
        device_for(target)
        place = out or Path(os.environ.get("OUT") or state / "out")
        session = Session(target, state, place, deadline, quick)
        names = only.split(",") if only else None
        wanted = [stage for stage in stages(target, state, quick) if names is None or stage.name in names]
        session.run(wanted)
        for line in session.report():
            say(line)
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem
    if any(facts["status"] == "failed" for facts in session.done.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
