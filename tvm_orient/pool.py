"""CPU kernels on torch's own OpenMP threads.

TVM brings a thread pool of its own, which spins between calls and pins threads: beside torch's pool, which spins too, both slow
down by orders of magnitude on busy cores. So each kernel library carries a small launcher that hands TVM's parallel tasks to
whatever OpenMP runtime the process has loaded, several tasks a thread, so that unequal angles level out.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import BuildFailed, EnvironmentProblem

# TVM's C backend API: int (*)(int task, struct { void* sync; int32_t tasks; }* env, void* data)
SOURCE = """
#include <stdint.h>
typedef struct { void* sync; int32_t tasks; } Env;
typedef int (*Task)(int, Env*, void*);
typedef struct { Task run; void* data; int tasks; int next; int failed; } Job;
static void (*parallel)(void (*)(void*), void*, unsigned, unsigned);
static int (*most_threads)(void);

static void worker(void* p) {
  Job* job = (Job*)p;
  Env env = {0, job->tasks};
  for (;;) {
    int task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (task >= job->tasks) return;
    if (job->run(task, &env, job->data)) __atomic_store_n(&job->failed, -1, __ATOMIC_RELAXED);
  }
}

int tvm_orient_launch(Task run, void* data, int tasks) {
  int threads = most_threads();
  Job job = {run, data, tasks > 0 ? tasks : threads > 1 ? 32 * threads : 1, 0, 0};
  if (threads > 1) parallel(worker, &job, (unsigned)threads, 0); else worker(&job);
  return job.failed;
}

void tvm_orient_use(void* parallel_function, void* threads_function) {
  parallel = (void (*)(void (*)(void*), void*, unsigned, unsigned))parallel_function;
  most_threads = (int (*)(void))threads_function;
}
"""


def compiler() -> str:
    """The C compiler that links kernels.

    Raises:
        EnvironmentProblem: none is on the path.
    """
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        raise EnvironmentProblem("making a loadable kernel needs a C compiler (cc, gcc or clang), and none is on the path: install one")
    return found


def launcher_object(folder: Path) -> Path:
    """Write the launcher's object file to folder; it is compiled once a process.

    Raises:
        EnvironmentProblem: no C compiler.
        BuildFailed: it refused.
    """
    result = folder / "launcher.o"
    result.write_bytes(_launcher())
    return result


@functools.cache
def _launcher() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, result = Path(folder) / "launcher.c", Path(folder) / "launcher.o"
        source.write_text(SOURCE)
        done = subprocess.run([compiler(), "-O2", "-fPIC", "-c", str(source), "-o", str(result)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildFailed(f"the C compiler refused the launcher: {done.stderr.strip()[-500:]}")
        return result.read_bytes()


@functools.cache
def _openmp() -> tuple[int, int] | None:
    """Addresses of GOMP_parallel and omp_get_max_threads in the OpenMP runtime that this process has loaded."""
    maps = Path("/proc/self/maps")
    if not maps.is_file():
        return None
    paths = {
        line.split()[-1]
        for line in maps.read_text().splitlines()
        if "/lib" in line and any(name in line.rsplit("/", 1)[-1] for name in ("gomp", "iomp", "libomp"))
    }
    for path in sorted(paths):
        try:
            library = ctypes.CDLL(path)
            addresses = [ctypes.cast(getattr(library, name), ctypes.c_void_p).value for name in ("GOMP_parallel", "omp_get_max_threads")]
        except (OSError, AttributeError):
            continue
        if addresses[0] and addresses[1]:
            return addresses[0], addresses[1]
    return None


def adopt(kernel: Path) -> bool:
    """Make a loaded CPU kernel library run its tasks on this process's OpenMP threads; False where it keeps TVM's pool."""
    openmp = _openmp()
    if openmp is None:
        return False
    library = ctypes.CDLL(str(kernel))
    try:
        hook = ctypes.c_void_p.in_dll(library, "__TVMBackendParallelLaunch")
        launch = ctypes.cast(library.tvm_orient_launch, ctypes.c_void_p)
        library.tvm_orient_use(ctypes.c_void_p(openmp[0]), ctypes.c_void_p(openmp[1]))
    except (ValueError, AttributeError):  # a serial kernel, or one of another maker
        return False
    hook.value = launch.value
    return True
