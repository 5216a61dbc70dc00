"""The queue of makings: its order, how many at once, what is asked for meanwhile, and what it tells."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import tvm_orient as to
from tests.support.compilers import until
from tvm_orient.errors import BuildFailed
from tvm_orient.kernels import room
from tvm_orient.kernels.cache import Busy
from tvm_orient.runtime import makings
from tvm_orient.runtime.makings import Declined, Making, Makings


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Makings]:
    """A queue of its own on a machine with two cores, which ends no compilers."""
    monkeypatch.setattr(room, "cores", lambda: 2)
    monkeypatch.setattr(makings.compile_process, "close", lambda: None)
    monkeypatch.setattr(makings, "_IDLE_S", 0.05)
    made = Makings()
    monkeypatch.setattr(makings, "_current", made)
    yield made
    made.close()


class Work:
    """Makings that wait to be let go, each by its name; what began, and whether it was urgent, in order."""

    def __init__(self, queue: Makings) -> None:
        self.queue, self.begun, self.gates = queue, list[tuple[str, bool]](), dict[str, threading.Event]()

    def begin(self, name: str, *, urgent: bool = False, problem: BaseException | None = None) -> Making:
        gate = self.gates.setdefault(name, threading.Event())

        def make(asked: bool) -> None:
            self.begun.append((name, asked))
            assert gate.wait(60)
            if problem is not None:
                raise problem

        return self.queue.begin(name, name, make, urgent=urgent)

    def go(self, *names: str) -> None:
        for name in names:
            self.gates[name].set()


def test_one_after_the_other_in_order_of_request_and_what_is_asked_for_goes_first(queue: Makings) -> None:
    work = Work(queue)
    waiting = [work.begin(name) for name in "abc"]
    until(lambda: work.begun == [("a", False)])
    assert queue.begin("b", "b", lambda _: pytest.fail("begun twice")) is waiting[1]
    with queue._changed:  # before a thread can take either
        work.begin("d", urgent=True)
        work.begin("c", urgent=True)  # of those that wait one is asked for now
    until(lambda: len(work.begun) == 2)
    assert work.begun[1] == ("c", True), "in the order in which the queue got them"
    assert not queue.wait(waiting, 0)
    work.go(*"abcd")
    assert queue.wait(timeout=60)
    assert [name for name, _ in work.begun] == list("acdb")
    assert (queue.ready, queue.failed, queue.pending) == (4, 0, ())


def test_asked_for_while_it_is_declined(queue: Makings) -> None:
    """What nobody asked for is declined; who asks meanwhile gets it made."""
    tries = list[bool]()
    gate = threading.Event()

    def make(asked: bool) -> None:
        tries.append(asked)
        assert gate.wait(60)
        if not asked:
            raise Declined("not worth it")

    making = queue.begin("a", "a", make)
    until(lambda: tries == [False])
    assert queue.begin("a", "a", make, urgent=True) is making
    gate.set()
    assert queue.wait([making], 60)
    assert (tries, making.problem, queue.ready) == ([False, True], None, 1)


def test_what_another_process_makes_is_looked_for_and_holds_nobody_up(queue: Makings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(makings, "_LOOK_AGAIN_S", 0.01)
    there, looks, work = threading.Event(), list[bool](), Work(queue)

    def make(asked: bool) -> None:
        looks.append(asked)
        if not there.is_set():
            raise Busy

    making = queue.begin("a", "a", make)
    other = work.begin("b")
    work.go("b")
    assert queue.wait([other], 60)
    until(lambda: len(looks) > 2)
    assert not making.done
    there.set()
    assert queue.wait([making], 60)
    assert making.problem is None


def test_what_it_tells(queue: Makings, caplog: pytest.LogCaptureFixture) -> None:
    work, watched = Work(queue), to.compiling()
    with caplog.at_level("INFO", logger="tvm_orient"):
        with queue._changed:  # before a thread can count them
            for name, problem in (("a", None), ("b", BuildFailed("no")), ("c", Declined("no")), ("d", None)):
                work.begin(name, problem=problem)
        assert repr(watched) == "Compiling(pending=4, ready=0, failed=0)"
        assert not watched.wait(0)
        until(lambda: bool(work.begun) and bool(caplog.records))
        work.go(*"abcd")
        assert watched.wait(60)
        until(lambda: len(caplog.records) == 3)
    assert (watched.pending, watched.ready, watched.failed) == (0, 2, 1)
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "making 4 kernels in the background",
        "1 of 4 kernels ready: a",
        "2 of 3 kernels ready: d",
    ]
    assert caplog.messages[1].endswith(" s")


def test_its_threads_end_and_further_makings_have_new_ones(queue: Makings) -> None:
    for name in "ab":
        done = queue.begin(name, name, lambda _: None)
        assert queue.wait([done], 60)
        until(lambda: not queue._threads)
    assert queue.ready == 2


def test_who_waits_goes_on_when_the_process_ends(queue: Makings) -> None:
    work, answers = Work(queue), list[bool]()
    making = work.begin("a")
    until(lambda: bool(work.begun))
    thread = threading.Thread(target=lambda: answers.append(queue.wait([making])))
    thread.start()
    work.go("a")
    queue.close()
    thread.join(60)
    assert len(answers) == 1
    assert queue.begin("b", "b", lambda _: pytest.fail("begun")) in queue.pending
    assert not queue._threads


def test_asking_loads_neither_torch_nor_tvm() -> None:
    code = "import sys, tvm_orient as to; print(to.compiling(), to.compiling().wait(), sorted({'torch', 'tvm'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "Compiling(pending=0, ready=0, failed=0) True []\n"


# ---- room for compilers -------------------------------------------------------------------------


@pytest.mark.parametrize(("cores", "asked", "unasked"), [(1, 1, 1), (2, 2, 1), (4, 4, 3), (64, 16, 4)])
def test_how_many_compilers_work_at_once(monkeypatch: pytest.MonkeyPatch, cores: int, asked: int, unasked: int) -> None:
    monkeypatch.setattr(room, "cores", lambda: cores)
    made = room.Room()
    assert (made.asked, made.unasked) == (asked, unasked)


def test_who_asked_has_the_next_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "cores", lambda: 2)
    made, order = room.Room(), list[str]()
    leave = {name: threading.Event() for name in ("unasked 1", "unasked 2", "asked 1", "asked 2")}

    def work(name: str) -> Callable[[], None]:
        def run() -> None:
            with made.place(name.startswith("asked")):
                order.append(name)
                assert leave[name].wait(60)

        return run

    def start(name: str) -> threading.Thread:
        thread = threading.Thread(target=work(name))
        thread.start()
        return thread

    threads = [start("unasked 1")]
    until(lambda: len(order) == 1)
    threads += [start("unasked 2"), start("asked 1")]
    until(lambda: len(order) == 2)
    threads.append(start("asked 2"))
    until(lambda: made._first == 1)
    time.sleep(0.01)
    assert order == ["unasked 1", "asked 1"]
    leave["unasked 1"].set()
    until(lambda: len(order) == 3)
    assert order[2] == "asked 2"
    for event in leave.values():
        event.set()
    for thread in threads:
        thread.join(60)
    assert order[3] == "unasked 2"
