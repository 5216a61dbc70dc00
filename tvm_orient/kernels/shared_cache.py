"""Caches that are only read: kernels that an image or an administrator brings for every user (TVM_ORIENT_SHARED_CACHE).

A kernel is code, so one is used only where nobody but root and this user can have written it, or can put another in its place: the entry, its files, and every
folder above them belong to one of the two, and others cannot write to them. The way is looked at with symbolic links resolved, each time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from .. import env
from ..notices import log_once
from .build_key import BuildKey
from .cache import entries_of
from .manifest import HOW, KERNEL, Manifest, flaw

_log = logging.getLogger(__name__)


def find(key: BuildKey) -> Path | None:
    """Returns the path of the kernel of an entry in the first shared cache that has it whole and safe; None for a miss.

    An entry that is there and not used is told once in the log.
    """
    for folder in env.shared_cache_dirs():
        try:
            entry = (folder / key.name).resolve(strict=True)
        except (OSError, RuntimeError):  # not there, out of reach, or links in a circle
            continue
        why = danger(entry, (KERNEL, HOW)) or flaw(entry)
        if why is None:
            return entry / KERNEL
        log_once(_log, "shared kernel cache entry %s is not used: %s", str(entry), why)
    return None


def entries() -> dict[str, list[Manifest]]:
    """Returns the manifest of every readable entry of each shared cache that is there and safe, by folder."""
    found = {}
    for folder in env.shared_cache_dirs():
        with contextlib.suppress(OSError, RuntimeError):
            if danger(folder.resolve(strict=True)) is None:
                found[str(folder)] = entries_of(folder)
    return found


def danger(folder: Path, files: Iterable[str] = ()) -> str | None:
    """Says why code of a folder, whose path has no links, may be another user's than root's or this one's; returns None where it cannot be."""
    trusted = {0, os.geteuid()}
    try:
        for path in (*(folder / name for name in files), folder, *folder.parents):
            info = path.lstat()
            if stat.S_ISLNK(info.st_mode):
                return f"{path} is a symbolic link"
            if info.st_uid not in trusted:
                return f"{path} belongs to user {info.st_uid}: only what root or user {os.geteuid()} owns is run"
            # in a folder such as /tmp (sticky) nobody moves what is another's
            if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not (path in folder.parents and info.st_mode & stat.S_ISVTX):
                return f"others can write to {path} (mode {oct(stat.S_IMODE(info.st_mode))}): chmod go-w"
    except OSError as problem:
        return str(problem)
    return None
