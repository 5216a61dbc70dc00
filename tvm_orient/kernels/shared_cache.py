"""Caches that are only read: kernels that an image or an administrator brings for every user (TVM_ORIENT_SHARED_CACHE).

A kernel is code, so one is used only where nobody but root and this user can have written it, or can put another in its place: the entry, its files, and every
folder above them belong to one of the two, and others cannot write to them. The way is looked at with symbolic links resolved, each time.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from .. import env
from ..notices import log_once
from .build_key import BuildKey
from .cache import entries_of
from .manifest import HOW, KERNEL, Manifest, flaw
from .trust import danger

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
