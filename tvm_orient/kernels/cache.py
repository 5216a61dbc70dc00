"""Compiled kernels on disk: one folder an entry, named by the content of its key, published whole or not at all.

Layout: <cache folder>/<op>-<digest>/kernel.so with how.json beside it, which says for people what it was built from and holds
the checksum; the time of how.json is that of the last use, to the hour. An entry that does not check out is a miss, never an error.
The compiled parts that kernels were made of lie beside them (`part_cache`): they count in the size, and go as entries do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import math
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from .. import env
from ..errors import BuildFailed, EnvironmentProblem
from ..notices import log_once
from ..problem.spec import OPS
from . import manifest
from .build_key import BuildKey
from .manifest import HOW, KERNEL
from .part_cache import PartFile, parts_of, sweep

_ENTRY = re.compile(rf"({'|'.join(OPS)})-[0-9a-f]{{20}}")
_USED_S = 3600.0  # seconds within which a further use is not noted
_KEPT_S = 86400.0  # seconds since its last use in which no entry goes to make room
_log = logging.getLogger(__name__)


class Busy(Exception):
    """Another process is making the kernel, and the caller did not want to wait."""


class Cleared(NamedTuple):
    """How many kernels, and how many compiled parts of kernels, were removed from a cache."""

    kernels: int
    parts: int


class KernelCache:
    """The folder of compiled kernels (default: `env.cache_dir()`), made with mode 0700 where it is missing.

    Args:
        directory: the folder.
        limit: bytes that its entries and compiled parts may fill once one is published; None is that of TVM_ORIENT_CACHE_LIMIT.

    Raises:
        InvalidArgument: TVM_ORIENT_CACHE_LIMIT is no number >= 0.
        EnvironmentProblem: the folder is not this user's, or others can write to it (it holds code), or it cannot be made.
    """

    def __init__(self, directory: Path | None = None, limit: float | None = None) -> None:
        self.limit = env.cache_limit() if limit is None else limit
        self.directory = env.cache_dir() if directory is None else Path(directory)
        with self._disk():
            self.directory.parent.mkdir(parents=True, exist_ok=True)
            self.directory.mkdir(mode=0o700, exist_ok=True)
            info = self.directory.stat()
        remedy = f"of {self.directory}: chmod 700 a folder of your own, or set TVM_ORIENT_CACHE_DIR to one"
        if info.st_uid != os.geteuid():
            raise EnvironmentProblem(f"the kernel cache must belong to user {os.geteuid()}, who runs its code, got owner {info.st_uid} {remedy}")
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EnvironmentProblem(f"the kernel cache holds code that nobody else may write, got mode {oct(stat.S_IMODE(info.st_mode))} {remedy}")

    def find(self, key: BuildKey) -> Path | None:
        """Returns the path of the kernel of an entry whose checksum holds; None for a miss. A broken entry is a miss, told once in the log."""
        entry = self.directory / key.name
        if not os.path.lexists(entry):
            return None
        flaw = manifest.flaw(entry)
        if flaw:
            log_once(_log, "kernel cache entry %s is not used and will be built again: %s", str(entry), flaw)
            return None
        _note_use(entry)
        return entry / KERNEL

    def publish(self, key: BuildKey, make: Callable[[Path], dict[str, Any]], *, waiting: bool = True, instead_of: Path | None = None) -> Path:
        """Returns the path of the kernel of a key, which is made now unless another process has just made it.

        make(folder) writes folder/kernel.so and returns JSON facts for how.json. It runs under the key's lock, so that a kernel
        is built once. Whatever it raises comes out, and nothing stays behind.

        Args:
            waiting: False raises Busy where another process is making it.
            instead_of: the kernel of this entry, where it is whole and yet of no use: it is replaced, and stays if make fails.

        Raises:
            BuildFailed: make wrote no kernel.so.
            EnvironmentProblem: the disk is full or cannot be written.
        """
        with self._locked(key.name, waiting):
            found = self.find(key)
            if found and found != instead_of:
                return found
            entry = self.directory / key.name
            with self._disk():
                for left in self.directory.glob(f".{key.name}-*"):  # of a build that was killed: we hold the lock
                    _remove(left)
                folder = Path(tempfile.mkdtemp(prefix=f".{key.name}-", dir=self.directory))
            try:
                with self._disk(errno.ENOSPC, errno.EDQUOT):
                    facts = make(folder)
                if not (folder / KERNEL).is_file():
                    raise BuildFailed(f"a build must leave {KERNEL} in its folder, got {sorted(os.listdir(folder))}: see what the compiler said")
                with self._disk():
                    manifest.seal(folder, key.name, dataclasses.asdict(key), facts)
                    _let_read(folder, stat.S_IMODE(self.directory.stat().st_mode))
                    if os.path.lexists(entry):  # broken: moved aside, since a folder replaces only an empty one
                        os.replace(entry, self.directory / f".{key.name}-broken")
                    os.replace(folder, entry)
                    _remove(self.directory / f".{key.name}-broken")
            finally:
                _remove(folder)
        with contextlib.suppress(EnvironmentProblem, OSError):  # another process may be changing the folder; the kernel is there
            self.shrink(self.limit)
        return entry / KERNEL

    def entries(self) -> list[manifest.Manifest]:
        """Returns the manifest of every readable entry, sorted by name."""
        return entries_of(self.directory)

    def clear(self, before: float = math.inf) -> Cleared:
        """Removes every entry, broken ones too, and every compiled part that was last used before a time (seconds since 1970), and nothing else.

        Returns:
            How many of each.
        """
        entries = [entry for entry in _entries(self.directory) if _used(entry) < before]
        for entry in entries:
            with self._locked(entry.name), self._disk():
                self._drop(entry)
        sweep(self.directory)
        parts = [part for part in parts_of(self.directory) if part.used < before]
        with self._disk():
            for part in parts:
                part.path.unlink(missing_ok=True)
        return Cleared(len(entries), len(parts))

    def shrink(self, limit: float) -> int:
        """Removes entries and compiled parts, the least recently used first, until the others fill no more than a limit; returns how many went.

        One that was used in the last day stays, and so does an entry that a process is making or removing.

        Args:
            limit: bytes.
        """
        sweep(self.directory)
        if math.isinf(limit):
            return 0
        parts = {part.path: part for part in parts_of(self.directory)}
        stored = [(_used(entry), entry, _bytes(entry)) for entry in _entries(self.directory)]
        stored += [(part.used, path, part.size) for path, part in parts.items()]
        left, gone, until = sum(size for _, _, size in stored), 0, time.time() - _KEPT_S
        for used, path, size in sorted(stored):
            if left <= limit or used >= until:
                break
            if self._give_up(path, parts.get(path), until):
                left, gone = left - size, gone + 1
        return gone

    def _give_up(self, path: Path, part: PartFile | None, until: float) -> bool:
        """Removes an entry, or the file of a part, that nobody has used since a time; returns whether it went."""
        with contextlib.suppress(Busy), self._disk():
            if part is not None:
                path.unlink(missing_ok=True)  # who uses it has a copy
                return True
            with self._locked(path.name, waiting=False):
                if _used(path) < until:  # nobody has used it meanwhile
                    self._drop(path)
                    return True
        return False

    def _drop(self, entry: Path) -> None:
        """Removes an entry whose lock is held, so that others see it whole or not at all."""
        aside = self.directory / f".{entry.name}-dropped"
        _remove(aside)
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            os.replace(entry, aside)
            shutil.rmtree(aside)

    @contextlib.contextmanager
    def _locked(self, name: str, waiting: bool = True) -> Iterator[None]:
        lock = filelock.FileLock(self.directory / f".{name}.lock")
        with self._disk():
            try:
                lock.acquire(timeout=-1 if waiting else 0)
            except filelock.Timeout as problem:
                raise Busy(f"another process is making {name}") from problem
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def _disk(self, *only: int) -> Iterator[None]:
        """Turns an OSError (of these errno only, where some are given) into an EnvironmentProblem that says where."""
        try:
            yield
        except OSError as problem:
            if only and problem.errno not in only:
                raise
            remedy = "free the disk, or set TVM_ORIENT_CACHE_DIR to a folder you can write to"
            raise EnvironmentProblem(f"the kernel cache {self.directory} must be writable, got {problem}: {remedy}") from problem


def entries_of(directory: Path) -> list[manifest.Manifest]:
    """Returns the manifest of every readable entry of a cache, sorted by name."""
    found = []
    for entry in _entries(directory):
        with contextlib.suppress(manifest.Unreadable):
            found.append(manifest.read(entry))
    return found


def _entries(directory: Path) -> list[Path]:
    return sorted(path for path in directory.iterdir() if _ENTRY.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def _used(entry: Path) -> float:
    """Returns when an entry was last used, in seconds since 1970: the time of how.json, or of the folder where there is none; infinity for one that is gone."""
    for path in (entry / HOW, entry):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return math.inf


def _note_use(entry: Path) -> None:
    """Notes that an entry is used now, where that may be written."""
    with contextlib.suppress(OSError):
        if time.time() - _used(entry) > _USED_S:
            os.utime(entry / HOW)


def _bytes(entry: Path) -> int:
    """Returns the bytes that the files of an entry hold."""
    found = 0
    with contextlib.suppress(OSError):
        for file in os.scandir(entry):
            found += file.stat(follow_symlinks=False).st_size
    return found


def _let_read(folder: Path, mode: int) -> None:
    """Lets those read an entry who may read the cache that it goes to: one that is made for many is open, a user's own is not."""
    folder.chmod(0o700 | mode & 0o055)
    for name in (KERNEL, HOW):
        (folder / name).chmod(0o600 | mode & 0o044)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
