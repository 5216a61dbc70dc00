"""Says whether code on disk may be another user's: what is run or linked must be this user's own, or root's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path


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


def not_own(*paths: Path) -> str | None:
    """Says why one of some files and folders is not this user's alone to write; returns None where all are.

    Raises:
        OSError: one is not there, or out of reach.
    """
    for path in paths:
        info = path.stat()
        if info.st_uid != os.geteuid():
            return f"{path} belongs to user {info.st_uid}, and not to user {os.geteuid()}"
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"others can write to {path} (mode {oct(stat.S_IMODE(info.st_mode))}): chmod go-w"
    return None
