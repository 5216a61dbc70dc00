"""Findings of `tvm-orient doctor` in files and variables: tuning logs, the cache of kernels, the environment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from .. import env
from ..errors import EnvironmentProblem, LogFileError, OrientError, first_line
from ..kernels import cache
from ..kernels.part_cache import parts_of
from ..records import store

State = Literal["ok", "missing", "broken"]
Finding = tuple[State, str, str]  # state, detail, hint


def log_folder(folder: Path, nothing: str, *, shipped: bool = False) -> Finding:
    """Says what a folder of logs holds. Records that no longer answer are a user's to tune again; those that ship are to answer."""
    from ..kernels.resolve import outdated

    files = sorted(folder.glob("*/*.jsonl"))
    if not files:
        return "ok", f"{nothing}, {folder}", ""
    records, bad, unreadable, old = 0, 0, [], []
    for path in files:
        try:
            log = store.read(path)
        except LogFileError as problem:
            unreadable.append(str(problem))
        else:
            records, bad = records + len(log.records), bad + log.bad
            old += [why for record in log.records if (why := outdated(record))]
    detail = f"{records} records in {len(files)} {'file' if len(files) == 1 else 'files'}, {folder}"
    passed = [f"{len(old)} records no longer answer ({old[0]})"] if old else []
    if bad or unreadable or (old and shipped):
        told = "; ".join([detail, *([f"{bad} bad lines"] if bad else []), *passed, *unreadable[:3]])
        return "broken", told, f"`tvm-orient logs check {folder}` says which"
    return "ok", "; ".join([detail, *passed]), "tune those problems again" if old else ""


def user_logs() -> Finding:
    """Says what the user's folder of logs holds."""
    try:
        return log_folder(env.user_log_dir(), "nothing tuned yet")
    except EnvironmentProblem as problem:
        return "missing", first_line(problem), "set TVM_ORIENT_LOG_DIR to tune"


def kernel_cache() -> Finding:
    """Says what the user's cache of kernels holds."""
    try:
        folder = env.cache_dir()
    except EnvironmentProblem as problem:
        return "missing", first_line(problem), "set TVM_ORIENT_CACHE_DIR to compile kernels"
    if not folder.exists():
        return "ok", f"empty, {folder}", ""
    if env.runs_no_programs(folder):
        return "broken", f"{folder} is on a file system that is mounted noexec, so no kernel can be loaded from it", "set TVM_ORIENT_CACHE_DIR"
    try:
        entries, parts = cache.KernelCache(folder).entries(), parts_of(folder)
    except OrientError as problem:
        return "broken", str(problem), ""
    held = sum(how.size for how in entries) + sum(part.size for part in parts)
    return "ok", f"{len(entries)} kernels, {len(parts)} compiled parts, {held / 1e6:.1f} MB, private, {folder}", ""


def variable(name: str) -> Finding:
    """Says what a variable of the environment is set to, and what it means."""
    value, meaning = os.environ.get(name), env.VARIABLES[name]
    if name == "TVM_ORIENT_LOOKUP":
        try:
            env.lookup_mode()
        except OrientError as problem:
            return "broken", repr(value), str(problem)
    return "ok", "not set" if value is None else value, meaning
