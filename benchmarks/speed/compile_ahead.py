"""Compile before measuring, in many processes at once: our kernels into their cache, the peers' into torch's cache on the disk.

A cell compiles for seconds and runs for milliseconds. On a machine that is lent by the minute the device must not wait for that.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec

COMPILED = ("compiled_gather", "compiled_shift", "compiled_shift_padded")
Job = tuple[str, str]  # spec key; the name of a peer, or "" for our kernels
_FEW = 8  # in this process: not worth the start of others


def jobs_of(cells: Sequence[tuple[ConvSpec, Sequence[str]]]) -> list[Job]:
    """List what is to be compiled for these cells, (spec, names of its peers) each: ours first."""
    ours = [(spec.key, "") for spec, _ in cells]
    return ours + [(spec.key, name) for spec, names in cells for name in names if name in COMPILED]


def compile_ahead(
    cells: Sequence[tuple[ConvSpec, Sequence[str]]], device: Device, batch: int, processes: int, deadline: float, patience: float | None = None
) -> tuple[str, set[Job]]:
    """Compiles what the cells need until the deadline (of time.monotonic; inf: none): (what it came to in one line, the jobs that are done).

    What fails or is late here is compiled, or fails, in its cell.
    """
    jobs, begin, failed = jobs_of(cells), time.monotonic(), 0
    left = max(0.0, deadline - begin)
    done: set[Job] = set()
    if len(jobs) <= _FEW or processes < 2:
        return "compiling: in each cell", set(jobs)
    if any(name for _, name in jobs):
        _time_choices_anew()
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_start)
    try:
        waiting = {pool.submit(compile_one, job, device, batch, patience): job for job in jobs}
        for future in concurrent.futures.as_completed(waiting, timeout=left if left < threading.TIMEOUT_MAX else None):
            if future.result():
                done.add(waiting[future])
            else:
                failed += 1
    except (TimeoutError, BrokenProcessPool):
        pass
    finally:
        for process in list((pool._processes or {}).values()):
            process.kill()  # one that is late would run beside the measurement
        pool.shutdown(wait=True, cancel_futures=True)
    return f"compiled ahead: {len(done)} of {len(jobs)} in {time.monotonic() - begin:.0f} s, {failed} failed", done


def late(cell: tuple[ConvSpec, Sequence[str]], done: set[Job]) -> bool:
    """Return whether a cell would have to compile a peer itself, which takes longer than all the rest of it."""
    spec, names = cell
    return any((spec.key, name) not in done for name in names if name in COMPILED)


def _time_choices_anew() -> None:
    """Let each process time torch.compile's choices for itself, in a moment: what is found beside other processes is no choice."""
    from torch._inductor import config

    config.autotune_local_cache = False


def _start() -> None:
    """Leave no processes of torch's own: these are as many as the cores."""
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"


def compile_one(job: Job, device: Device, batch: int, patience: float | None) -> bool:
    """Compiles a kernel of ours, chosen and untuned, or one peer by its first call; whether that worked."""
    key, name = job
    with contextlib.suppress(Exception):  # its cell meets it again, and says what it is
        spec = ConvSpec.from_key(key)
        if not name:
            return _ours(spec, device)
        return _peer(spec, device, batch, name, patience)
    return False


def _ours(spec: ConvSpec, device: Device) -> bool:
    from tvm_orient.kernels.build import build
    from tvm_orient.schedules.choices import default_choices

    build(spec, device)
    build(spec, device, default_choices(spec, device))
    return True


def _peer(spec: ConvSpec, device: Device, batch: int, name: str, patience: float | None) -> bool:
    import torch

    from tvm_orient.bench.methods import sample
    from tvm_orient.bench.peers import base, registry
    from tvm_orient.evaluate.machine import time_limit, torch_device

    peer = next(peer for peer in registry.PEERS if peer.name == name)
    if peer.applies(spec) is not None:
        return True
    _time_choices_anew()
    where = torch_device(device)
    with base.settings(), time_limit(patience):
        peer.make(spec, where)(*sample(spec, batch, where))
    torch.compiler.reset()
    return True
