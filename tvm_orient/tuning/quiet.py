"""Waiting for a quiet machine: times that are measured beside other work, or beside another tuner, are noise."""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock

from ..errors import EnvironmentProblem
from ..evaluate import machine
from ..problem.device import Device

BUSY = 0.15  # share of the cores that others may use before a CPU's measurements are noise
_AGAIN_S = 2.0  # seconds between two looks
_log = logging.getLogger(__name__)
Told = Callable[[float, float], None]


class Busy(EnvironmentProblem):
    """Other work used this machine for longer than the run was to wait."""


class Patience:
    """A bounded time to wait for other work to end, for all waits of one run together.

    Args:
        device: a GPU is never waited for: what its host does hardly matters to it.
        seconds: how long to wait at most, >= 0.
    """

    def __init__(self, device: Device, seconds: float) -> None:
        self.device, self.seconds, self.left = device, seconds, seconds

    def wait(self, told: Told | None = None) -> None:
        """Returns once others use at most BUSY of the cores that this process may use.

        Args:
            told: is given their share (0 to 1) and the seconds that are left, at each look that finds more; None writes both to the log, once.

        Raises:
            Busy: others still use more when the time is over.
        """
        first = True
        while (share := self._share()) is not None and share > BUSY:
            if self.left <= 0:
                raise Busy(
                    f"other work uses {share:.0%} of the cores that tuning may use, and still does after {self.seconds:.0f} s of waiting: what is measured "
                    "now would be noise, so nothing is recorded; stop that work, tune later, or wait longer (--wait SECONDS)"
                )
            if told is not None:
                told(share, self.left)
            elif first:
                _log.warning("other work uses %.0f %% of the cores: waiting for it to end, %.0f s at most", 100 * share, self.left)
            first, start = False, time.monotonic()
            time.sleep(min(_AGAIN_S, self.left))
            self.left -= time.monotonic() - start

    def _share(self) -> float | None:
        return machine.others_busy() if self.device.kind == "cpu" else None


@contextlib.contextmanager
def alone(device: Device) -> Iterator[None]:
    """Keeps other tuners off a device until the context is left, and waits for one that is at work: two would measure each other."""
    path = Path(tempfile.gettempdir()) / f"tvm_orient-{os.getuid()}-{device.slug}-{device.index}.lock"
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        _log.warning("another process is tuning on %s (it holds %s): waiting for it", device.slug, path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
