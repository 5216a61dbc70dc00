"""Waiting for kernels: a bar in a terminal and nowhere else, and who is told what failed."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator

import pytest
from rich.console import Console

from tests.support.compilers import until
from tvm_orient.errors import BuildFailed
from tvm_orient.runtime import makings, progress
from tvm_orient.runtime.makings import Declined, Makings


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Makings]:
    monkeypatch.setattr(makings.compile_process, "close", lambda: None)
    made = Makings()
    monkeypatch.setattr(makings, "_current", made)
    yield made
    made.close()


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_where_a_terminal_looks_on_and_nowhere_else(queue: Makings, terminal: bool) -> None:
    text, gate = io.StringIO(), threading.Event()
    gates = [threading.Event(), gate]
    begun = [queue.begin(name, name, lambda _, gate=gate: gate.wait(60), 3.0, urgent=True) for name, gate in zip("ab", gates, strict=True)]
    waiting = threading.Thread(target=progress.wait_for, args=(begun, Console(file=text, force_terminal=terminal, width=80)))
    waiting.start()
    gates[0].set()
    until(lambda: not terminal or "1 of 2 kernels ready, about " in text.getvalue())
    assert waiting.is_alive()
    gate.set()
    waiting.join(60)
    assert bool(text.getvalue()) == terminal


def test_what_failed_is_raised_and_what_was_declined_is_not(queue: Makings) -> None:
    def fail(problem: Exception) -> None:
        raise problem

    problems = [Declined("not worth it"), BuildFailed("one"), BuildFailed("two")]
    begun = [queue.begin(problem, str(problem), lambda _, problem=problem: fail(problem), urgent=True) for problem in problems]
    with pytest.raises(BuildFailed, match="one"):
        progress.wait_for(begun)
    progress.wait_for(begun[:1])


def test_after_an_interrupt_the_rest_is_no_longer_urgent(queue: Makings, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    making = queue.begin("a", "a", lambda _: gate.wait(60), urgent=True)

    def interrupted(*_: object) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(queue, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            progress.wait_for([making])
    assert not making.urgent
    gate.set()
    assert queue.wait([making], 60)
