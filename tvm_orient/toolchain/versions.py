"""Versions of installed packages, read from what pip left behind: none of them is imported."""

from __future__ import annotations

import functools
import importlib.metadata

ABSENT = "absent"  # stands where a version would, for a package that is not installed
_TOOLCHAIN = ("apache-tvm", "apache-tvm-ffi", "nvidia-cuda-nvrtc")
_RECORDED = {"tvm": "apache-tvm", "tvm_ffi": "apache-tvm-ffi", "cuda": "nvidia-cuda-nvrtc", "version": "tvm-orient"}


def installed(*packages: str) -> str | None:
    """Returns the version of the first of these packages that is installed; None where none is."""
    for name in packages:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def version(package: str) -> str:
    """Returns the version of a package, or ABSENT where it is not installed."""
    return installed(package) or ABSENT


@functools.cache
def toolchain() -> tuple[tuple[str, str], ...]:
    """Returns (package, version) of each one that the bytes of a kernel depend on; read once, which takes milliseconds."""
    return tuple((name, version(name)) for name in _TOOLCHAIN)


def provenance() -> dict[str, str]:
    """Returns the versions that a tuning record carries, by the names that it has for them: tvm, tvm_ffi, cuda and version, which is this package's."""
    return {name: version(package) for name, package in _RECORDED.items()}
