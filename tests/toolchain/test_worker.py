"""Processes that answer: one that fails, dies or is late is replaced, so that no failure is another's; it ends with who asked, and leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tvm_orient.errors import EnvironmentProblem
from tvm_orient.toolchain.worker import FAULTS, ChildProcess, Died, environment, interpreter, module_command

ROOT = Path(__file__).resolve().parents[2]
SERVER = """
import os, sys, time
from tvm_orient.toolchain.worker import serve
dead = []
def answer(request):
    print("what a library says")
    if request == "poison":
        dead.append(1)
    if dead:
        raise RuntimeError("the context is gone")
    if request == "die":
        os._exit(7)
    if request == "abort":
        os.abort()
    if request == "hang":
        time.sleep(60)
    return {"pid": os.getpid(), "said": request}
serve(answer)
"""
ECHO = "from tvm_orient.toolchain.worker import serve; serve(lambda request: {'said': request})"
MOST = 1024  # the first descriptor that select does not take


@pytest.fixture
def served() -> ChildProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return ChildProcess([sys.executable, "-c", SERVER], 30, environment)


def test_one_process_answers_until_it_fails(served: ChildProcess, tmp_path: Path) -> None:
    served.log = tmp_path / "log"
    first, second = served.ask("a"), served.ask("b")
    assert (first["said"], second["said"], first["pid"]) == ("a", "b", second["pid"])
    assert served.ask("poison")["error"] == "RuntimeError: the context is gone"
    third = served.ask("c")
    assert third["said"] == "c", "the failure of one is not that of the next"
    assert third["pid"] != first["pid"]
    served.close()
    assert served.log.read_text() == "what a library says\n" * 4, "and none of it was taken for an answer"


def test_a_lasting_one_is_kept(served: ChildProcess) -> None:
    served.lasting = True
    assert "error" in served.ask("poison")
    assert "error" in served.ask("a")
    served.close()


def test_death_and_silence(served: ChildProcess) -> None:
    for request, said in (("die", "ended with status 7"), ("abort", "died of SIGABRT")):
        with pytest.raises(Died, match=said):
            served.ask(request)
        assert not served.running
    served.ask("a")
    begin = time.monotonic()
    with pytest.raises(TimeoutError):
        served.ask("hang", timeout=0.3)
    assert time.monotonic() - begin < 5
    assert served.ask("b")["said"] == "b"
    served.close()


def test_what_becomes_of_a_request_is_told(served: ChildProcess) -> None:
    assert served.told("a")["said"] == "a"
    assert served.told("die") == {"error": "the process ended with status 7", "fault": "died"}
    assert served.told("hang", timeout=0.3) == {"error": "no answer within 0 s", "fault": "hung"}
    assert served.told("poison") == {"error": "RuntimeError: the context is gone", "fault": "failed"}
    assert served.told("b")["said"] == "b"
    assert FAULTS == ("died", "hung", "failed")
    served.close()


def test_one_that_ended_unasked_is_replaced(served: ChildProcess) -> None:
    first = served.ask("a")
    os.kill(first["pid"], signal.SIGKILL)
    assert served._process is not None
    served._process.wait()
    assert not served.running
    assert served.ask("b")["pid"] != first["pid"], "the next request pays for nothing that it did not do"
    served.close()


def test_what_does_not_start_is_told() -> None:
    with pytest.raises(EnvironmentProblem, match="needs a process of its own, and /nowhere/python does not start"):
        ChildProcess(["/nowhere/python"], 1.0).ask("a")


def test_a_module_finds_what_this_process_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what was put on sys.path after the start, and never what lies in the working folder by chance."""
    (tmp_path / "kit").mkdir()
    answers = "import json, os\nfrom tvm_orient.toolchain.worker import serve\nserve(lambda name: {'json': json.__file__, 'env': os.environ[name]})\n"
    (tmp_path / "kit" / "own_answers.py").write_text(answers)
    (tmp_path / "json.py").write_text("raise ImportError('of the working folder')\n")
    monkeypatch.chdir(tmp_path)
    with ChildProcess(module_command("own_answers"), 30.0, environment([tmp_path / "kit"], TVM_ORIENT_X="given")) as asked:
        answer = asked.ask("TVM_ORIENT_X")
    assert answer["env"] == "given"
    assert Path(answer["json"]).parent.name == "json"
    assert not asked.running


def test_a_bound_one_ends_with_who_asked(tmp_path: Path) -> None:
    asking = (
        f"import sys; from tvm_orient.toolchain.worker import ChildProcess; s = ChildProcess([sys.executable, '-c', {SERVER!r}], 30, bound=True)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(s.ask('a')['pid'])); print('asked', flush=True); s.ask('hang')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", asking], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == b"asked\n"
    child = Path("/proc") / (tmp_path / "pid").read_text() / "stat"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    for _ in range(100):
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("it outlived who asked")


# ---- which Python, and what is left ---------------------------------------------------------------


def echo(code: str = ECHO) -> ChildProcess:
    return ChildProcess([sys.executable, "-c", code], 20.0, {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


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
    asked = echo()
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
        asked = echo()
        try:
            assert asked.ask("a") == {"said": "a"}
        finally:
            asked.close()
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_that_ended_of_itself_leaves_no_entry_in_the_table_of_processes() -> None:
    asked = echo("from tvm_orient.toolchain.worker import serve; serve(lambda request: {}, idle=0.1)")
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
