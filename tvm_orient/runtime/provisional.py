"""The generic kernel in the place of a problem's own, until that is made; no call waits for it."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..problem.device import Device
from ..problem.spec import ConvSpec
from . import payback
from .kernel import Call, GenericAdapter, Kernel
from .makings import Making

NEVER = sys.maxsize  # calls until a kernel is made: none is
_AGAIN = 16  # calls after which a making that was begun is begun again if it is not there: a forked child has none of its parent's
_asking: dict[int, list[Making]] = {}  # makings that were begun for threads that have entered asking, by thread


@contextlib.contextmanager
def asking() -> Iterator[list[Making]]:
    """Has every call of this thread, and of the threads that autograd runs, begin the making of the kernel that it lacks; yields the list of these makings."""
    thread, begun = threading.get_ident(), list[Making]()
    before = _asking.get(thread)
    _asking[thread] = begun
    try:
        yield begun
    finally:
        if before is None:
            del _asking[thread]
        else:
            _asking[thread] = before


def asked_here() -> bool:
    """Says whether a call of this thread asks for what it lacks. Autograd's threads are not Python's own, which calls them dummies."""
    return bool(_asking) and (threading.get_ident() in _asking or isinstance(threading.current_thread(), threading._DummyThread))


def asked_for(making: Making) -> None:
    """Hands a making to those that wait for what this thread asks for."""
    own = _asking.get(threading.get_ident())
    for begun in [own] if own is not None else list(_asking.values()):
        if making not in begun:
            begun.append(making)


def capturing(device: Device) -> bool:
    """Says whether a CUDA graph is being captured on this thread's stream of a device; never on a CPU."""
    return device.kind == "cuda" and torch.cuda.is_current_stream_capturing()


@dataclass(frozen=True)
class Source:
    """Where a problem's own kernel comes from."""

    begin: Callable[[bool], Making]  #: begins the making in the background, told whether it is asked for
    now: Callable[[], Kernel | GenericAdapter]  #: waits for it
    put: Callable[[Kernel | GenericAdapter], None]  #: has calls find it


class ProvisionalKernel:
    """The generic kernel for a problem that has no kernel of its own yet.

    The call that is due has the making of its own begun in the background, and the first call after that is done takes it. A CUDA graph is never captured with
    a kernel that has not run before, so a call that is being captured takes nothing.

    Args:
        spec: the problem.
        device: where the operands lie.
        generic: answers until the problem has its own.
        calls: the number of the call that has its own begun; NEVER for none.
        weighed: whether that call has it begun only where it pays, as `payback` tells.
        source: where its own comes from.
    """

    def __init__(
        self,
        spec: ConvSpec,
        device: Device,
        generic: Kernel | GenericAdapter,
        calls: int,
        weighed: bool,
        source: Source,
    ) -> None:
        self.spec, self.device, self.kernel, self._source = spec, device, generic, source
        self.left, self._weighed = calls, weighed
        self.provisional = True
        self.own: Kernel | GenericAdapter | None = None  # its own, once it is made and until a call takes it
        self._answered, self._spent = 0, 0.0  # calls, and seconds that they took

    def __call__(self, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Computes what `Kernel` does, on the same operands."""
        if torch.are_deterministic_algorithms_enabled() and self.left != NEVER and not capturing(self.device):
            self.own = self._source.now()  # one that is swapped in at some time or other would change bits
        self.left -= 1
        if self.left <= 0 or self.own is not None or _asking:
            self._look()
        if not self._weighed:
            return self.kernel(first, second, bias)
        start = time.perf_counter()
        out = self.kernel(first, second, bias)
        self._spent += time.perf_counter() - start
        self._answered += 1
        return out

    def prepared(self, *_: torch.Tensor) -> Call:
        """Returns itself, for operands of any shape: every call counts, so each comes here."""
        return self

    def taken(self) -> Kernel | GenericAdapter | None:
        """Returns the problem's own kernel, which answers from now on, where it is made and may be taken now."""
        own = self.own
        if own is not None and not capturing(self.device):
            self.kernel, self.own, self.left, self._weighed, self.provisional = own, None, NEVER, False, False
            self._source.put(own)
            return own
        return None

    def refuse(self) -> None:
        """Stays with the generic kernel until somebody asks."""
        self.left = NEVER

    def _look(self) -> None:
        """Takes the problem's own kernel where it is made, else has its making begun where that is due or asked for."""
        if self.taken() is not None or not self.provisional:
            return
        if _asking and asked_here():
            asked_for(self._source.begin(True))
        elif self.left <= 0:
            wait = payback.calls_left(self.spec, self.device, self._answered, self._spent) if self._weighed and self._answered else 0
            self.left = wait or _AGAIN
            if not wait:
                self._weighed = False
                self._source.begin(False)
