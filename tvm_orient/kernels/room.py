"""Room for compilers at work: who asked for a kernel goes first and may use every core, what nobody asked for leaves one to the program."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

from ..problem.cpus import cores

_MAX_ASKED = 16  # compilers at work at once, however many cores there are: each takes half a gigabyte
_MAX_UNASKED = 4  # of those, ones whose work nobody asked for


class Room:
    """Places for compilers at work, lent to one after the other."""

    def __init__(self) -> None:
        """Counts the cores of this process."""
        self.asked = min(_MAX_ASKED, cores())  #: compilers that may work at once
        self.unasked = max(1, min(_MAX_UNASKED, cores() - 1))  #: compilers that may work at once where nobody asked for what they make
        self._working = self._first = 0  # compilers at work; those who asked and wait
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def place(self, urgent: bool) -> Iterator[None]:
        """Holds a place while the context lasts, and waits for one before.

        Args:
            urgent: it was asked for.
        """
        with self._changed:
            self._first += urgent
            try:
                self._changed.wait_for(lambda: self._free(urgent))
            finally:
                self._first -= urgent
                self._changed.notify_all()
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    def _free(self, urgent: bool) -> bool:
        return self._working < self.asked if urgent else self._working < self.unasked and not self._first
