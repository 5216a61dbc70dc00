"""CPU kernels on torch's threads: as many as torch would use here, whatever other OpenMP runtimes are loaded, in new threads and in forked processes."""

from __future__ import annotations

import ctypes
import importlib.util
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from tvm_orient.errors import EnvironmentProblem
from tvm_orient.toolchain import openmp

ROOT = Path(__file__).resolve().parents[2]
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="forks")
TASK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
RANGE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)
# an OpenMP runtime that runs everything on the calling thread, and counts who asked it
STAND_IN = """
int asked;
void GOMP_parallel(void (*f)(void*), void* data, unsigned threads, unsigned flags) { asked++; f(data); }
int omp_get_max_threads(void) { asked++; return 7; }
void omp_set_num_threads(int count) { asked++; }
int omp_in_parallel(void) { asked++; return 0; }
"""
OTHERS = ("libgomp-aaaa.so.1", "libgomp-zzzz.so.1.0.0", "libiomp5.so", "libomp.so")  # as wheels and conda name theirs

# what each subprocess begins with: an op that has run on two threads, and how to ask for how many its kernel takes
START = """
import ctypes, math, os, sys
import torch
import tvm_orient as to
from tvm_orient.evaluate import reference
from tvm_orient.runtime import serving
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec

TAPS = to.Taps.oriented([0.0, math.pi / 4], 7)
SPEC = ConvSpec("conv", 16, 40, 48, TAPS)
W = torch.randn(16, 7)

def op(x):
    return to.tap_conv2d(x, W, TAPS)

def right(x):
    return float((op(x).double() - reference.run(SPEC, x, W)).abs().max()) < 1e-4

def threads(wanted):
    '''Threads that the tasks of this kernel run on, given time until so many came.'''
    import threading, time
    seen, end = set(), time.monotonic() + 20
    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def task(*_):
        seen.add(threading.get_native_id())
        time.sleep(0.002)
        while len(seen) < wanted and time.monotonic() < end:
            time.sleep(0.002)
        return 0
    assert ctypes.CDLL(str(serving.kernel(SPEC, cpu_device()).path)).tvm_orient_launch(task, None, 12) == 0
    return len(seen)

torch.set_num_threads(2)
x = torch.randn(4, 16, 40, 48)
assert right(x)
"""
LOADERS = """
from torch.utils.data import DataLoader, Dataset

class Filtered(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return op(x[i : i + 1])[0]

if __name__ == "__main__":
    for batch in DataLoader(Filtered(), batch_size=4, num_workers=1, timeout=30, multiprocessing_context="fork"):
        assert torch.equal(batch, op(x))
"""
ONE_THREAD = """
torch.set_num_threads(1)
assert threads(1) == 1, "more threads than torch.set_num_threads allows"
torch.set_num_threads(2)
assert threads(2) == 2
"""


def script(folder: Path, *parts: str) -> None:
    """Runs a script of these parts as a file in a process of its own; fails where it does."""
    path = folder / "script.py"
    path.write_text("\n".join([f"import sys; sys.path.insert(0, {str(ROOT)!r})", *map(textwrap.dedent, parts), "print('fine')"]))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=250)
    assert done.stdout.splitlines()[-1:] == ["fine"], done.stdout + done.stderr


def library(folder: Path, name: str, source: str) -> Path:
    """A shared library of this name made of C source."""
    path, text = folder / name, folder / f"{name}.c"
    text.write_text(source)
    subprocess.run([openmp.compiler(), "-shared", "-fPIC", "-w", "-o", str(path), str(text)], check=True)
    return path


def stand_ins(folder: Path) -> tuple[str, str]:
    """(what loads stand-ins for the OpenMP runtimes of other packages, what fails where one was asked)."""
    paths = [str(library(folder, name, STAND_IN)) for name in OTHERS]
    load = f"import ctypes\nothers = [ctypes.CDLL(path) for path in {paths!r}]"
    return load, "assert not any(ctypes.c_int.in_dll(other, 'asked').value for other in others), 'another runtime was asked'"


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The launcher of the kernels as a library by itself, on torch's threads."""
    found = ctypes.CDLL(str(library(tmp_path_factory.mktemp("launcher"), "launcher.so", openmp.SOURCE)))
    openmp.connect(found)
    return found


