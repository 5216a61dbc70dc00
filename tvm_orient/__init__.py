"""Tuned kernels for oriented depthwise convolution. See README.md."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

# a checkout keeps schedules/ and tuning_logs/ beside the package; a wheel carries them inside it
_here = Path(__file__).resolve().parent
if not (_here / "schedules").is_dir() and (_here.parent / "pyproject.toml").is_file():
    __path__.append(str(_here.parent))

from . import torch_hook  # noqa: E402
from .errors import BuildFailed, EnvironmentProblem, InvalidArgument, LaunchFailed, LogFileError, OrientError, TuningFailed, Unsupported  # noqa: E402
from .problem.line_offsets import angles_between, from_degrees  # noqa: E402
from .problem.spec import ConvSpec  # noqa: E402
from .problem.taps import Taps  # noqa: E402

if TYPE_CHECKING:
    from . import nn
    from .functional import oriented_conv2d, tap_conv2d, warmup
    from .runtime.makings import compiling

try:
    __version__ = version("tvm-orient")
except PackageNotFoundError:  # a bare checkout
    __version__ = "0.0.0"

__all__ = [
    "BuildFailed", "ConvSpec", "EnvironmentProblem", "InvalidArgument", "LaunchFailed", "LogFileError", "OrientError", "Taps", "TuningFailed",
    "Unsupported", "angles_between", "compiling", "from_degrees", "nn", "oriented_conv2d", "tap_conv2d", "warmup",
]  # fmt: skip
# modules of the functions that are loaded when they are first asked for
_ELSEWHERE = {"oriented_conv2d": ".functional", "tap_conv2d": ".functional", "warmup": ".functional", "compiling": ".runtime.makings"}
torch_hook.with_torch()


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "functional", "ops"])


def __getattr__(name: str) -> Any:
    # torch is imported when a function is first asked for: keys, logs and the generator do without it
    import importlib

    if name in ("nn", "functional", "ops"):
        return importlib.import_module(f".{name}", __name__)
    if name in _ELSEWHERE:
        return getattr(importlib.import_module(_ELSEWHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
