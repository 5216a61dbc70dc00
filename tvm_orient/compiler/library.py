"""Compiles a scheduled module: to a shared library, or to CUDA source."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..codegen.cuda.passes import finished
from ..codegen.cuda.rewritten import Rewritten
from ..codegen.names import SKIP_RENORMALIZE
from ..errors import BuildFailed, EnvironmentProblem, OrientError, last_line
from ..problem.device import Device


def compile_library(module: Any, device: Device, path: Path) -> dict[str, bytes]:
    """Compile a scheduled module to a shared library at path, and return the cubin of each CUDA source that went into it.

    CUDA is compiled by `nvrtc.compile_cubin` alone, so that what runs is what the static checks read.

    Raises:
        BuildFailed: the compiler refused it, or a pass over its CUDA source found less than it must.
        EnvironmentProblem: nothing here links a library, or NVRTC or its headers are missing.
    """
    from ..toolchain import nvrtc
    from ..toolchain.tvm import compile_cuda

    cubins: dict[str, bytes] = {}
    problems: list[OrientError] = []

    def cubin(source: str) -> bytes:
        try:
            cubins[source] = nvrtc.compile_cubin(source, device.arch)
        except OrientError as problem:  # TVM would wrap it in an error of its own
            problems.append(problem)
            raise
        return cubins[source]

    load_compilers()
    compile_cuda(cubin)
    with refusals(device):
        try:
            export(_compiled(module, device), device, path, [])
        except Exception as problem:
            if problems:
                raise problems[0] from problem
            raise
    return cubins


@contextlib.contextmanager
def refusals(device: Device) -> Iterator[None]:
    """Turn what a compiler raises in the context into an error of the package, which goes through as it is.

    Raises:
        BuildFailed: the compiler refused a kernel.
    """
    try:
        yield
    except OrientError:
        raise
    except Exception as problem:
        raise BuildFailed(f"{device.arch} refused the kernel: {last_line(problem)}") from problem


def load_compilers() -> None:
    """Load TVM, and see that there is what links a library.

    Raises:
        EnvironmentProblem: TVM is missing or of another version, or nothing here links a library.
    """
    from ..toolchain.tvm import load_tvm

    load_tvm()
    from tvm.support import cc

    if cc.get_cc() is None:
        raise EnvironmentProblem("building a kernel needs a C++ compiler to link it, and there is no g++, clang++ or cc on PATH: install g++, or set CXX")


def export(executable: Any, device: Device, path: Path, objects: Sequence[Path]) -> None:
    """Link what TVM compiled to a shared library at path.

    Args:
        objects: object files that it calls.
    """
    from ..toolchain.openmp import launcher_object

    with tempfile.TemporaryDirectory() as folder:
        extra = [str(launcher_object(Path(folder)))] if device.kind == "cpu" else []
        executable.export_library(str(path), addons=[*extra, *map(str, objects)])


def _compiled(module: Any, device: Device, seen: list[str] | None = None) -> Any:
    """Returns the module compiled by TVM, its CUDA source rewritten.

    Args:
        seen: a list that the rewritten source is added to.

    Raises:
        BuildFailed: a pass over the CUDA source found less than it must.
    """
    if device.kind != "cuda":
        return _through_tvm(module, device)
    from ..codegen.cuda.passes import applied, hold
    from ..codegen.cuda.promises import promised, signature
    from ..toolchain.tvm import rewrite_cuda

    func = module["main"]
    promises, report = promised(func), dict[str, Rewritten]()
    passes = applied(device.arch, weight_gradient=promises.weight_gradient)

    def rewritten(source: str) -> str:
        done = finished(source, passes, report)
        if seen is not None:
            seen.append(done)
        return done

    rewrite_cuda(rewritten)
    executable = _through_tvm(module, device)
    hold(report, {change.__name__: promises.least[change.__name__] for change in passes}, f"{signature(func)} for {device.arch}")
    return executable


def _through_tvm(module: Any, device: Device) -> Any:
    """Returns the module compiled by TVM; without the pass that looks for better indices, for most of the time, where all of a long sum are known."""
    import tvm

    from ..toolchain.tvm import target

    if not (skipped := skipped_passes(module["main"])):
        return tvm.compile(module, target=target(device))
    with tvm.transform.PassContext(disabled_pass=skipped):
        return tvm.compile(module, target=target(device))


def skipped_passes(func: Any) -> list[str]:
    """Return the passes of TVM that a scheduled function is to be compiled without, since they take most of the time and find nothing."""
    return ["s_tir.RenormalizeSplitPattern"] if SKIP_RENORMALIZE in func.attrs else []


def cuda_source(module: Any, device: Device) -> str:
    """Return the CUDA source of a scheduled module; nothing is compiled for the GPU.

    Raises:
        BuildFailed: TVM refused to lower it, or a pass over its source found less than it must.
    """
    from ..toolchain.tvm import compile_cuda, load_tvm

    load_tvm()
    compile_cuda(lambda _: b"")  # asked where there is a driver or a stand-in for it: what TVM makes of that is dropped
    sources: list[str] = []
    try:
        _compiled(module, device, sources)
    except OrientError:
        raise
    except Exception as problem:
        raise BuildFailed(f"TVM refused to lower the kernel for {device.arch}: {last_line(problem)}") from problem
    return sources[0]
