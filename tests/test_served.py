"""Processes that answer: which Python runs them, in programs of every kind, and what is left of one that ended."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvm_orient.errors import EnvironmentProblem
from tvm_orient.served import Served, interpreter

ECHO = "from tvm_orient.served import serve; serve(lambda request: {'said': request})"
MOST = 1024  # the first descriptor that select does not take


def served(code: str = ECHO) -> Served:
    return Served([sys.executable, "-c", code], 20.0, {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


@pytest.fixture
def executable() -> Iterator[Callable[[str | None], None]]:
    """Tells multiprocessing of another Python for a while, as a program does that has one embedded."""
    before = multiprocessing.spawn.get_executable()
    yield lambda path: multiprocessing.spawn.set_executable(path)
    multiprocessing.spawn.set_executable(before)


@pytest.mark.parametrize("program", ["/usr/sbin/uwsgi", "/bin/false", "", None])
def test_a_program_with_an_embedded_python_runs_the_one_beside_its_libraries(program: str | None, executable: Callable[[str | None], None]) -> None:
    executable(program)
    assert Path(interpreter()).name.startswith("python")
    assert Path(interpreter()).parent == Path(sys.exec_prefix) / "bin"


def test_a_python_that_multiprocessing_was_told_of_comes_first(executable: Callable[[str | None], None], tmp_path: Path) -> None:
    other = tmp_path / "python3.99"
    other.symlink_to(sys.executable)
    executable(str(other))
    assert interpreter() == str(other)


def test_a_frozen_program_is_never_started_again(executable: Callable[[str | None], None], monkeypatch: pytest.MonkeyPatch) -> None:
    executable("/opt/app/app")
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(EnvironmentProblem, match=r"'/opt/app/app'\) is none: call multiprocessing.set_executable"):
        interpreter()


def test_an_answer_may_be_waited_for_longer_than_the_system_can_count() -> None:
    asked = served()
    assert asked.ask("a", 1e9) == {"said": "a"}
    asked.close()


def test_answers_come_through_descriptors_beyond_those_of_select() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < MOST + 100:
        pytest.skip("so many files cannot be opened here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, MOST + 100), hard))
    held: list[int] = []
    try:
        while not held or held[-1] < MOST:
            held.append(os.open(os.devnull, os.O_RDONLY))
        asked = served()
        try:
            assert asked.ask("a") == {"said": "a"}
        finally:
            asked.close()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_ended_of_itself_leaves_no_entry_in_the_table_of_processes() -> None:
    asked = served("from tvm_orient.served import serve; serve(lambda request: {}, idle=0.1)")
    asked.ask("a")
    process = asked._process
    assert process is not None
    state = Path(f"/proc/{process.pid}")
    if not Path("/proc/self").exists():
        pytest.skip("the system does not list processes in /proc")
    for _ in range(200):
        if not state.exists():
            break
        time.sleep(0.05)
    assert not state.exists(), "it is there still, and nobody waits for it"
    asked.close()
