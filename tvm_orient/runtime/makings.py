"""The makings of this process: kernels that are made in the background, one after the other, while calls run on the generic kernel.

A making is asked for, and somebody waits for it, or it is not: then it is begun in the order of request, after all that was asked for. Nothing here knows
what a kernel is. A forked child has no makings: those of its parent are its parent's.
"""

from __future__ import annotations

import logging
import multiprocessing.util
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterable

from ..kernels import compile_process
from ..kernels.cache import Busy
from ..kernels.room import Room

_LOOK_AGAIN_S = 0.5  # seconds until a kernel that another process is making is looked for again, the first time
_MAX_LOOK_AGAIN_S = 10.0  # seconds that this grows to
_LEAVE_S = 5.0  # seconds that the end of a program waits for threads to clean up after compilers that it ended
_IDLE_S = 5.0  # seconds without work after which a thread ends
_GATHER_S = 0.1  # seconds from the first making to the first word about how many there are: a step begins several
_log = logging.getLogger(__name__)


class Declined(Exception):
    """A kernel is not made, since nobody asked for it: the making counts neither as ready nor as failed. Says why."""


class Making:
    """A kernel that is being made or waits for it.

    Attributes:
        key: tells it from others.
        name: for people.
        foreseen: about how many seconds it takes.
        urgent: somebody waits for it.
        done: it is ready, has failed, or was declined.
        problem: why it failed or was declined; None where it is ready.
    """

    def __init__(self, key: Hashable, name: str, make: Callable[[bool], None], foreseen: float, urgent: bool) -> None:
        """Makes a making that waits; make(urgent) makes the kernel, and raises Busy while another process does."""
        self.key, self.name, self.make, self.foreseen, self.urgent = key, name, make, foreseen, urgent
        self.done = self.working = False
        self.problem: BaseException | None = None
        self.after = 0.0  # seconds of time.monotonic before which it is not looked at again
        self.pause = _LOOK_AGAIN_S
        self.seconds = 0.0  # of work on it


