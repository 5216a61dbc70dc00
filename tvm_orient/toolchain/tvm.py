"""The one door to TVM: checks its version, makes the target of a device, and stands in for a module whose import takes 20 seconds."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import EnvironmentProblem
from ..problem import cpus
from ..problem.device import Device, own_cpu
from .versions import installed

TVM_VERSION = "0.27.0.post1"
_MIN_LEVEL = {"avx2": "x86-64-v3", "avx512f": "x86-64-v4"}  # by arch, the level that a CPU has at least of which nothing else is known
_MAX_THREADS = 1024  # of a CUDA block
_WARP = 32  # threads


def check_ffi() -> None:
    """Refuse the versions of apache-tvm-ffi that crash the process when IR is saved.

    Raises:
        EnvironmentProblem: apache-tvm-ffi is missing, or not 0.1.14.x.
    """
    version = installed("apache-tvm-ffi")
    if version is None:
        raise EnvironmentProblem("apache-tvm-ffi is not installed: pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'")
    if not version.startswith("0.1.14"):
        raise EnvironmentProblem(
            f"apache-tvm-ffi must be 0.1.14.x (0.1.15 segfaults when IR is saved), got {version}: pip install 'apache-tvm-ffi>=0.1.14.post0,<0.1.15'"
        )


@functools.cache
def load_tvm() -> Any:
    """Return the module tvm, imported and checked once in a process.

    Raises:
        EnvironmentProblem: apache-tvm is missing, or of a version whose API differs.
    """
    check_ffi()
    try:
        with _some_home():
            import tvm
    except ImportError as missing:
        raise EnvironmentProblem(f"generating kernels needs apache-tvm, which is not installed ({missing}): pip install 'tvm-orient[compile]'") from missing
    if tvm.__version__ != TVM_VERSION.removesuffix(".post1") and tvm.__version__ != TVM_VERSION:
        raise EnvironmentProblem(
            f"apache-tvm must be {TVM_VERSION} (its API changes between releases), got {tvm.__version__}: pip install 'apache-tvm=={TVM_VERSION}'"
        )
    return tvm


def load_tvm_alone() -> Any:
    """Return what `load_tvm` does, without torch where this process has none yet: tvm-ffi imports it first, which takes longer than all of TVM.

    For a process that compiles and never runs a kernel. torch can be imported later, as ever.

    Raises:
        EnvironmentProblem: as `load_tvm`.
    """
    if "torch" in sys.modules:
        return load_tvm()
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python then refuses to import it
    try:
        return load_tvm()
    finally:
        del sys.modules["torch"]


@contextlib.contextmanager
def _some_home() -> Iterator[None]:
    """Give a user who has no home one for a while: modules of TVM name folders below it when they are imported, and make none of them."""
    missing = os.path.expanduser("~") == "~"
    if missing:
        os.environ["HOME"] = os.curdir
    try:
        yield
    finally:
        if missing:
            os.environ.pop("HOME", None)


def stub_tensor_intrin() -> None:
    """Put an empty module in the place of tvm.s_tir.tensor_intrin, whose import parses hundreds of functions for 20 s.

    TuneContext imports it; none of our schedules uses the functions that it registers.
    """
    import tvm.s_tir

    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        sys.modules[name] = types.ModuleType(name)
        tvm.s_tir.tensor_intrin = sys.modules[name]


def rewrite_cuda(change: Callable[[str], str]) -> None:
    """Make TVM pass the CUDA source that it generates through `change`, which must leave others' code as it is."""
    from tvm_ffi import register_global_func

    register_global_func("tvm_callback_cuda_postproc", lambda code, _target: change(code), override=True)


def compile_cuda(compiler: Callable[[str], bytes]) -> None:
    """Make TVM compile CUDA source by `compiler`, source to cubin, instead of by a toolkit that it looks for by the place of nvcc."""
    from tvm_ffi import register_global_func

    register_global_func("tvm_callback_cuda_compile", compiler, override=True)


def lowering_pipeline(name: str, ended: Callable[[Any], Any]) -> str:
    """Make TVM's own pipeline end with a change of every function, and return the name that `tvm.compile` knows it by.

    Args:
        name: it is made anew, whatever had the name.
        ended: PrimFunc to PrimFunc, after all other passes but those that need a wrapped function.
    """
    tvm = load_tvm()
    from tvm import tirx
    from tvm.tirx import compilation_pipeline

    def made() -> Any:
        lower, host, device = compilation_pipeline.PIPELINE_MAP["s_tir"]()
        last = tirx.transform.prim_func_pass(lambda func, _module, _context: ended(func), opt_level=0, name=name)
        return tvm.transform.Sequential([lower, last]), host, device

    compilation_pipeline.PIPELINE_MAP[name] = made
    return name


def target(device: Device) -> Any:
    """Return the TVM target of a device, made of a dict of its properties, since option strings are refused and tags are incomplete."""
    tvm = load_tvm()
    if device.kind == "cpu":
        model, attributes = _cpu(device)
        return tvm.target.Target({"kind": "llvm", "mcpu": model, "mattr": attributes, "num-cores": device.units})
    properties = {
        "kind": "cuda", "arch": device.arch, "max_threads_per_block": _MAX_THREADS, "thread_warp_size": _WARP,
        "max_shared_memory_per_block": device.shared_memory,
    }  # fmt: skip
    return tvm.target.Target(properties, host="llvm")


def _cpu(device: Device) -> tuple[str, list[str]]:
    """Return LLVM's name for a CPU, and its attributes: every instruction set that it has, and every one that it lacks, whatever such a model usually has.

    For this machine's CPU the name is the one that LLVM derives from vendor, family, model and instructions, and the attributes take away those
    instructions that are hidden. For a CPU elsewhere the instructions alone count.
    """
    here = own_cpu()
    if (device.model, device.features) != (here.model, " ".join(here.features)):
        model = device.model if device.model in cpus.LEVELS else _MIN_LEVEL.get(device.arch, "x86-64" if cpus.is_x86() else "generic")
        return model, cpus.attributes(device.features.split() or cpus.LEVELS.get(model, ()))
    if here.features:
        return host_name(), cpus.attributes(here.features)
    found = load_tvm().get_global_func("tvm.codegen.llvm.GetHostCPUFeatures")()  # the system does not tell, so LLVM asks the CPU itself
    return host_name(), sorted((f"{'+' if has else '-'}{name}" for name, has in found.items()), key=lambda word: (word[0] == "-", word))


def host_name() -> str:
    """Return LLVM's name for the CPU of this machine (mcpu)."""
    return str(load_tvm().get_global_func("target.llvm_get_system_cpu")())
