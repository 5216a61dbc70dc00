"""Where things live, and the only reader of the TVM_ORIENT_* environment variables."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import platformdirs

from .errors import InvalidArgument

# every variable the package reads, with its meaning; `tvm-orient doctor` prints this table
VARIABLES = {
    "TVM_ORIENT_LOG_DIR": "folder of the user's tuning logs (default: the user data folder)",
    "TVM_ORIENT_CACHE_DIR": "folder of compiled kernels (default: the user cache folder)",
    "TVM_ORIENT_LOOKUP": "which records may answer: strict (exact only), nearest or default (default: default)",
    "TVM_ORIENT_BUILD": "which call of a problem that is neither tuned nor built compiles its kernel; the generic one runs before (default: 8; 0: none)",
    "TVM_ORIENT_CPU": "the level of x86-64 that CPU kernels are made for, such as x86-64-v3, so that several CPUs share them (default: this very CPU)",
}
LOOKUP_MODES = ("strict", "nearest", "default")


def user_log_dir() -> Path:
    """Folder that tuning writes to and lookup reads first."""
    chosen = os.environ.get("TVM_ORIENT_LOG_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_data_dir("tvm_orient")) / "tuning_logs"


def cache_dir() -> Path:
    """Folder of compiled kernels."""
    chosen = os.environ.get("TVM_ORIENT_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("tvm_orient")) / "kernels"


def shipped_log_dir() -> Path:
    """Folder of the tuning logs that came with the package (or with the checkout)."""
    return Path(str(resources.files("tvm_orient.tuning_logs")))


def lookup_mode() -> str:
    """TVM_ORIENT_LOOKUP, checked.

    Raises:
        InvalidArgument: the variable holds something else than strict, nearest or default.
    """
    mode = os.environ.get("TVM_ORIENT_LOOKUP", "default")
    if mode not in LOOKUP_MODES:
        raise InvalidArgument(f"TVM_ORIENT_LOOKUP must be one of {', '.join(LOOKUP_MODES)}, got {mode!r}: unset it or choose one")
    return mode


def building_call() -> int:
    """TVM_ORIENT_BUILD: the call in which a problem that is neither tuned nor built gets a kernel of its own; 0: none may compile.

    Raises:
        InvalidArgument: the variable holds something else than a whole number >= 0.
    """
    text = os.environ.get("TVM_ORIENT_BUILD", "8")
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"TVM_ORIENT_BUILD must be a whole number >= 0, got {text!r}: 0 forbids compiling, 1 compiles in the first call")
    return int(text)


def cpu_level() -> str | None:
    """TVM_ORIENT_CPU, unchecked: `tvm_orient.device.cpu_device` knows the levels; None where it is not set."""
    return os.environ.get("TVM_ORIENT_CPU") or None
