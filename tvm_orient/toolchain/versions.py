"""Versions of what kernels are made with."""

from __future__ import annotations

import functools
import importlib.metadata

_TOOLS = ("apache-tvm", "apache-tvm-ffi", "nvidia-cuda-nvrtc")


@functools.cache
def toolchain() -> tuple[tuple[str, str], ...]:
    """Versions that the bytes of a kernel depend on, without importing any of them; read once, which takes milliseconds."""
    found = []
    for name in _TOOLS:
        try:
            found.append((name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append((name, "absent"))
    return tuple(found)


def package_version(package: str) -> str:
    """Return the version of an installed package, or "absent"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"
