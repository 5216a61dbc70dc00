"""The generic kernel in the place of a problem's own, for the first calls of a problem that nobody has tuned or built."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import torch

from ..errors import OrientError
from ..kernels.cache import Busy
from ..problem.device import Device
from ..problem.spec import ConvSpec
from .kernel import Call, GenericAdapter, Kernel

NEVER = sys.maxsize  # calls until a kernel is looked for again: none
_MAX_WAIT_S = 20.0  # seconds that the call which has a kernel compiled waits for it
Own = Callable[[bool], Kernel | GenericAdapter | None]  # makes a problem's own kernel, told whether it is asked for
_at_once: list[int] = []  # threads that have entered compiling_at_once
_log = logging.getLogger(__name__)


class TooLong(Exception):
    """Nobody asked for a kernel, and compiling it would take long; says what asks for it."""


@contextlib.contextmanager
def compiling_at_once() -> Iterator[None]:
    """Makes every call of this thread, and of the threads that autograd runs for it, compile the kernel that it lacks, until the context is left."""
    _at_once.append(threading.get_ident())
    try:
        yield
    finally:
        _at_once.remove(threading.get_ident())


def asked_here() -> bool:
    """Says whether a call of this thread is to compile what it lacks. Autograd's threads are not Python's own, which calls them dummies."""
    return bool(_at_once) and (threading.get_ident() in _at_once or isinstance(threading.current_thread(), threading._DummyThread))


def capturing(device: Device) -> bool:
    """Says whether a CUDA graph is being captured on this thread's stream of a device; never on a CPU."""
    return device.kind == "cuda" and torch.cuda.is_current_stream_capturing()


class ProvisionalKernel:
    """The generic kernel for the first calls of a problem that nobody has tuned or built; then the problem gets its own.

    The call that is due has it compiled and waits for it, but not for long: a thread makes it, and calls run on the generic kernel until it is there.

    Args:
        spec: the problem.
        device: where the operands lie.
        generic: answers until the problem has its own.
        calls: the number of the call that has the problem's own kernel made, >= 2; it is looked for again after as many.
        own: makes it, told whether it is asked for; returns None while another thread makes it. Where it is not asked for it may raise Busy and TooLong.
    """

    def __init__(self, spec: ConvSpec, device: Device, generic: Kernel | GenericAdapter, calls: int, own: Own) -> None:
        self.spec, self.device, self.kernel, self.left, self.calls, self._own = spec, device, generic, calls, calls, own
        self._maker: threading.Thread | None = None

    def __call__(self, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Computes what `Kernel` does, on the same operands."""
        self.left -= 1
        if (self.left <= 0 or (_at_once and asked_here())) and not capturing(self.device):
            self._replace()
        return self.kernel(first, second, bias)

    def prepared(self, *_: torch.Tensor) -> Call:
        """Returns itself, for operands of any shape: every call counts, so each comes here."""
        return self

    def _replace(self) -> None:
        if asked_here():
            self._make(asked=True)
            return
        maker = self._maker
        if maker is None:
            maker = self._maker = threading.Thread(target=self._make, kwargs={"asked": False}, name="tvm_orient compiles", daemon=True)
            maker.start()
            maker.join(_MAX_WAIT_S)
        if not maker.is_alive():
            self._maker = None

    def _make(self, *, asked: bool) -> None:
        """Puts the problem's own kernel in the place of the generic one, unless it takes too long, another is at it, or it cannot be made."""
        left = self.calls  # until it is looked for again
        try:
            found = self._own(asked)
            if found is not None:
                self.kernel, left = found, NEVER
        except Busy:  # another process is at it
            pass
        except TooLong as problem:
            left = NEVER
            _log.info("%s stays on the generic kernel: %s", self.spec, problem)
        except OrientError as problem:
            left = NEVER
            _log.warning("%s stays on the generic kernel: %s", self.spec, problem)
        except Exception:  # a fault of the package, which must not come up in a call that the generic kernel answers
            left = NEVER
            _log.warning("%s stays on the generic kernel", self.spec, exc_info=True)
        self.left = left