class Makings:
    """The makings of a process: a queue, and threads that work on it and end when it is empty."""

    def __init__(self) -> None:
        """Makes an empty queue."""
        self._changed = threading.Condition()
        self._room = Room()  # for its numbers: how many at once
        self._pending: dict[Hashable, Making] = {}  # in order of request
        self._threads: set[threading.Thread] = set()
        self._told = False  # whether the log knows that kernels are being made
        self.closed = False
        self.ready = self.failed = 0

    @property
    def pending(self) -> tuple[Making, ...]:
        """The makings that are not done."""
        with self._changed:
            return tuple(self._pending.values())

    def begin(self, key: Hashable, name: str, make: Callable[[bool], None], foreseen: float = 0.0, *, urgent: bool = False) -> Making:
        """Returns the making of a key, which is put into the queue unless it is there; where it is, urgent makes it urgent.

        Args:
            key: tells it from others.
            name: for people.
            make: makes the kernel, told whether somebody waits for it; raises Busy while another process makes it, and Declined.
            foreseen: about how many seconds it takes.
            urgent: somebody waits for it.
        """
        with self._changed:
            found = self._pending.get(key)
            if found is None:
                if not self._threads:
                    self._told = False
                found = self._pending[key] = Making(key, name, make, foreseen, urgent)
            found.urgent |= urgent
            self._hire()
            self._changed.notify_all()
        return found

    def wait(self, which: Iterable[Making] | None = None, timeout: float | None = None) -> bool:
        """Waits until makings are done, or all that were begun until then; returns whether they are.

        Args:
            timeout: seconds; None waits however long it takes.
        """
        wanted = list(self.pending if which is None else which)
        with self._changed:
            return self._changed.wait_for(lambda: self.closed or all(one.done for one in wanted), timeout) and all(one.done for one in wanted)

    def release(self, which: Iterable[Making]) -> None:
        """Lets makings go on unasked, since whoever waited for them does not any more."""
        with self._changed:
            for one in which:
                one.urgent = False

    def close(self) -> None:
        """Ends what is being made, and begins nothing more: the process ends."""
        with self._changed:
            self.closed = True
            self._pending.clear()
            threads = set(self._threads)
            self._changed.notify_all()
        compile_process.close()
        end = time.monotonic() + _LEAVE_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _hire(self) -> None:
        """Starts a thread if there is more to do than the threads that are there can take."""
        if self.closed or len(self._threads) >= min(self._room.asked, len(self._pending)):
            return
        _end_with_process(self)
        thread = threading.Thread(target=self._work, name="tvm_orient makes kernels", daemon=True)
        self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError:  # the process is ending: nothing is made any more
            self._threads.discard(thread)
            self.closed = True

    def _next(self) -> Making | None:
        """Returns what to work on now: what is asked for first, in order of request."""
        now, unasked = time.monotonic(), sum(one.working and not one.urgent for one in self._pending.values())
        free = [one for one in self._pending.values() if not one.working and one.after <= now]
        asked = (one for one in free if one.urgent)
        return next(asked, free[0] if free and unasked < self._room.unasked else None)

    def _taken(self) -> Making | None:
        """Returns the next making, which is the caller's to work on; None where there was none for a while."""
        end = time.monotonic() + _IDLE_S
        with self._changed:
            while not self.closed:
                found = self._next()
                if found is not None:
                    found.working = True
                    return found
                now = time.monotonic()
                if now >= end and not self._pending:
                    break
                times = [one.after - now for one in self._pending.values() if not one.working and one.after > now]
                self._changed.wait(min([*times, max(end - now, _LOOK_AGAIN_S)]))
            self._threads.discard(threading.current_thread())
        return None

    def _work(self) -> None:
        self._tell()
        while (making := self._taken()) is not None:
            start, urgent = time.monotonic(), making.urgent
            problem: BaseException | None = None
            try:
                making.make(urgent)
            except Busy:
                self._later(making)
                continue
            except BaseException as found:  # told to whoever waits: a thread has nobody to raise it to
                problem = found
            making.seconds += time.monotonic() - start
            if problem is not None and making.urgent and not urgent:  # asked for meanwhile: then it may take longer
                making.working = False
                continue
            self._finish(making, problem)

    def _tell(self) -> None:
        """Writes to the log how many kernels are being made, once until the queue is empty and its threads have ended."""
        with self._changed:
            if self._told:
                return
            self._told = True
            self._changed.wait_for(lambda: self.closed or any(one.urgent for one in self._pending.values()), _GATHER_S)
            count = len(self._pending)
        _log.info("making %d %s in the background", count, "kernel" if count == 1 else "kernels")

    def _later(self, making: Making) -> None:
        with self._changed:
            making.working, making.after = False, time.monotonic() + making.pause
            if not making.urgent:
                making.pause = min(2 * making.pause, _MAX_LOOK_AGAIN_S)
            self._changed.notify_all()

    def _finish(self, making: Making, problem: BaseException | None) -> None:
        with self._changed:
            making.problem, making.done, making.working = problem, True, False
            if self._pending.get(making.key) is making:
                del self._pending[making.key]
            self.ready += problem is None
            self.failed += problem is not None and not isinstance(problem, Declined)
            ready, begun = self.ready, self.ready + self.failed + len(self._pending)
            self._changed.notify_all()
        if problem is None and not self.closed:
            _log.info("%d of %d kernels ready: %s, %.1f s", ready, begun, making.name, making.seconds)


class Compiling:
    """Tells what the makings of this process have come to; its numbers are those of the moment at which they are asked. `tvm_orient.compiling` returns it."""

    def __init__(self, makings: Makings) -> None:
        """Watches a queue."""
        self._makings = makings

    @property
    def pending(self) -> int:
        """How many kernels are being made or wait for it."""
        return len(self._makings.pending)

    @property
    def ready(self) -> int:
        """How many have been made, or found in the cache where another process made them."""
        return self._makings.ready

    @property
    def failed(self) -> int:
        """How many could not be made: their problems stay on the generic kernel, and the log says why."""
        return self._makings.failed

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until every kernel that has been begun is ready or has failed, and returns whether all are.

        Args:
            timeout: seconds; None waits however long it takes.
        """
        return self._makings.wait(timeout=timeout)

    def __repr__(self) -> str:
        return f"Compiling(pending={self.pending}, ready={self.ready}, failed={self.failed})"


def compiling() -> Compiling:
    """Returns what tells how many kernels this process makes in the background, and waits for them.

    ::

        import tvm_orient as to

        to.compiling()  # Compiling(pending=14, ready=3, failed=0)
        to.compiling().wait(timeout=60)  # True once none is pending

    A kernel is made for a problem once it has been called a few times (TVM_ORIENT_BUILD); `tvm_orient.warmup` makes all that a model needs at once.
    """
    return Compiling(current())


def current() -> Makings:
    """Returns the makings of this process."""
    return _current


def _end_with_process(makings: Makings) -> None:
    """Has makings end with their process; a child of multiprocessing runs no handlers at its end but those of multiprocessing."""
    if makings not in _ending:
        _ending.append(makings)
        multiprocessing.util.Finalize(None, makings.close, exitpriority=100)


def _renew() -> None:
    """Gives a forked child an empty queue."""
    global _current
    _current = Makings()


_ending: list[Makings] = []  # those that end with their process
_current = Makings()
os.register_at_fork(after_in_child=_renew)
