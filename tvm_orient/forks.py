"""Locks in a process that is forked: the child has one thread, so no lock that another thread of its parent held may stay locked in it."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from typing import Any, Generic, Self, TypeVar, overload

Value = TypeVar("Value")


class Lock:
    """A lock for threads that is free in a forked child, whoever held it in the parent. A thread must not fork while it holds one."""

    def __init__(self) -> None:
        """Make a lock that nobody holds."""
        self._lock = threading.Lock()
        _locks.add(self)

    def acquire(self, blocking: bool = True) -> bool:
        """Take the lock, and return whether it is the caller's now: False where another has it and blocking is False."""
        return self._lock.acquire(blocking)

    def release(self) -> None:
        """Give the lock back."""
        self._lock.release()

    def renew(self) -> None:
        """Forget who held the lock."""
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
        """Return the value of an instance, computed by the first who asks; of the class the property itself."""
        if instance is None:
            return self
        value = instance.__dict__[self.attrname or ""] = self.func(instance)
        return value


_locks: weakref.WeakSet[Lock] = weakref.WeakSet()


def _renew() -> None:
    """Free all locks in a child that was just forked."""
    for lock in list(_locks):
        lock.renew()


os.register_at_fork(after_in_child=_renew)
