"""A process that is forked: no lock that a thread of its parent held is locked in it, and what the parent is doing goes on."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.compilers import alive
from tests.support.entries import KEY, maker
from tests.support.helpers import line, spec_of
from tvm_orient.forks import Lock, kept
from tvm_orient.kernels import compile_process
from tvm_orient.kernels.cache import Busy, KernelCache
from tvm_orient.problem.device import cpu_device
from tvm_orient.runtime import makings, serving
from tvm_orient.runtime.provisional import ProvisionalKernel

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")


def in_child(work: Callable[[], bool]) -> bool | None:
    """What work answers in a forked child; None where it hangs or raises."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    for _ in range(600):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {0: True, 1: False}.get(os.waitstatus_to_exitcode(status))
        time.sleep(0.05)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return None


class Held:
    """Something that a thread holds until the block is left."""

    def __init__(self, hold: Callable[[Callable[[], None]], Any]) -> None:
        self.held, self.leave = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=hold, args=(self._wait,))

    def _wait(self) -> None:
        self.held.set()
        assert self.leave.wait(60)

    def __enter__(self) -> None:
        self.thread.start()
        assert self.held.wait(60)

    def __exit__(self, *_: object) -> None:
        self.leave.set()
        self.thread.join()


def test_a_lock_is_free_in_the_child_and_held_in_the_parent() -> None:
    lock = Lock()

    def hold(wait: Callable[[], None]) -> None:
        with lock:
            wait()

    with Held(hold):
        assert in_child(lambda: lock.acquire(blocking=False))
        assert not lock.acquire(blocking=False)
    assert lock.acquire(blocking=False)


def test_a_kept_value_takes_no_lock() -> None:
    """functools.cached_property of Python 3.11 would have the child wait for the parent's thread."""

    class Slow:
        @kept
        def value(self) -> int:
            if isinstance(threading.current_thread(), threading._MainThread):
                return 2
            wait_here()
            return 1

    slow, wait_here = Slow(), lambda: None

    def hold(wait: Callable[[], None]) -> None:
        nonlocal wait_here
        wait_here = wait
        assert slow.value == 1

    with Held(hold):
        assert in_child(lambda: Slow().value == 2)
    assert slow.value == 1
    assert Slow.value.__class__ is kept


def test_no_other_locks_in_the_package() -> None:
    """Those that a fork may find locked are of forks.py; the conditions of makings and of compilers are made anew in the child, with all that they guard."""
    lock = re.compile(r"threading\.(\w+)\(|from threading import (\w+)|functools\.(cached_property)\b")
    found = {
        (path.name, next(filter(None, match.groups())))
        for path in (ROOT / "tvm_orient").rglob("*.py")
        for match in lock.finditer(path.read_text())
        if path.name != "forks.py"
    }
    known = {
        ("provisional.py", "get_ident"),
        ("provisional.py", "current_thread"),
        ("makings.py", "Thread"),
        ("makings.py", "Condition"),
        ("room.py", "Condition"),
    }
    assert known <= found, "the pattern finds nothing"
    assert {name for name in found - known if name[1] not in ("get_ident", "current_thread", "main_thread", "Thread")} == set()


def test_a_problem_that_a_thread_compiles_while_the_process_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_BUILD", "8")
    busy, other = (spec_of("conv", 4, 12, width, line(30, k=7)) for width in (30, 31))
    serving.forget()
    serving.kernel_for_call(other, cpu_device())  # the generic kernel is in the cache
    serving.forget()
    real = serving.acquire

    def hold(wait: Callable[[], None]) -> None:
        def made(spec: Any, *rest: Any) -> Any:
            if spec == busy:
                wait()
            return real(spec, *rest) if spec != busy else serving._generic(spec, cpu_device())

        monkeypatch.setattr(serving, "acquire", made)
        serving.kernel(busy, cpu_device())

    with Held(hold):
        assert in_child(lambda: isinstance(serving.kernel_for_call(other, cpu_device()), ProvisionalKernel))
        assert in_child(lambda: isinstance(serving.kernel_for_call(busy, cpu_device()), ProvisionalKernel))
    serving.forget()


def test_the_lock_of_an_entry_stays_the_parents(tmp_path: Path) -> None:
    """The child neither has it nor gives it back, and what the parent makes is not swept."""
    store = KernelCache(tmp_path / "kernels")

    def busy() -> bool:
        try:
            KernelCache(store.directory).publish(KEY, maker(b"child"), waiting=False)
        except Busy:
            return True
        return False

    def hold(wait: Callable[[], None]) -> None:
        def make(folder: Path) -> dict[str, Any]:
            wait()
            return maker(b"parent")(folder)

        store.publish(KEY, make)

    with Held(hold):
        assert in_child(busy)
        assert in_child(busy), "the first child that ended gave it back"
    assert (store.directory / KEY.name / "kernel.so").read_bytes() == b"parent"


def test_a_child_has_an_empty_queue_of_its_own() -> None:
    """Its locks are free, whatever a thread of the parent held."""
    queue = makings.current()

    def hold(wait: Callable[[], None]) -> None:
        with queue._changed:
            wait()

    with Held(hold):
        assert in_child(
            lambda: makings.current() is not queue and makings.compiling().wait(0) and makings.current().begin("a", "a", lambda _: None).done is False
        )
    assert makings.current() is queue


def test_a_child_has_compilers_of_its_own() -> None:
    shop = compile_process._shop
    assert in_child(lambda: compile_process._shop is not shop and not compile_process._shop._room._working and not compile_process._shop._waiting)
    assert compile_process._shop is shop


_ORPHAN = """
import os, time
from tvm_orient.kernels import compile_process
made = compile_process._Compiler()
print(made._start().pid, flush=True)
holder = os.fork()
if holder == 0:  # holds the compiler's standard input open, as a worker of a DataLoader does
    os.close(1)
    os.close(2)  # whoever reads what this process says would wait for this one
    time.sleep(60)
    os._exit(0)
print(holder, flush=True)
time.sleep(1)
os._exit(0)
"""


def test_a_compiler_ends_with_the_program_that_asks() -> None:
    done = subprocess.run([sys.executable, "-c", _ORPHAN], capture_output=True, text=True, check=True)
    compiling, holder = map(int, done.stdout.split())
    end = time.monotonic() + 45
    try:
        while alive(compiling):
            assert time.monotonic() < end, "it outlives the program"
            time.sleep(0.1)
    finally:
        os.kill(holder, 9)
