"""The loading of libraries: TVM's runtime and kernels; and the device that a tensor lives on."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from .. import env
from ..errors import EnvironmentProblem, Unsupported
from ..problem.device import Device, cpu_device, cuda_devices
from ..toolchain import openmp
from ..toolchain.tvm import check_ffi
from . import foreign

_runtimes: list[ctypes.CDLL] = []


@functools.lru_cache(maxsize=4096)
def loaded_library(path: str, kind: str) -> tuple[Any, Any]:
    """Loads a kernel library and returns (module, function), once in each process: specs share the generic one.

    Raises:
        NotLoaded: this machine cannot load it.
        EnvironmentProblem: TVM's runtime is missing, or this CPU lacks instructions that the kernel may use.
    """
    import tvm_ffi

    load_runtime(kind)
    foreign.refuse_foreign(Path(path))
    try:
        module = tvm_ffi.load_module(path)
        function = module.get_function("main")
    except Exception as problem:
        raise NotLoaded(Path(path), problem) from problem
    if kind == "cpu":
        openmp.adopt(Path(path))
    return module, function


def forget_libraries() -> None:
    """Forgets the loaded libraries, so that each is loaded anew when it is asked for again."""
    loaded_library.cache_clear()


class NotLoaded(EnvironmentProblem):
    """A kernel whose file is whole, and that this machine cannot load: it was made for another one, or programs may not be run from its folder."""

    def __init__(self, path: Path, problem: Exception) -> None:
        self.forbidden = env.runs_no_programs(path)
        said = " ".join(str(problem).split())[-300:]
        why = "its file system is mounted noexec" if self.forbidden else f"the system said: {said}"
        remedy = "set TVM_ORIENT_CACHE_DIR to a folder of this machine from which programs may be run"
        super().__init__(f"a kernel must be a library that this machine can load, and {path} is not ({why}): {remedy}")


def load_runtime(kind: str) -> None:
    """Makes TVM's runtime symbols visible without importing tvm, which costs 3 s.

    Raises:
        EnvironmentProblem: apache-tvm is not installed, or its runtime library does not load.
    """
    check_ffi()
    if "tvm" in sys.modules or len(_runtimes) > (kind == "cuda"):
        return
    found = importlib.util.find_spec("tvm")
    if found is None or not found.submodule_search_locations:
        raise EnvironmentProblem("running a kernel needs libtvm_runtime.so of apache-tvm, which is not installed: pip install 'tvm-orient[compile]'")
    folder = Path(found.submodule_search_locations[0]) / "lib"
    for name in ["libtvm_runtime.so", "libtvm_runtime_cuda.so"][len(_runtimes) : 1 + (kind == "cuda")]:
        try:
            _runtimes.append(ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL))
        except OSError as problem:
            raise EnvironmentProblem(f"{name} does not load ({problem}): `tvm-orient doctor` says what is missing") from problem


def device_of(tensor: torch.Tensor) -> Device:
    """Returns the device that a tensor lives on.

    Raises:
        Unsupported: it is neither a CPU nor a CUDA tensor.
    """
    if tensor.device.type == "cpu":
        return cpu_device()
    if tensor.device.type == "cuda":
        return cuda_devices()[tensor.device.index or 0]
    raise Unsupported(f"tensors must be on a CPU or a CUDA device, got {tensor.device}")
