"""Folders that the package reads and writes, and the only reader of the TVM_ORIENT_* environment variables."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import platformdirs

from .errors import EnvironmentProblem, InvalidArgument

# every variable the package reads, with its meaning; `tvm-orient doctor` prints this table
VARIABLES = {
    "TVM_ORIENT_LOG_DIR": "folder of the user's tuning logs (default: the user data folder)",
    "TVM_ORIENT_CACHE_DIR": "folder of compiled kernels (default: the user cache folder)",
    "TVM_ORIENT_SHARED_CACHE": "folders of kernels that are only read, before those of TVM_ORIENT_CACHE_DIR, parted by colons (default: one below sys.prefix)",
    "TVM_ORIENT_LOOKUP": "which records may answer: strict (exact only), nearest or default (default: default)",
    "TVM_ORIENT_CACHE_LIMIT": "gigabytes that compiled kernels may fill; the least recently used go first (default: 10; 0: no limit)",
    "TVM_ORIENT_BUILD": "which call of a problem that is neither tuned nor built has its own kernel made, in the background, while the generic one runs "
    "(default: the third, or a later one, once it pays); 1: the first call, which waits for it; 0: none",
    "TVM_ORIENT_CPU": "the level of x86-64 that CPU kernels are made for, such as x86-64-v3, so that several CPUs share them (default: this very CPU)",
}
LOOKUP_MODES = ("strict", "nearest", "default")
_BUILDING_CALL = "3"  # of TVM_ORIENT_BUILD
_CACHE_LIMIT_GB = "10"  # of TVM_ORIENT_CACHE_LIMIT


def user_log_dir() -> Path:
    """Return the folder that tuning writes to and lookup reads first.

    Raises:
        EnvironmentProblem: the variable is not set, and this user has no home.
    """
    return _own("TVM_ORIENT_LOG_DIR", platformdirs.user_data_dir, "tuning_logs")


def user_log_dirs() -> list[Path]:
    """Return `user_log_dir` alone; nothing where there is none, for those who only read it."""
    return _if_any(user_log_dir)


def cache_dir() -> Path:
    """Return the folder of compiled kernels.

    Raises:
        EnvironmentProblem: the variable is not set, and this user has no home.
    """
    return _own("TVM_ORIENT_CACHE_DIR", platformdirs.user_cache_dir, "kernels")


def cache_dirs() -> list[Path]:
    """Return `cache_dir` alone; nothing where there is none, for those who only read it."""
    return _if_any(cache_dir)


def shared_cache_dirs() -> list[Path]:
    """Return the folders of compiled kernels that are only read, in the order in which they are asked; they need not exist."""
    chosen = os.environ.get("TVM_ORIENT_SHARED_CACHE")
    if chosen is None:
        return [Path(sys.prefix) / "share" / "tvm_orient" / "kernels"]
    return [Path(folder) for folder in chosen.split(os.pathsep) if folder]


def _own(variable: str, usual: Callable[[str], str], name: str) -> Path:
    """Return the folder that a variable names, or the one called name below the user's usual folder."""
    chosen = os.environ.get(variable)
    try:
        folder = Path(chosen).expanduser() if chosen else Path(usual("tvm_orient")) / name
        if chosen or folder.is_absolute():  # some versions of platformdirs leave the ~ where there is no home
            return folder
    except RuntimeError:  # no HOME, and no entry for this user in the system's table
        pass
    raise EnvironmentProblem(f"a folder is needed to write to, and user {os.geteuid()} has no home: set {variable} to a folder of yours, or HOME")


def _if_any(folder: Callable[[], Path]) -> list[Path]:
    """Return a folder alone; nothing where this user has none."""
    try:
        return [folder()]
    except EnvironmentProblem:
        return []


def runs_no_programs(path: Path) -> bool:
    """Return whether a path lies on a file system that is mounted noexec; False where that cannot be told."""
    try:
        return bool(os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0))
    except OSError:
        return False


def shipped_log_dir() -> Path:
    """Return the folder of the tuning logs that came with the package (or with the checkout)."""
    return Path(str(resources.files("tvm_orient.tuning_logs")))


def lookup_mode() -> str:
    """Return TVM_ORIENT_LOOKUP, checked: one of LOOKUP_MODES.

    Raises:
        InvalidArgument: the variable holds something else than strict, nearest or default.
    """
    mode = os.environ.get("TVM_ORIENT_LOOKUP", "default")
    if mode not in LOOKUP_MODES:
        raise InvalidArgument(f"TVM_ORIENT_LOOKUP must be one of {', '.join(LOOKUP_MODES)}, got {mode!r}: unset it or choose one")
    return mode


def building_call() -> int:
    """Return TVM_ORIENT_BUILD: the call that has the own kernel of a problem made that is neither tuned nor built; 1 waits for it; 0: none may compile.

    Raises:
        InvalidArgument: the variable holds something else than a whole number >= 0.
    """
    text = os.environ.get("TVM_ORIENT_BUILD", _BUILDING_CALL)
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"TVM_ORIENT_BUILD must be a whole number >= 0, got {text!r}: 0 forbids compiling, 1 compiles in the first call")
    return int(text)


def building_call_set() -> bool:
    """Return whether TVM_ORIENT_BUILD is set: then the number of a call decides alone."""
    return "TVM_ORIENT_BUILD" in os.environ


def cache_limit() -> float:
    """Return TVM_ORIENT_CACHE_LIMIT in bytes, infinity for 0: what the cache of compiled kernels and of their parts may fill.

    Raises:
        InvalidArgument: the variable holds something else than a number >= 0.
    """
    text = os.environ.get("TVM_ORIENT_CACHE_LIMIT", _CACHE_LIMIT_GB)
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not gigabytes >= 0:
        raise InvalidArgument(f"TVM_ORIENT_CACHE_LIMIT must be a number of gigabytes >= 0, got {text!r}: 10 is the default, 0 sets no limit")
    return gigabytes * 1e9 if gigabytes else math.inf


def cpu_level() -> str | None:
    """Return TVM_ORIENT_CPU, unchecked, since `tvm_orient.problem.device.cpu_device` knows the levels; None where it is not set."""
    return os.environ.get("TVM_ORIENT_CPU") or None