@pytest.fixture
def workers(launcher: ctypes.CDLL) -> Iterator[Callable[[int], set[int]]]:
    """The threads that the tasks of one launch ran on, given time until so many came; torch has two threads before and after."""

    def run(wanted: int) -> set[int]:
        seen: set[int] = set()
        tasks: list[int] = []
        end = time.monotonic() + 20

        @TASK
        def task(index: int, env: int, data: int) -> int:
            seen.add(threading.get_native_id())
            tasks.append(index)
            time.sleep(0.001)  # so that others come for tasks too
            while len(seen) < wanted and time.monotonic() < end:
                time.sleep(0.001)
            return 0

        assert launcher.tvm_orient_launch(task, None, 12) == 0
        assert sorted(tasks) == list(range(12)), "every task once"
        return seen

    yield run
    torch.set_num_threads(2)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_tasks_run_on_as_many_threads_as_torch_has(workers: Callable[[int], set[int]], threads: int) -> None:
    torch.set_num_threads(threads)
    assert len(workers(threads)) == threads


def test_a_new_thread_has_the_number_that_torch_was_given(workers: Callable[[int], set[int]]) -> None:
    """Each thread has an OpenMP setting of its own, which torch renews at the first work of its own there: the launcher may come first."""
    assert len(workers(2)) == 2
    torch.set_num_threads(1)
    with ThreadPoolExecutor(1) as other:
        assert len(other.submit(workers, 1).result()) == 1


def test_inside_a_parallel_region_of_torch_a_launch_stays_on_its_thread(workers: Callable[[int], set[int]]) -> None:
    outer: dict[int, set[int]] = {}

    @RANGE
    def body(begin: int, end: int, data: int) -> None:
        outer[threading.get_native_id()] = workers(1)

    torch.set_num_threads(2)
    ctypes.CDLL(torch._C.__file__).torch_parallel_for(ctypes.c_int64(0), ctypes.c_int64(2), ctypes.c_int64(1), body, None)
    assert len(outer) == 2
    assert all(inner == {thread} for thread, inner in outer.items())


def test_a_task_that_fails_is_reported(launcher: ctypes.CDLL) -> None:
    assert launcher.tvm_orient_launch(TASK(lambda index, env, data: int(index == 3)), None, 12) == -1


def test_a_torch_without_the_functions_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch._C, "__file__", str(library(tmp_path, "older.so", "int nothing;")))
    openmp._torch_functions.cache_clear()
    try:
        with pytest.raises(EnvironmentProblem, match=r"torch's threads, which torch .* lends to nobody: install torch 2.11 or later"):
            openmp._torch_functions()
    finally:
        openmp._torch_functions.cache_clear()


FORKED = """
def child(threads):
    '''Exit status of a forked process in which the op ran on so many threads; None where it does not end.'''
    import signal, time
    process = os.fork()
    if not process:
        torch.set_num_threads(threads)
        os._exit(0 if right(x) else 1)
    for _ in range(300):
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.1)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
"""


@needs_linux
def test_openmp_runtimes_loaded_before_torch_are_left_alone(tmp_path: Path) -> None:
    load, unasked = stand_ins(tmp_path)
    script(tmp_path, load, START, ONE_THREAD, LOADERS, unasked)


@needs_linux
@pytest.mark.long
def test_openmp_runtimes_loaded_after_torch_are_left_alone(tmp_path: Path) -> None:
    """The system's own libgomp too, where there is one."""
    load, unasked = stand_ins(tmp_path)
    system = "try: ctypes.CDLL('libgomp.so.1')\nexcept OSError: pass"
    script(tmp_path, "import torch", load, system, START, ONE_THREAD, LOADERS, unasked)


@needs_linux
@pytest.mark.long
@pytest.mark.skipif(not importlib.util.find_spec("sklearn"), reason="no scikit-learn, whose wheels bring a libgomp")
def test_beside_scikit_learn(tmp_path: Path) -> None:
    script(tmp_path, "import sklearn.cluster", START, ONE_THREAD, LOADERS)


@needs_linux
def test_forked_processes(tmp_path: Path) -> None:
    """A server may load and warm up on one thread, then fork workers of several. Of OpenMP threads that a parent did use nothing is there after a fork: one
    thread needs none of them."""
    one = START.replace("torch.set_num_threads(2)", "torch.set_num_threads(1)")
    script(tmp_path, one, FORKED, "assert child(2) == 0\ntorch.set_num_threads(2)\nop(x)\nassert child(1) == 0")


def test_processes_that_start_anew_use_the_cache(tmp_path: Path) -> None:
    """Nothing is compiled there, and nothing of the op hinders sending it its operands."""
    work = """
    def work(x):
        assert os.environ["TVM_ORIENT_BUILD"] == "0"
        return right(x)

    if __name__ == "__main__":
        import multiprocessing
        os.environ["TVM_ORIENT_BUILD"] = "0"
        for method in ("spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(1) as processes:
                assert processes.apply_async(work, (x,)).get(100)
    """
    script(tmp_path, START, work)
