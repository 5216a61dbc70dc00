"""Run what a kit holds, on the machine with the GPU: one command, bounded in time, that tells as it goes. It lies in the kit itself.

    mkdir KIT && tar -xJf kit.tar.xz -C KIT && python3 KIT/run.py --minutes 8.5 --out DIR
    python3 KIT/run.py --minutes 4 --out DIR                        goes on with what is left
    python -m benchmarks.gpu.collect DIR                            in a checkout: results to their places

Steps run one after another, most telling first, each in a process of its own. A kernel that fails, is wrong, hangs or kills its process is
a line of the results, and the next one runs in a fresh process. Results are whole after each kernel. docs/gpu.md has the steps.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tvm_orient.toolchain.worker import ChildProcess, environment, module_command

from .results import FACTS, Results, write
from .summary import summary
from .tools import counters, sanitize

KIT = Path(__file__).resolve().parents[2]
# step: its parts of the kit, most telling step first
STEPS = {
    "smoke": ("smoke",),
    "floors": ("floors",),
    "table": ("alone-float32", "merged-float32"),
    "counters": ("counters",),
    "apart": ("apart-float32",),
    "sanitizer": ("sanitizer",),
    "candidates": ("candidates-float32",),
    "peers": ("peers",),
    "halves": ("alone-float16", "merged-float16", "alone-bfloat16", "merged-bfloat16"),
    "mirrored": ("mirrored-float32",),
    "sanitizer-more": ("sanitizer-more",),
}
# by their name in tvm_orient.bench.peers.registry; those that take a hundred times our time are not among them
PEERS = ("compiled_shift", "compiled_shift_padded", "native", "native_channels_last", "native_cudnn")
_START_S = 120.0  # seconds in which a process must have imported torch and seen the device
_MIN_LEFT_S = 3.0  # seconds: with less left no job is begun
_ALIKE = 3  # first jobs of a step that fail alike: no kernel's fault
_SURROUNDINGS = ("EnvironmentProblem", "ImportError", "ModuleNotFoundError", "FileNotFoundError", "OSError")  # that a step lacks, whatever worked before it
_EVERY = 8  # right kernels of smoke between two lines
_Job = dict[str, Any]


class Stopped(Exception):
    """The run cannot go on; the text says why, for people."""


class Run:
    """Steps until a deadline; what is found lies in results."""

    def __init__(self, results: Results, deadline: float, patience: float, target: str, peers: list[str]) -> None:
        self.results, self.deadline, self.patience, self.peers, self.begin = results, deadline, patience, peers, time.monotonic()
        places = {"TVM_ORIENT_CACHE_DIR": KIT / "cache", "TVM_ORIENT_LOG_DIR": KIT / "no_logs"}
        fixed = {"TVM_ORIENT_BUILD": "0", "TVM_ORIENT_RUN_TARGET": target, **{name: str(place) for name, place in places.items()}}
        self.environment = environment([KIT, KIT / "site"], **fixed)
        self.log = results.place("stderr.log")
        command = module_command("benchmarks.gpu.work")
        self.worker = ChildProcess(command, patience, self.environment, self.log, bound=True)
        self.jobs: list[_Job] = [json.loads(line) for line in (KIT / "jobs.jsonl").read_text().splitlines() if line]
        self.device, self.right = "", 0

    @property
    def left(self) -> float:
        """Return the seconds until the deadline."""
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """Print one line, with the time since the start."""
        print(f"{time.monotonic() - self.begin:5.0f}s {text}", flush=True)

    def facts(self) -> dict[str, Any]:
        """Return what the machine and the kit are; kept beside the results.

        Raises:
            Stopped: kernels cannot run here, or these results are another card's.
        """
        kit = json.loads((KIT / "kit.json").read_text())
        answer = self._started()
        self.device = answer["device"]["slug"]
        others = {result.get("device") for result in self.results.found.values()} - {self.device}
        if others:
            raise Stopped(
                f"results must be of one card, got {', '.join(map(str, others))} in {self.results.folders}, and this is {self.device}: give another --out"
            )
        query = ["nvidia-smi", "--query-gpu=driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu", "--format=csv,noheader"]
        said = ""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            said = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
        found = {**answer, "driver": said.partition(",")[0] or None, "state": said, "kit": kit}
        write(self.results.place(FACTS), json.dumps(found, indent=1))
        self.say(f"{answer['hardware']} ({self.device}), torch {answer['torch']}, Python {answer['python']}; {said or 'no nvidia-smi'}")
        self.say(f"kit of {kit['made']}, {kit['arch']}, {sum(kit['jobs'].values())} jobs; {len(self.results.found)} results are there already")
        return found

    def step(self, name: str) -> None:
        """Do every job of a step that has no result yet, until the deadline."""
        jobs = [job for part in STEPS[name] for job in self.jobs if job["part"] == part]
        self.worker.close()  # a step has a process of its own
        if not jobs:
            self.say(f"--- {name}: the kit has no jobs for it")
        elif name == "counters":
            counters(self, jobs)
        elif name.startswith("sanitizer"):
            sanitize(self, jobs)
        else:
            self._kernels(name, jobs)
        self.results.share()

    def _kernels(self, name: str, jobs: list[_Job]) -> None:
        left = [job for job in jobs if _key(job) not in self.results.found]
        self.say(f"--- {name}: {len(left)} of {len(jobs)} jobs")
        bad = right = 0
        first_errors: dict[str, str] = {}  # of the first jobs of this step, by key
        for number, job in enumerate(jobs):
            if _key(job) not in self.results.found:
                if self.left < _MIN_LEFT_S:
                    break
                answer = self._done(job)
                if answer is None:
                    break
                fault = "error" in answer
                bad, right, self.right = bad + fault, right + (not fault), self.right + (not fault)
                if fault or job["do"] != "smoke" or right % _EVERY == 1:
                    self.say(f"{job['name']:32} {answer.get('line') or answer.get('fault', '') + ': ' + answer['error'][:200]}")
                if fault and not right:
                    first_errors[_key(job)] = answer["error"]
                    if self._in_vain(name, first_errors):
                        return
            following = jobs[number + 1] if number + 1 < len(jobs) else None
            if job["do"] == "time" and (following is None or following["spec"] != job["spec"]):
                self._final(job, jobs)
        lacking = sum(_key(job) not in self.results.found for job in jobs)
        self.say(f"{name}: {right} right, {bad} bad" + (f", {lacking} left: the time is over" if lacking else ""))

    def _done(self, job: _Job) -> dict[str, Any] | None:
        """Return the answer to a job, recorded; None where the run's own end cut it."""
        with_peers = {"peers": self.peers, "patience": self.patience} if job["part"] == "peers" else {}
        wanted = self.patience * (1 + len(self.peers) * bool(with_peers))
        answer = self._asked({**job, **with_peers}, wanted)
        if answer.get("fault") == "hung" and self.left < _MIN_LEFT_S:
            return None
        self.record(_key(job), job, answer)
        return answer

    def _in_vain(self, name: str, errors: dict[str, str]) -> bool:
        """Return whether the first jobs of a step failed alike for a reason that is none of theirs; they then count as not done.

        Raises:
            Stopped: nothing has worked in this run.
        """
        texts = list(errors.values())
        if len(texts) != _ALIKE or len({text[:60] for text in texts}) > 1 or (self.right and not texts[0].startswith(_SURROUNDINGS)):
            return False
        self.results.take_back(errors)
        why = f"the first {_ALIKE} jobs of {name} failed alike, which is no kernel's fault: {texts[0]} {self._last_words()}"
        if not self.right:
            raise Stopped(why)
        self.say(f"{name}: left: {why}")
        return True

    def _asked(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """Return the answer of the process that runs kernels; {"error", "fault"} where the job fails, is wrong, hangs or kills it."""
        if not self.worker.running:
            self._started()
        seconds = max(0.1, min(seconds, self.left))
        answer = self.worker.told(request, seconds)
        if answer.get("fault") == "died":
            answer["error"] += f": {self._last_words()}"
        if answer.get("fault") == "failed" and answer["error"].startswith("wrong"):
            answer["fault"] = "wrong"
        return answer

    def _started(self) -> dict[str, Any]:
        """Return what a fresh process says of the machine; its start is not the time of the first job.

        Raises:
            Stopped: it does not start, or sees no device: what follows is no kernel's fault.
        """
        why = ""
        for _ in range(2):  # the one before may have left the device a moment ago
            answer = self.worker.told({"do": "facts"}, max(0.1, min(_START_S, self.left)))
            if "error" not in answer:
                return answer
            why = answer["error"]
        raise Stopped("the time is over" if self.left < _MIN_LEFT_S else f"no kernel can run here: {why}: {self._last_words()}")

    def _final(self, job: _Job, jobs: list[_Job]) -> None:
        """Times the best candidate of a problem in turn with the default, which is the first of them, where it was faster."""
        mine = [one for one in jobs if one["spec"] == job["spec"]]
        timed = [(found["median"], one) for one in mine if "median" in (found := self.results.found.get(_key(one), {}))]
        name = f"final/{job['part']}/{job['name']}"
        default = mine[0]
        if not timed or name in self.results.found or self.left < _MIN_LEFT_S:
            return
        best = min(timed, key=lambda pair: pair[0])[1]
        if best["entry"] == default["entry"] or "median" not in self.results.found.get(_key(default), {}):
            return
        request = {**best, "do": "final", "default_entry": default["entry"], "trials": len(timed)}
        answer = self._asked(request, 2 * self.patience)
        if answer.get("fault") == "hung" and self.left < _MIN_LEFT_S:
            return
        self.record(name, request, answer)
        self.say(f"  best of {len(timed)}: {best['choices'][0][0]:14} {answer.get('line') or answer['error'][:200]}")

    def record(self, name: str, job: _Job, answer: dict[str, Any]) -> None:
        """Keeps a result."""
        self.results.add(name, {**job, **answer, "device": self.device})

    def _last_words(self) -> str:
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " ".join(text.split())[-200:]

    def close(self) -> None:
        """Ends the process that runs kernels, and brings every file to its places."""
        self.worker.close()
        self.results.share()


def _key(job: _Job) -> str:
    return f"{job['part']}/{job['name']}/{job['entry']}"


def main(
    minutes: Annotated[float, typer.Option(help="Time for this call; it ends itself.")] = 8.5,
    steps: Annotated[str, typer.Option(help="Those alone, separated by commas.")] = ",".join(STEPS),
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="A copy of the results.", show_default="$OUT, or none: they lie in the kit")] = None,
    patience: Annotated[float, typer.Option(help="Most seconds of one kernel, and of each peer.")] = 40.0,
    peers: Annotated[str, typer.Option(help="Of the step peers, separated by commas.")] = ",".join(PEERS),
    target: Annotated[str, typer.Option(help="cuda, or cpu for a kit that was made for it.")] = "cuda",
) -> None:
    """Run the kernels of an unpacked kit, check and time them, and say what came of it."""
    deadline = time.monotonic() + 60 * minutes
    if unknown := [name for name in steps.split(",") if name not in STEPS]:
        raise typer.BadParameter(f"steps must be among {', '.join(STEPS)}, got {unknown[0]!r}")
    if not (KIT / "jobs.jsonl").exists():
        raise typer.BadParameter(f"this command runs from an unpacked kit, and {KIT} has no jobs.jsonl: unpack kit.tar.xz, and start its run.py")
    place = out or (Path(os.environ["OUT"]) if os.environ.get("OUT") else None)
    results = Results([KIT / "results", *([place] if place else [])])
    run = Run(results, deadline, patience, target, [name for name in peers.split(",") if name])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # who ends it gently gets the summary, as with Ctrl-C
    said, facts, status = "", {}, 0
    try:
        facts = run.facts()
        for name in steps.split(","):
            run.step(name)
    except Stopped as reason:
        said, status = f"stopped: {reason}", 1
    except KeyboardInterrupt:
        said, status = "interrupted", 130
    finally:
        run.close()
    for line in summary(results.found, facts):
        print(line)
    if said:
        print(said, flush=True)
    raise typer.Exit(status)


if __name__ == "__main__":
    typer.run(main)
