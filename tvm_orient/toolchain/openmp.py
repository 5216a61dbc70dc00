"""Makes CPU kernels run on torch's own threads.

TVM brings a thread pool of its own, which spins between calls and pins threads. Beside torch's pool, which spins too, both slow
down by orders of magnitude on busy cores. So each kernel library carries a small launcher that hands TVM's parallel tasks to torch,
several tasks a thread, so that unequal angles level out.

The launcher calls the functions of torch's C interface for parallel loops, in the library that the imported torch consists of. A process may hold
several OpenMP runtimes, as other packages bring theirs. Only torch knows which one it runs on, how many threads it may use here, in a thread that
has just started and in a forked DataLoader worker, and whether a parallel region is running already.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import BuildFailed, EnvironmentProblem

# TVM's C backend API: int (*)(int task, struct { void* sync; int32_t tasks; }* env, void* data)
SOURCE = """
#include <stdint.h>
typedef struct { void* sync; int32_t tasks; } Env;
typedef int (*Task)(int, Env*, void*);
typedef struct { Task run; void* data; int tasks; int next; int failed; } Job;
typedef void (*Range)(int64_t, int64_t, void*);
static int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, Range, void* data);
static int32_t (*threads_here)(uint32_t* count);

static void worker(int64_t begin, int64_t end, void* p) {
  Job* job = (Job*)p;
  Env env = {0, job->tasks};
  (void)begin; (void)end;  /* torch gives each thread a share; they take tasks one by one instead, until none is left */
  for (;;) {
    int task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (task >= job->tasks) return;
    if (job->run(task, &env, job->data)) __atomic_store_n(&job->failed, -1, __ATOMIC_RELAXED);
  }
}

int tvm_orient_launch(Task run, void* data, int tasks) {
  uint32_t threads = 1;
  if (threads_here(&threads)) threads = 1;
  Job job = {run, data, tasks > 0 ? tasks : threads > 1 ? 32 * (int)threads : 1, 0, 0};
  if (threads <= 1) worker(0, 1, &job);
  else if (parallel_for(0, threads, 1, worker, &job)) return -1;
  return job.failed;
}

void tvm_orient_use_torch(void* parallel_function, void* threads_function) {
  parallel_for = (int32_t (*)(int64_t, int64_t, int64_t, Range, void*))parallel_function;
  threads_here = (int32_t (*)(uint32_t*))threads_function;
}
"""


def compiler() -> str:
    """Return the path of the C compiler that links kernels.

    Raises:
        EnvironmentProblem: none is on the path.
    """
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise EnvironmentProblem("making a loadable kernel needs a C compiler (cc, gcc or clang), and none is on the path: install one")
    return found


def launcher_object(folder: Path) -> Path:
    """Write the launcher's object file to a folder, and return its path; it is compiled once in a process.

    Raises:
        EnvironmentProblem: there is no C compiler.
        BuildFailed: the C compiler refused it.
    """
    result = folder / "launcher.o"
    result.write_bytes(_launcher())
    return result


@functools.cache
def _launcher() -> bytes:
    """Return the launcher's object file."""
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "launcher.c", Path(folder) / "launcher.o"
        source.write_text(SOURCE)
        done = subprocess.run([compiler(), "-O2", "-fPIC", "-c", str(source), "-o", str(result)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildFailed(f"the C compiler refused the launcher: {done.stderr.strip()[-500:]}")
        return result.read_bytes()


@functools.cache
def _torch_functions() -> tuple[ctypes.c_void_p, ctypes.c_void_p]:
    """Return torch_parallel_for and torch_get_num_threads of the torch that is imported.

    A symbol that is asked of a library is looked for in that library and in those that it is linked to. So these are torch's own, whatever else is
    loaded and wherever this build of torch keeps them.

    Raises:
        EnvironmentProblem: torch is older than 2.10, which brought them.
    """
    import torch

    library = ctypes.CDLL(torch._C.__file__)
    try:
        parallel_for, threads = library.torch_parallel_for, library.torch_get_num_threads
    except AttributeError as missing:
        raise EnvironmentProblem(
            f"CPU kernels run on torch's threads, which torch {torch.__version__} lends to nobody: install torch 2.11 or later"
        ) from missing
    return ctypes.cast(parallel_for, ctypes.c_void_p), ctypes.cast(threads, ctypes.c_void_p)


def connect(library: ctypes.CDLL) -> ctypes.c_void_p:
    """Return the launch function of a library that carries the launcher, and make it run on torch's threads from now on.

    Raises:
        AttributeError: the library carries no launcher.
        EnvironmentProblem: torch is too old.
    """
    launch = ctypes.cast(library.tvm_orient_launch, ctypes.c_void_p)
    library.tvm_orient_use_torch(*_torch_functions())
    return launch


def adopt(kernel: Path) -> bool:
    """Make a CPU kernel library run its tasks on torch's threads, and return whether it does: False where it keeps TVM's pool.

    Raises:
        EnvironmentProblem: torch is too old.
    """
    library = ctypes.CDLL(str(kernel))
    try:
        hook = ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch")
        launch = connect(library)
    except (ValueError, AttributeError):  # a serial kernel, or one of another maker
        return False
    hook.value = launch.value
    return True
