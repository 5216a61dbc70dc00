"""Compiles a scheduled module: to a shared library, or to CUDA source."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

from ..codegen.cuda.passes import finished
from ..errors import BuildFailed, EnvironmentProblem, OrientError
from ..problem.device import Device


def compile_library(module: Any, device: Device, path: Path) -> dict[str, bytes]:
    """Compile a scheduled module to a shared library at path, and return the cubin of each CUDA source that went into it.

    CUDA is compiled by `nvrtc.compile_cubin` alone, so that what runs is what the static checks read.

    Raises:
        BuildFailed: a compiler refused the module.
        EnvironmentProblem: nothing here links a library, or NVRTC or its headers are missing.
    """
    from ..toolchain import nvrtc
    from ..toolchain.openmp import launcher_object
    from ..toolchain.tvm import compile_cuda, load_tvm, rewrite_cuda, target

    load_tvm()
    cubins: dict[str, bytes] = {}
    problems: list[OrientError] = []

    def cubin(source: str) -> bytes:
        try:
            cubins[source] = nvrtc.compile_cubin(source, device.arch)
        except OrientError as problem:  # TVM would wrap it in an error of its own
            problems.append(problem)
            raise
        return cubins[source]

    rewrite_cuda(functools.partial(finished, arch=device.arch))
    compile_cuda(cubin)
    from tvm.support import cc

    if cc.get_cc() is None:
        raise EnvironmentProblem("building a kernel needs a C++ compiler to link it, and there is no g++, clang++ or cc on PATH: install g++, or set CXX")
    try:
        executable = _compiled(module, target(device))
        with tempfile.TemporaryDirectory() as folder:
            extra = [str(launcher_object(Path(folder)))] if device.kind == "cpu" else []
            executable.export_library(str(path), addons=extra)
    except OrientError:
        raise
    except Exception as problem:
        if problems:
            raise problems[0] from problem
        raise BuildFailed(f"{device.arch} refused the kernel: {last_line(problem)}") from problem
    return cubins


def _compiled(module: Any, target: Any) -> Any:
    """Return what TVM makes of a module; where all indices of a long sum are known it skips the pass that looks for better ones, most of its time."""
    import tvm

    from ..codegen.tir.fuse_groups import SKIP_RENORMALIZE

    if SKIP_RENORMALIZE not in module["main"].attrs:
        return tvm.compile(module, target=target)
    with tvm.transform.PassContext(disabled_pass=["s_tir.RenormalizeSplitPattern"]):
        return tvm.compile(module, target=target)


def cuda_source(module: Any, device: Device) -> str:
    """Return the CUDA source of a scheduled module; nothing is compiled for the GPU.

    Raises:
        BuildFailed: TVM refused to lower it.
    """
    from ..toolchain.tvm import load_tvm, rewrite_cuda, target

    load_tvm()
    rewrite_cuda(functools.partial(finished, arch=device.arch))
    try:
        return str(_compiled(module, target(device)).mod.imports[0].inspect_source())
    except Exception as problem:
        raise BuildFailed(f"TVM refused to lower the kernel for {device.arch}: {last_line(problem)}") from problem


def last_line(problem: BaseException) -> str:
    """Return the last line of an error's text, which is where TVM says what is wrong."""
    lines = str(problem).strip().splitlines()
    return lines[-1] if lines else repr(problem)
