"""The facts about a machine that timing needs, and what it must leave undone meanwhile: last-level cache, clocks, other work, the garbage collector."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from ..problem.device import Device

_MMAP_MAX = -4  # the parameter M_MMAP_MAX of mallopt(3)
_TRIM_THRESHOLD = -1  # the parameter M_TRIM_THRESHOLD of mallopt(3)


@functools.cache
def last_level_cache(device: Device) -> int:
    """Returns the bytes of the last-level cache that this process can use; 32 MiB where the system does not say."""
    if device.kind == "cuda":
        return int(torch.cuda.get_device_properties(device.index).L2_cache_size)
    sizes: dict[tuple[int, str], int] = {}
    for folder in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        try:
            level, shared, size = (int((folder / "level").read_text()), (folder / "shared_cpu_list").read_text(), (folder / "size").read_text().strip())
            sizes[level, shared] = int(size[:-1]) * {"K": 2**10, "M": 2**20}[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):  # a virtual machine may leave these out
            continue
    last = max((level for level, _ in sizes), default=0)
    return sum(size for (level, _), size in sizes.items() if level == last) or 2**25


def finish(device: Device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.kind == "cuda":
        torch.cuda.synchronize(device.index)


def torch_device(device: Device) -> torch.device:
    """Returns a device as torch names it."""
    return torch.device("cuda", device.index) if device.kind == "cuda" else torch.device("cpu")


@functools.cache
def keep_freed_memory() -> None:
    """Has glibc keep what this process frees, for the rest of its life; nothing elsewhere.

    It gives blocks over 32 MB back at once, and the next call's page faults would take several times as long as a kernel.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, -1)


def others_busy(seconds: float = 0.3) -> float | None:
    """Returns the part of the cores that this process may use which is busy while it sleeps, 0 to 1; None where the system does not say."""
    before = _cpu_ticks()
    time.sleep(seconds)
    after = _cpu_ticks()
    if before is None or after is None or after[0] <= before[0]:
        return None
    return round(1 - (after[1] - before[1]) / (after[0] - before[0]), 3)


def _cpu_ticks() -> tuple[int, int] | None:
    """Returns (all, idle) since the machine started, of the cores that this process may use."""
    try:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
        usable = {f"cpu{core}" for core in os.sched_getaffinity(0)}
        own = [line for line in lines if line[0] in usable] or lines[:1]  # where single cores are not listed, all of them
        ticks = [sum(int(line[field]) for line in own) for field in range(1, 9)]
    except (OSError, ValueError, IndexError, AttributeError):
        return None
    return sum(ticks), ticks[3] + ticks[4]


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Keeps Python's garbage collector from running inside somebody's timed call."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@contextlib.contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises TimeoutError inside its block after so long, at the next line of Python that the main thread runs; None: never.

    On another thread than the main one, where signals do not arrive, there is no limit.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(*_: object) -> None:
        raise TimeoutError(f"no result within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def clocks(device: Device) -> str:
    """Clocks of the SMs and of the memory right after work, as NVML or nvidia-smi says; empty on a CPU or without either."""
    if device.kind != "cuda":
        return ""
    which = f"GPU-{torch.cuda.get_device_properties(device.index).uuid}"
    with contextlib.suppress(Exception):  # the binding is missing, or its library is: starting nvidia-smi takes a second, and says the same
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(which)
        sm, memory = (pynvml.nvmlDeviceGetClockInfo(handle, kind) for kind in (pynvml.NVML_CLOCK_SM, pynvml.NVML_CLOCK_MEM))
        return f"sm {sm} MHz, memory {memory} MHz"
    command = ["nvidia-smi", "-i", which, "--query-gpu=clocks.sm,clocks.mem", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    return "sm {}, memory {}".format(*[word.strip() for word in said.strip().partition(",")[::2]])
