"""Do what a GPU run asks of one kernel, in a process of its own: check it, time it, bench its cell. The module `run` asks, line by line.

    python -m benchmarks.gpu.work                     answers requests on standard input
    python -m benchmarks.gpu.work --once LIST DONE    launches each job of LIST once, for a profiler or a sanitizer, and notes in DONE which were launched

It needs torch and what a kit carries: neither TVM's compiler nor nvcc.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import tvm_ffi  # noqa: F401  (TVM's runtime is linked to its library, and loaded by itself)

from tvm_orient.bench.bench import bench
from tvm_orient.bench.cell import provenance
from tvm_orient.bench.methods import sample
from tvm_orient.bench.peers import floors
from tvm_orient.errors import Unsupported
from tvm_orient.evaluate import timing
from tvm_orient.evaluate.machine import finish, torch_device
from tvm_orient.evaluate.verified import Expected
from tvm_orient.kernels import cache, manifest
from tvm_orient.kernels.build_key import build_key
from tvm_orient.problem.device import Device, device_for
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import loader
from tvm_orient.runtime.kernel import GenericAdapter, Kernel, opened
from tvm_orient.schedules.choices import is_generic
from tvm_orient.toolchain.worker import serve
from tvm_orient.tuning import runner
from tvm_orient.tuning.contest import RUNS

from .jobs import choices_of

KIT = Path(__file__).resolve().parents[2]
TARGET = "TVM_ORIENT_RUN_TARGET"  # cuda or cpu
_REPEATS = 12  # timed calls of each method in a cell
_SMOKE_CALLS = 5  # timed calls of a small problem
_Request = dict[str, Any]
_kept = runner.Kept()  # operands of the problem that was timed last


@functools.cache
def device() -> Device:
    """Return the device of this run."""
    return device_for(os.environ.get(TARGET, "cuda"))


def _where() -> torch.device:
    return torch_device(device())


def _entry(name: str) -> Path:
    return KIT / "kernels" / name


def _kernel(request: _Request) -> Kernel | GenericAdapter:
    """Return the first kernel of a job, from the kit."""
    path = _entry(request["entry"]) / manifest.KERNEL
    return opened(ConvSpec.from_key(request["spec"]), device(), path, generic=is_generic(choices_of(request)))


def _operands(spec: ConvSpec, batch: int) -> tuple[torch.Tensor, ...]:
    operands = sample(spec, batch, _where())
    form = torch.channels_last if spec.layout == "nhwc" else torch.contiguous_format
    return tuple(t.to(memory_format=form) if t.dim() == 4 else t for t in operands)


def facts(_: _Request) -> dict[str, Any]:
    """Return what this machine is, and what it has."""
    found = provenance(device())
    return {"device": dataclasses.asdict(device()), "torch": found["torch"], "hardware": found["hardware"], "python": sys.version.split()[0]}


def smoke(request: _Request) -> dict[str, Any]:
    """Check that a kernel is right on a small problem, at two batch sizes; return its error and how long a call takes."""
    spec, kernel, worst = ConvSpec.from_key(request["spec"]), _kernel(request), 0.0
    for batch in (request["batch"], 3 * request["batch"] + 1):
        operands = _operands(spec, batch)
        expected = Expected(spec, *operands)
        for _ in range(2):  # what the allocator gives next is no earlier kernel's right result
            torch.full(tuple(expected.result.shape), float("nan"), dtype=operands[0].dtype, device=_where())
        verdict = expected.verdict(kernel(*operands))
        if verdict.wrong:
            return {"error": f"wrong at N={batch}: {verdict.wrong}"}
        worst = max(worst, verdict.relative)
    seconds = statistics.median(timing.timed(_where(), kernel, operands)[0] for _ in range(_SMOKE_CALLS))
    return {"error_of": worst, "line": f"error {worst:.1e} {1e6 * seconds:8.1f} us {spec.bytes_moved(batch) / seconds / 1e9:6.0f} GB/s"}


def floor(request: _Request) -> dict[str, Any]:
    """Return the time of whatever moves a problem's bytes and computes nothing."""
    spec, batch = ConvSpec.from_key(request["spec"]), request["batch"]
    (one,) = (peer for peer in floors.FLOORS if peer.applies(spec) is None)
    sets = [(one.make(spec, _where()), *_operands(spec, batch)) for _ in range(timing.sets_in_turn(spec.bytes_moved(batch), device()))]
    median, spread = timing.measured(_where(), lambda call, *operands: call(*operands), itertools.cycle(sets))
    return _spoken({"median": median, "spread": spread}, spec, batch)


def _spoken(times: dict[str, Any], spec: ConvSpec, batch: int) -> dict[str, Any]:
    speed = spec.bytes_moved(batch) / times["median"] / 1e9
    return {**times, "gbps": speed, "line": f"{1e6 * times['median']:8.1f} us {speed:6.0f} GB/s"}


