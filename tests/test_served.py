"""Processes that answer: one that fails, dies or is late is replaced, so that no failure is another's; and it ends with who asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tvm_orient.served import Died, Served

ROOT = Path(__file__).resolve().parent.parent
SERVER = """
import os, sys, time
from tvm_orient.served import serve
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


@pytest.fixture
def served() -> Served:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return Served([sys.executable, "-c", SERVER], 30, environment)


def test_one_process_answers_until_it_fails(served: Served, tmp_path: Path) -> None:
    served.log = tmp_path / "log"
    first, second = served.ask("a"), served.ask("b")
    assert (first["said"], second["said"], first["pid"]) == ("a", "b", second["pid"])
    assert served.ask("poison")["error"] == "RuntimeError: the context is gone"
    third = served.ask("c")
    assert third["said"] == "c", "the failure of one is not that of the next"
    assert third["pid"] != first["pid"]
    served.close()
    assert served.log.read_text() == "what a library says\n" * 4, "and none of it was taken for an answer"


def test_a_lasting_one_is_kept(served: Served) -> None:
    served.lasting = True
    assert "error" in served.ask("poison")
    assert "error" in served.ask("a")
    served.close()


def test_death_and_silence(served: Served) -> None:
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


def test_a_bound_one_ends_with_who_asked(tmp_path: Path) -> None:
    asking = (
        f"import sys; from tvm_orient.served import Served; s = Served([sys.executable, '-c', {SERVER!r}], 30, bound=True)\n"
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
