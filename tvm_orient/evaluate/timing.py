"""Times of kernels: on a CPU, on a GPU, warm and cold."""

from __future__ import annotations

import contextlib
import gc
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import torch

from ..problem.device import Device

_QUEUE_CYCLES = 1_000_000  # the GPU waits so long before a timed call that the host has queued all of it


def finish(device: Device) -> None:
    """Waits until the device has done what was asked of it."""
    if device.kind == "cuda":
        torch.cuda.synchronize(device.index)


def on_device(where: torch.device, call: Callable[..., torch.Tensor], operands: Sequence[torch.Tensor]) -> tuple[float, torch.Tensor]:
    """Seconds between two events around a call that was queued while the GPU waited; and its result."""
    with torch.cuda.device(where):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda._sleep(_QUEUE_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        result = call(*operands)
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / 1e3, result


@contextlib.contextmanager
def no_collector() -> Iterator[None]:
    """Python's garbage collector would run inside somebody's timed call."""
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
