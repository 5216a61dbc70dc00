"""Locks in a process that is forked: the child has one thread, so no lock that another thread of its parent held may stay locked in it."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from typing import Any, Generic, Self, TypeVar, overload

Value = TypeVar("Value")


class Lock:
    """A lock for threads that is free in a forked child, whoever held it in the parent. It is not for a thread that forks while it holds it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        _locks.add(self)

    def acquire(self, blocking: bool = True) -> bool:
        """Whether the lock is now the caller's; without blocking, False where it is another's."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Gives the lock back."""
        self._lock.release()

    def renew(self) -> None:
        """Forgets who held it."""
        self._lock = threading.Lock()

    def __enter__(self) -> Lock:
        self._lock.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class kept(functools.cached_property[Value], Generic[Value]):
    """functools.cached_property without the lock that it takes before Python 3.12: two threads may compute a value twice, and no fork finds it locked."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> Self: ...

    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Value: ...

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        """The value of an instance, computed by the first who asks."""
        if instance is None:
            return self
        value = instance.__dict__[self.attrname or ""] = self.func(instance)
        return value


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew() -> None:
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_renew)
