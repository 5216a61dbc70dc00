"""Lets a process make loadable CUDA kernels where there is no driver.

TVM embeds CUDA source instead of a cubin, without a word, where libcuda is absent. So a process that is to make modules first loads a
stand-in for it, which is enough for TVM to make a CUDA module and never launches one. A real driver is never replaced.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import subprocess
import tempfile
from pathlib import Path

from ..problem.device import cuda_devices
from .openmp import compiler

# functions that libtvm_runtime_cuda.so wants of the driver, and NVRTC of any that is loaded; each answers CUDA_ERROR_NO_DEVICE
_DRIVER = (
    "cuInit", "cuDeviceGetName", "cuFuncSetAttribute", "cuGetErrorName", "cuGetErrorString", "cuGetExportTable", "cuLaunchKernelEx", "cuModuleGetFunction",
    "cuModuleLoadData", "cuModuleUnload", "cuTensorMapEncodeTiled",
)  # fmt: skip
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE (cuda.h)


@functools.cache
def pretend_driver() -> bool:
    """Load the CUDA runtime into this process, and a stand-in for libcuda.so.1 where there is no GPU; return whether that was needed.

    Whoever calls it must leave the process by os._exit, since exit handlers would ask a driver that answers nothing.

    Raises:
        EnvironmentProblem: there is no C compiler.
    """
    if not _load_cudart():
        import torch  # noqa: F401  (before tvm: it brings libcudart)
    needed = not cuda_devices()
    if needed:
        with tempfile.TemporaryDirectory() as folder:
            source, library = Path(folder) / "libcuda.c", Path(folder) / "libcuda.so.1"
            source.write_text("".join(f"int {name}(void) {{ return {_NO_DEVICE}; }}\n" for name in _DRIVER))
            subprocess.run([compiler(), "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(source)], check=True, capture_output=True)
            ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    return needed


def _load_cudart() -> bool:
    """Load the libcudart of the wheels, which TVM's CUDA runtime is linked to and a CUDA build of torch loads as well; return whether it is there."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(root).glob("cu13/lib/libcudart.so.13")):
            ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            return True
    return False
