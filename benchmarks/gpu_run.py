"""Run what gpu_kit.py packed, on the machine with the GPU: one command, bounded in time, that tells as it goes.

    python3 benchmarks/gpu_run.py KIT --minutes 4.5 [--steps smoke,alone-float32,...] [--out DIR]

Each step runs in a process of its own, kernel by kernel. A kernel that fails, gives a wrong result or hangs is a line of the results,
and the next one runs in a fresh process. results.jsonl, the table and the summary are whole after each kernel.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
_JOB_S = 40.0  # most seconds of one kernel: its process's start, its check and its times
_REPEATS = 12  # timed calls of each method in a cell
_RUNS = 20  # timed calls of a kernel that is timed alone
_MOST_BYTES = 6 << 30  # of rotating operands
_TARGET = "TVM_ORIENT_RUN_TARGET"  # cuda or cpu, for the processes that serve kernels
_COLD_BYTES = 192 << 20  # more than the L2 of any GPU here
SECTIONS = ("SpeedOfLight", "SchedulerStats", "WarpStateStats", "MemoryWorkloadAnalysis", "MemoryWorkloadAnalysis_Tables", "Occupancy", "LaunchStats",
            "InstructionStats", "ComputeWorkloadAnalysis")  # fmt: skip


# ---- in a process of its own: kernels -----------------------------------------------------------


def serve(kit: Path) -> None:
    """Answers requests, a line of JSON each, until standard input ends."""
    answers = {"smoke": smoke, "cell": cell, "time": timed}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = answers[request["do"]](request, kit)
            _finish()
        except Exception as problem:
            answer = {"error": f"{type(problem).__name__}: {str(problem).strip()[-300:]}"}
            try:
                _finish()
            except Exception:  # the context is gone: whatever follows here would fail for it
                answer["dead"] = True
        print("\n" + json.dumps(answer), flush=True)
        if answer.get("dead"):
            os._exit(1)
    os._exit(0)


def _device() -> Any:
    from tvm_orient.device import device_for

    return device_for(os.environ.get(_TARGET, "cuda"))


def _where() -> Any:
    import torch

    return torch.device("cuda", 0) if _device().kind == "cuda" else torch.device("cpu")


def _finish() -> None:
    from tvm_orient.timers import finish

    finish(_device())


def _spec(request: dict[str, Any]) -> Any:
    from tvm_orient.spec import ConvSpec

    return ConvSpec.from_key(request["spec"])


def adopted(request: dict[str, Any], kit: Path) -> Path:
    """The kernel of a job in this machine's cache, where every call finds it; a kernel with a path of its own stays there."""
    from gpu_jobs import choices_of

    from tvm_orient.build import build_key
    from tvm_orient.cache import HOW, KERNEL, KernelCache

    if request.get("path"):
        return kit / request["path"] / KERNEL
    entry = kit / "kernels" / request["entry"]

    def make(folder: Path) -> dict[str, Any]:
        shutil.copy(entry / KERNEL, folder / KERNEL)
        return dict(json.loads((entry / HOW).read_text())["facts"])

    return KernelCache().publish(build_key(_spec(request), _device(), choices_of(request)), make)


def _kernel(request: dict[str, Any], kit: Path) -> Any:
    from gpu_jobs import choices_of

    from tvm_orient import launch
    from tvm_orient.lower import is_generic

    spec, device, path, generic = _spec(request), _device(), adopted(request, kit), is_generic(choices_of(request))
    if generic and (spec.layout != "nchw" or spec != spec.plain):
        return launch.Converted(spec, device, path)
    return launch.Kernel(spec, device, path, generic=generic)


def _checked(spec: Any, batch: int, kernel: Any) -> tuple[float, float]:
    """(largest error over the largest value, the same of what rounding allows) of a kernel on random operands; poisons what it is given for its result."""
    import torch

    from tvm_orient import reference
    from tvm_orient.bench import sample

    operands = sample(spec, batch, _where())
    if spec.layout == "nhwc":
        operands = tuple(t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in operands)
    want, bound = reference.run(spec, *operands), reference.tolerance(spec, batch, *operands)
    for _ in range(2):
        torch.full(tuple(want.shape), float("nan"), dtype=operands[0].dtype, device=_where())
    got = kernel(*operands).double()
    top = float(want.abs().max()) or 1.0
    worst = float((got - want).abs().max())
    return worst / top, bound / top


