"""Stand-ins for the process that compiles, and what the system knows of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvm_orient.kernels import compile_process

_IMPORTS = "import json, os, pathlib, shutil, sys, time\n"
# a compiler that never answers; it leaves its number as a file in a folder
BLOCKED = "sys.stdin.readline(); pathlib.Path({folder!r}, f'{{os.getpid()}}.pid').touch(); time.sleep(600)"
# one that makes nothing of a part, copies the kernel that a folder has for a problem, and adds the problem to a list
COPYING = """
for line in sys.stdin:
    asked = json.loads(line)
    if "part" in asked:
        pathlib.Path(asked["path"]).touch()
        print(json.dumps({{"facts": {{}}}}), flush=True)
        continue
    with open(pathlib.Path({folder!r}, "made.txt"), "a") as made:
        made.write(asked["spec"] + chr(10))
    time.sleep({seconds})
    shutil.copy(pathlib.Path({folder!r}, asked["spec"] + ".so"), pathlib.Path(asked["folder"], "kernel.so"))
    print(json.dumps({{"facts": {{}}}}), flush=True)
"""


def stand_in(monkeypatch: Any, code: str) -> None:
    """Have another program compile, for a shop of its own."""
    start = compile_process._Compiler.__init__

    def made(self: compile_process._Compiler) -> None:
        start(self)
        self.command = [sys.executable, "-c", _IMPORTS + code]

    monkeypatch.setattr(compile_process._Compiler, "__init__", made)
    monkeypatch.setattr(compile_process, "_shop", compile_process._Shop())


def pids(folder: Path) -> list[int]:
    """The numbers of the processes that have run BLOCKED for a folder."""
    return [int(path.stem) for path in folder.glob("*.pid")]


def alive(pid: int) -> bool:
    """Whether a process is in the system's table, and more than what nobody has asked after yet."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(fact: Callable[[], bool]) -> None:
    """Wait for something that another thread or process does."""
    end = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.01)
