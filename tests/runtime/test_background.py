"""Kernels that are made in the background, and processes: ends and interrupts in the middle, children, and ranks that share a cache."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.background import WIDTHS
from tests.support.compilers import alive, pids, until
from tests.support.serving import CPU, spec_at
from tvm_orient import env
from tvm_orient.kernels import build
from tvm_orient.kernels.cache import KernelCache

pytestmark = pytest.mark.usefixtures("second")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "marks"
    made.mkdir()
    return made


def start(name: str, folder: Path) -> subprocess.Popen[str]:
    """A process with a cache of its own beside the folder; generic kernels are in the session's."""
    places = {"TVM_ORIENT_CACHE_DIR": str(folder.parent / "kernels"), "TVM_ORIENT_SHARED_CACHE": str(env.cache_dir())}
    command = [sys.executable, "-m", "tests.support.background", name, str(folder)]

    def hears() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it, and so does what that starts

    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **places}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=hears)


def nothing_is_left(folder: Path) -> None:
    """No compiler, nothing half-written, and no lock that is held."""
    until(lambda: not any(alive(pid) for pid in pids(folder)))
    store = KernelCache(folder.parent / "kernels")
    assert [path.name for path in store.directory.iterdir() if not path.name.endswith(".lock")] == []
    for lock in store.directory.glob(".*.lock"):
        with store._locked(lock.name[1 : -len(".lock")], waiting=False):
            pass


def test_a_program_ends_in_the_middle(folder: Path) -> None:
    said, complained = (process := start("leaves", folder)).communicate(timeout=120)
    assert (process.returncode, said, complained) == (0, "", "")
    assert len(pids(folder)) == 1
    nothing_is_left(folder)


@pytest.mark.parametrize("name", ["waits", "warms"])
def test_ctrl_c_in_the_middle(folder: Path, name: str) -> None:
    process = start(name, folder)
    until(lambda: (folder / "waiting").exists() and bool(pids(folder)))
    process.send_signal(signal.SIGINT)
    _, complained = process.communicate(timeout=120)
    assert process.returncode == -signal.SIGINT
    assert complained.count("Traceback") == 1, "the program's own"
    assert complained.rstrip().endswith("KeyboardInterrupt")
    nothing_is_left(folder)


@pytest.mark.parametrize(("name", "compilers"), [("forks", 2), ("spawns", 1)])
def test_a_child_of_multiprocessing_ends_in_the_middle(folder: Path, name: str, compilers: int) -> None:
    """A forked child has a queue and compilers of its own, and takes nothing from its parent."""
    said, complained = (process := start(name, folder)).communicate(timeout=120)
    assert process.returncode == 0, complained
    assert json.loads(said) == {"exit": 0, "pending": int(name == "forks")}
    assert complained == ""
    assert json.loads((folder / "child.json").read_text()) == [0, 1]
    assert len(pids(folder)) == compilers
    nothing_is_left(folder)


def test_two_ranks_make_each_kernel_once(folder: Path) -> None:
    specs = [spec_at(width) for width in WIDTHS]
    for spec in specs:
        shutil.copy(build.build(spec, CPU), folder / f"{spec.key}.so")
        shutil.rmtree(build.build(spec, CPU).parent)
    ranks = [start("rank", folder) for _ in range(2)]
    for process in ranks:
        said, complained = process.communicate(timeout=120)
        assert process.returncode == 0, complained
        answer = json.loads(said)
        assert answer.pop("ready") <= len(specs), "what the other rank had made before the first call counts as no making"
        assert answer == {"done": True, "failed": 0, "own": [True] * len(specs)}
        assert complained == ""
    assert sorted((folder / "made.txt").read_text().split()) == sorted(spec.key for spec in specs)
