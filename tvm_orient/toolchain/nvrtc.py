"""Compiles CUDA source to a cubin by NVRTC; no GPU, no driver and no nvcc are needed."""

from __future__ import annotations

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from ..errors import BuildFailed, EnvironmentProblem, InvalidArgument
from ..problem.device import capability

_INSTALL = "pip install 'tvm-orient[compile]' (cuda-bindings, nvidia-cuda-nvrtc, nvidia-cuda-runtime, nvidia-cuda-cccl, all 13.x)"
_HEADERS = ("cuda_runtime.h", "cuda/std/cstdint")  # one of the runtime's, one of CCCL's: each package has a folder of its own
_TOOLKITS = Path("/usr/local")
_MAX_ERRORS = 5  # lines of a log that a message quotes
# --use_fast_math contracts nothing that we rely on, but flushes denormals as TVM's own build does
OPTIONS = ("-w", "--std=c++17", "--use_fast_math", "-default-device")


@functools.cache
def _include_folders() -> tuple[Path, ...]:
    """Return the folders of the CUDA 13 headers, the runtime's and CCCL's: of the wheels, of CUDA_PATH or CUDA_HOME, or of a toolkit in /usr/local.

    Raises:
        EnvironmentProblem: one of them is nowhere.
    """
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(root) for root in (spec.submodule_search_locations or [])] if spec else []
    roots = [major for root in wheels for major in sorted(root.glob("cu1[3-9]"), reverse=True)]
    roots += [Path(os.environ[name]) for name in ("CUDA_PATH", "CUDA_HOME") if os.environ.get(name)]
    roots += [_TOOLKITS / "cuda", *sorted(_TOOLKITS.glob("cuda-1[3-9]*"), reverse=True)]
    inside = [root / place / "include" for root in roots for place in (".", "targets/x86_64-linux", "targets/sbsa-linux")]
    folders = [folder for base in inside for folder in (base, base / "cccl") if folder.is_dir()]
    found = [next((folder for folder in folders if (folder / header).is_file()), None) for header in _HEADERS]
    if None in found:
        lacking = ", ".join(header for header, folder in zip(_HEADERS, found, strict=True) if folder is None)
        where = "the packages of nvidia, CUDA_PATH, CUDA_HOME and /usr/local"
        raise EnvironmentProblem(f"compiling CUDA needs the headers of CUDA 13, and {lacking} is in none of {where}: {_INSTALL}, or set CUDA_PATH")
    return tuple(dict.fromkeys(folder for folder in found if folder is not None))


@functools.cache
def _library() -> Any:
    """Return the bindings of NVRTC.

    Raises:
        EnvironmentProblem: they are not installed.
    """
    try:
        from cuda.bindings import nvrtc
    except ImportError as missing:
        raise EnvironmentProblem(f"compiling CUDA needs NVRTC, which is not installed ({missing}): {_INSTALL}") from missing
    return nvrtc


def version() -> tuple[int, int]:
    """Return (major, minor) of NVRTC.

    Raises:
        EnvironmentProblem: NVRTC cannot be loaded.
    """
    nvrtc = _library()
    try:
        status, major, minor = nvrtc.nvrtcVersion()
    except RuntimeError as missing:
        raise EnvironmentProblem(f"NVRTC does not load ({missing}): {_INSTALL}") from missing
    if status:
        raise EnvironmentProblem(f"NVRTC does not answer ({status}): {_INSTALL}")
    return major, minor


def archs() -> tuple[str, ...]:
    """Return the architectures that this NVRTC generates code for, as sm_XX.

    Raises:
        EnvironmentProblem: NVRTC cannot be loaded.
    """
    version()
    nvrtc = _library()
    _, count = nvrtc.nvrtcGetNumSupportedArchs()
    _, numbers = nvrtc.nvrtcGetSupportedArchs()
    return tuple(f"sm_{number}" for number in numbers[:count])


def compile_cubin(source: str, arch: str) -> bytes:
    """Return the cubin of a CUDA source for an arch such as sm_90a.

    Raises:
        InvalidArgument: the word is no arch, or NVRTC does not know it.
        BuildFailed: the source does not compile; the message quotes the log.
        EnvironmentProblem: NVRTC or the headers are missing.
    """
    return _compiled(source, arch, "CUBIN")


def compile_ptx(source: str, arch: str) -> str:
    """Return the PTX that NVRTC makes of a CUDA source on the way to its cubin.

    Args:
        arch: whose instructions it may use, such as sm_90a; with the a, it is for that GPU alone.

    Raises:
        InvalidArgument, BuildFailed, EnvironmentProblem: as `compile_cubin`.
    """
    return _compiled(source, arch.replace("sm_", "compute_"), "PTX").rstrip(b"\0").decode()


def _compiled(source: str, arch: str, form: str) -> bytes:
    """Return what NVRTC makes of a CUDA source.

    Args:
        arch: a real architecture, such as sm_90a, or a virtual one, such as compute_90a, which is not assembled.
        form: "CUBIN" or "PTX".
    """
    if capability(arch.replace("compute_", "sm_")) not in map(capability, archs()):
        raise InvalidArgument(f"NVRTC {'.'.join(map(str, version()))} knows {', '.join(archs())}, got arch {arch!r}")
    nvrtc = _library()
    options = [*OPTIONS, f"-arch={arch}", *(f"-I{folder}" for folder in _include_folders())]
    _, program = nvrtc.nvrtcCreateProgram(source.encode(), b"kernel.cu", 0, [], [])
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [option.encode() for option in options])
        if status:
            _, size = nvrtc.nvrtcGetProgramLogSize(program)
            log = b" " * size
            nvrtc.nvrtcGetProgramLog(program, log)
            lines = [line for line in log.decode(errors="replace").splitlines() if "error" in line] or [str(status)]
            raise BuildFailed(f"NVRTC refused the kernel for {arch}: " + "; ".join(lines[:_MAX_ERRORS]))
        _, size = getattr(nvrtc, f"nvrtcGet{form}Size")(program)
        made: bytes = b" " * size
        getattr(nvrtc, f"nvrtcGet{form}")(program, made)
        return made
    finally:
        nvrtc.nvrtcDestroyProgram(program)