def _seconds(spec: Any, batch: int, kernel: Any) -> list[float]:
    """Sorted seconds of calls with cold caches."""
    import torch

    from tvm_orient.bench import sample
    from tvm_orient.timers import on_device

    where = _where()
    first = sample(spec, batch, _where())
    size = 2 * max(t.numel() * t.element_size() for t in first)
    count = max(2, min(-(-_COLD_BYTES // size), _MOST_BYTES // size, 256))
    sets = [first] + [tuple(t.clone() for t in first) for _ in range(count - 1)]
    if spec.layout == "nhwc":
        sets = [tuple(t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in one) for one in sets]
    keep: list[Any] = [kernel(*one) for one in sets]  # a result has a place of its own, so that stores meet no warm line either
    _finish()
    times = []
    for turn in range(_RUNS):
        index = turn % count
        keep[index] = None
        if where.type == "cuda":
            seconds, keep[index] = on_device(where, kernel, sets[index])
        else:
            start = time.perf_counter()
            keep[index] = kernel(*sets[index])
            seconds = time.perf_counter() - start
        times.append(seconds)
    return sorted(times)


def smoke(request: dict[str, Any], kit: Path) -> dict[str, Any]:
    """Whether a kernel is right on a small problem."""
    spec, kernel = _spec(request), _kernel(request, kit)
    error, allowed = _checked(spec, request["batch"], kernel)
    again, _ = _checked(spec, 3 * request["batch"] + 1, kernel)
    return {"error_of": max(error, again), "allowed": allowed, "right": error <= allowed, "line": f"error {max(error, again):.1e} of {allowed:.1e}"}


def timed(request: dict[str, Any], kit: Path) -> dict[str, Any]:
    """A kernel's time on its problem, checked at a small batch first."""
    spec, kernel, batch = _spec(request), _kernel(request, kit), request["batch"]
    error, allowed = _checked(spec, 2, kernel)
    if not error <= allowed:
        return {"error": f"wrong: off by {error:.2e}, where rounding allows {allowed:.2e}"}
    times = _seconds(spec, batch, kernel)
    median = times[len(times) // 2]
    speed = spec.bytes_moved(batch) / median / 1e9
    spread = (times[len(times) * 4 // 5] - times[len(times) // 5]) / 2
    return {"median": median, "spread": spread, "gbps": speed, "line": f"{median * 1e6:8.1f} us {speed:6.0f} GB/s"}


def cell(request: dict[str, Any], kit: Path) -> dict[str, Any]:
    """Rows of the table for a problem: ours, the floor, the peers that are asked for."""
    from tvm_orient.bench import bench

    adopted(request, kit)
    rows = bench([_spec(request)], _device(), batch=request["batch"], peers=request.get("peers") or [], repeats=_REPEATS, states=("cold",))
    ours = next((row for row in rows if row.ours and row.median_ms), None)
    bad = [row for row in rows if row.ours and row.note.startswith(("wrong", "failed"))]
    if ours is None:
        text = bad[0].note if bad else "no time"
    else:
        text = f"{1e3 * (ours.median_ms or 0):8.1f} us {ours.gbps or 0:6.0f} GB/s {ours.floor_ratio or 0:5.2f} of {next(r.method for r in rows if r.floor)}"
        text += "".join(f" {row.method} {row.vs_ours:.2f}x" for row in rows if not row.ours and not row.floor and row.vs_ours)
        text += f" err {ours.error:.0e}"
    return {"rows": [dataclasses.asdict(row) for row in rows], "line": text, **({"error": text} if ours is None else {})}


def profile(jobs: list[dict[str, Any]], kit: Path) -> None:
    """Runs the kernels of jobs once each, for a profiler: the second of two calls is the one to read."""
    from tvm_orient.bench import sample

    for request in jobs:
        spec, kernel = _spec(request), _kernel(request, kit)
        operands = sample(spec, request["batch"], _where())
        kernel(*operands)
        _finish()
    os._exit(0)


# ---- the run ------------------------------------------------------------------------------------


class Child:
    """A process that serves kernels; replaced when it dies or takes too long."""

    def __init__(self, kit: Path, log: Path) -> None:
        self.kit, self.log, self.process = kit, log, None

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer; {"error"} where the process died or did not answer in time."""
        if self.process is None:
            with self.log.open("a") as log:
                self.process = subprocess.Popen(
                    [sys.executable, __file__, str(self.kit), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True
                )
        process = self.process
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write((json.dumps(request) + "\n").encode())
            process.stdin.flush()
        end, buffer = time.monotonic() + seconds, b""
        while time.monotonic() < end:
            if not select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))[0]:
                break
            got = os.read(process.stdout.fileno(), 1 << 20)
            if not got:
                code = process.wait()
                self.close()
                return {"error": f"the process died ({code}): {self._last()}"}
            buffer += got
            for line in buffer.split(b"\n")[:-1]:
                if line.startswith(b"{"):
                    answer = dict(json.loads(line))
                    if answer.get("dead"):
                        self.close()
                    return answer
        self.close()
        return {"error": f"no answer within {seconds:.0f} s"}

    def _last(self) -> str:
        return " ".join(self.log.read_text(errors="replace").split())[-200:]

    def close(self) -> None:
        """Ends the process."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


class Run:
    """A run of steps until a deadline; what is found lies in --out, whole after each kernel."""

    def __init__(self, kit: Path, out: Path, deadline: float) -> None:
        self.kit, self.out, self.deadline, self.begin = kit, out, deadline, time.monotonic()
        self.jobs = [json.loads(line) for line in (kit / "jobs.jsonl").read_text().splitlines() if line]
        self.child, self.rows, self.bad = Child(kit, out / "stderr.log"), [], []
        self.done: set[str] = set()
        results = out / "results.jsonl"
        if results.exists():
            for line in results.read_text().splitlines():
                with contextlib.suppress(ValueError):
                    found = json.loads(line)
                    self.done.add(found["id"])
                    self.rows += found.get("rows", [])

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - time.monotonic()

    def say(self, text: str) -> None:
        """One line, with the time since the start."""
        print(f"{time.monotonic() - self.begin:5.0f}s {text}", flush=True)

    def part(self, name: str, peers: list[str]) -> None:
        """Every job of a part of the kit."""
        mine = [job for job in self.jobs if job["part"] == name]
        do = "smoke" if name == "smoke" else "cell" if name.startswith(("alone", "merged")) else "time"
        self.say(f"--- {name}: {len(mine)} jobs")
        wrong = 0
        for number, job in enumerate(mine):
            key = f"{name}/{job['name']}/{job['entry'] or job['path']}"
            if key in self.done:
                continue
            if self.left < 5:
                self.say(f"{name}: {len(mine) - number} jobs left: the time is over")
                return
            answer = self.child.ask({**job, "do": do, "peers": peers}, min(_JOB_S, self.left))
            if "error" in answer or answer.get("right") is False:
                wrong += 1
                self.bad.append(f"{name}: {job['name']}: {answer.get('error') or answer['line']}")
            self.record(key, job, answer)
            if do != "smoke" or "error" in answer or not answer.get("right") or number % 8 == 0:
                self.say(f"{job['name']:32} {answer.get('line') or ''}{answer.get('error', '')[:300] if 'line' not in answer else ''}")
        self.say(f"{name}: {len(mine) - wrong} of {len(mine)} right")

    def record(self, key: str, job: dict[str, Any], answer: dict[str, Any]) -> None:
        """Adds a result to the files."""
        self.done.add(key)
        with (self.out / "results.jsonl").open("a") as file:
            file.write(json.dumps({"id": key, **job, **answer}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if answer.get("rows"):
            self.rows += answer["rows"]
            temporary = self.out / ".table.csv"
            with temporary.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in self.rows])
            os.replace(temporary, self.out / "table.csv")

    def counters(self) -> None:
        """Hardware counters of some kernels, by Nsight Compute."""
        mine = [job for job in self.jobs if job["part"] in ("counters", "counters-before")]
        program = shutil.which("ncu") or shutil.which("ncu", path="/usr/local/cuda/bin")
        if program is None or not mine or self.left < 20:
            self.say(f"counters: skipped ({program=}, {len(mine)} jobs, {self.left:.0f} s left)")
            return
        listed = self.out / "profiled.json"
        listed.write_text(json.dumps(mine))
        sections = [word for name in SECTIONS for word in ("--section", name)]
        how = ["--clock-control", "none", "--kernel-name", "regex:main_kernel", "--csv", "--page", "raw", "--print-units", "base"]
        how += ["--log-file", str(self.out / "ncu.csv")]
        command = [program, *how, *sections, "--", sys.executable, __file__, str(self.kit), "--profile", str(listed)]
        self.say(f"--- counters: {len(mine)} jobs, {program}")
        with (self.out / "ncu.log").open("w") as log:
            try:
                code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, timeout=max(10, min(100, self.left - 10)), check=False).returncode
            except subprocess.TimeoutExpired:
                code = "timeout"
        self.say(f"counters: ncu ended with {code}; {sum(1 for _ in (self.out / 'ncu.csv').open()) if (self.out / 'ncu.csv').exists() else 0} lines")

    def summary(self) -> None:
        """The last lines: what was wrong."""
        self.say(f"=== {len(self.done)} jobs done, {len(self.bad)} bad")
        for text in self.bad[:40]:
            print("BAD", text[:220])


def unpacked(kit: Path, folder: Path) -> Path:
    """The kit's files in a folder."""
    if not (folder / "jobs.jsonl").exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(kit, "r:xz") as archive:
            archive.extractall(folder, filter="data")
    return folder


def main() -> None:
    """Unpack, run the steps, sum up."""
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kit", type=Path, nargs="?", help="kit.tar.xz, or the folder it was unpacked into")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--steps", default="smoke,alone-float32,merged-float32,counters")
    parser.add_argument("--peers", default="")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "gpu_out")))
    parser.add_argument("--target", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--collect", type=Path, metavar="DIR", help="in a checkout: put what a run left in DIR to its places")
    parser.add_argument("--any-source", action="store_true", help="with --collect: make records of kernels of other code too")
    parser.add_argument("--serve", action="store_true")
    parser.add_argument("--profile", type=Path)
    given = parser.parse_args()
    if given.collect:
        sys.path.insert(0, str(HERE.parent))
        from gpu_collect import collect

        print("\n".join(collect(given.collect, HERE / "results", HERE.parent / "tuning_logs", given.any_source)))
        return
    deadline = time.monotonic() + 60 * given.minutes
    kit = given.kit if given.kit.is_dir() else unpacked(given.kit, Path(os.environ.get("TVM_ORIENT_KIT", "/tmp/tvm_orient_kit")))
    sys.path[:0] = [str(HERE), str(HERE.parent), str(kit / "site")]
    if given.serve:
        serve(kit)
    if given.profile:
        profile(json.loads(given.profile.read_text()), kit)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), str(kit / "site"), os.environ.get("PYTHONPATH", "")])
    os.environ.setdefault("TVM_ORIENT_CACHE_DIR", str(kit / "cache"))
    os.environ.setdefault("TVM_ORIENT_LOG_DIR", str(kit / "logs"))
    os.environ["TVM_ORIENT_BUILD"] = "0"
    os.environ[_TARGET] = given.target
    given.out.mkdir(parents=True, exist_ok=True)
    run = Run(kit, given.out, deadline)
    with contextlib.suppress(OSError):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.limit,temperature.gpu", "--format=csv,noheader"]
        run.say(subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip())
    for step in given.steps.split(","):
        if step == "counters":
            run.child.close()
            run.counters()
        else:
            run.part(step, [name for name in given.peers.split(",") if name])
    run.child.close()
    run.summary()


if __name__ == "__main__":
    main()