def _measured(request: _Request, entry: str, batch: int) -> dict[str, Any]:
    """Return the request of tuning's own measuring process for a kernel of the kit."""
    workspace = manifest.read(_entry(entry)).workspace
    loader.load_runtime(device().kind)
    kernel = str(_entry(entry) / manifest.KERNEL)
    return {"spec": request["spec"], "batch": batch, "kernel": kernel, "workspace": workspace, "device": dataclasses.asdict(device())}


def timed(request: _Request) -> dict[str, Any]:
    """Return a candidate's time, measured as tuning measures, once it is known to be right."""
    verdict = runner.checked(_measured(request, request["entry"], 2))
    if "error" in verdict:
        return {"error": f"wrong: {verdict['error']}"}
    times = runner.timed(_measured(request, request["entry"], request["batch"]), _kept)
    return {"error_of": verdict["relative"], **_spoken(times, ConvSpec.from_key(request["spec"]), request["batch"])}


def final(request: _Request) -> dict[str, Any]:
    """Return the best candidate against the default, in turn, as tuning ends; and the copy, by which a record says its floor."""
    verdict = runner.checked(_measured(request, request["entry"], 2))
    if "error" in verdict:
        return {"error": f"wrong: {verdict['error']}"}
    found: dict[str, list[dict[str, Any]]] = {request["default_entry"]: [], request["entry"]: []}
    for _ in range(RUNS):
        for entry, times in found.items():
            times.append(runner.timed(_measured(request, entry, request["batch"]), _kept))
    base, ours = (statistics.median(one["median"] for one in times) for times in found.values())
    spec = ConvSpec.from_key(request["spec"])
    copy = runner.copied({"copy": spec.bytes_moved(request["batch"]), "device": dataclasses.asdict(device())}, _kept)["median"]
    spread = statistics.median(one["spread"] for one in found[request["entry"]])
    line = f"{1e6 * ours:8.1f} us, default {1e6 * base:8.1f} us: {base / ours:.2f}x"
    return {"median": ours, "spread": spread, "default": base, "floor": copy, "error_of": verdict["relative"], "line": line}


def cell(request: _Request) -> dict[str, Any]:
    """Return the rows of the table for a problem: ours, the floor, the peers that are asked for."""
    spec, card = ConvSpec.from_key(request["spec"]), request["tuned"].get(device().slug)
    for kernel in (request, *([card] if card else [])):
        _adopt(spec, kernel)
    how = {"batch": request["batch"], "repeats": _REPEATS, "states": ("cold",), "patience": request.get("patience")}
    rows = bench([spec], device(), peers=request.get("peers") or [], **how)
    ours = next((row for row in rows if row.ours and row.median_ms), None)
    if ours is None:
        return {"error": next((row.note for row in rows if row.ours and row.note.startswith(("wrong", "failed"))), "no time")}
    under = next((row.method for row in rows if row.floor), "nothing")
    text = f"{1e3 * (ours.median_ms or 0):8.1f} us {ours.gbps or 0:6.0f} GB/s {ours.floor_ratio or 0:5.2f} of {under}, error {ours.error:.0e}"
    text += "".join(f", {row.method} {row.vs_ours:.2f}x" for row in rows if not row.ours and not row.floor and row.vs_ours)
    return {"rows": [dataclasses.asdict(row) for row in rows], "line": text}


def _adopt(spec: ConvSpec, kernel: _Request) -> None:
    """Puts a kernel of the kit into this machine's cache, under the card's own name, where every call finds it."""
    entry = _entry(kernel["entry"])

    def make(folder: Path) -> dict[str, Any]:
        shutil.copy(entry / manifest.KERNEL, folder / manifest.KERNEL)
        return manifest.read(entry).facts

    cache.KernelCache().publish(build_key(spec, device(), choices_of(kernel)), make)


def once(jobs: Path, done: Path) -> None:
    """Launches the kernel of each job once; done holds a line for each that was launched to its end."""
    wanted = json.loads(jobs.read_text())
    done.write_text("")
    for request in wanted:
        operands = _operands(ConvSpec.from_key(request["spec"]), request["batch"])
        with contextlib.suppress(Unsupported):  # not every kernel serves every problem: it launches nothing
            _kernel(request)(*operands)
        finish(device())
        with done.open("a") as file:
            file.write(json.dumps(request) + "\n")
    print(f"cases: {len(wanted)} on {device().slug}")


def answer(request: _Request) -> dict[str, Any]:
    """Return what comes of one request."""
    found = _DO[request["do"]](request)
    finish(device())  # a fault comes to light when it is waited for: here, and not in the next kernel
    return found


_DO: dict[str, Callable[[_Request], dict[str, Any]]] = {"facts": facts, "smoke": smoke, "floor": floor, "cell": cell, "time": timed, "final": final}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        once(*map(Path, sys.argv[2:]))
    else:
        serve(answer)
    sys.stdout.flush()
    os._exit(0)  # what libraries do at the end of a process says nothing of a kernel
