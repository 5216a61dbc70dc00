"""Compiled parts of layers on disk, one file each: an angle that one layer was made of serves every other layer that has it.

They lie in the folder `parts` of a kernel cache; those of caches that are only read are asked first. A file is put in its place whole or not at all,
and holds its own checksum; one that does not check out is a miss. Nothing depends on it: where it cannot be written, parts are compiled again, and
whoever uses one has a copy, so that it may go at any time. The time of a file is that of its last use.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from .. import env
from ..compiler.parts import CompiledPart, Part
from ..errors import BuildFailed, EnvironmentProblem
from ..notices import log_once
from ..problem.device import Device
from .build_key import build_key
from .trust import danger, not_own

FOLDER = "parts"
_SUFFIX = ".part"
_PART = re.compile(rf"[0-9a-f]{{20}}{re.escape(_SUFFIX)}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{20}-\w+")
_LEFT_S = 3600.0  # seconds after which a file that is being written was left by a process that ended
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PartFile:
    """The file of a compiled part in a cache.

    Attributes:
        path: where it lies.
        used: when it was last used, in seconds since 1970.
        size: in bytes.
    """

    path: Path
    used: float
    size: int


class PartCache:
    """The folder of compiled parts.

    Args:
        directory: of the kernel cache; None is that of TVM_ORIENT_CACHE_DIR, or no cache where this user has none.
    """

    def __init__(self, directory: Path | None = None) -> None:
        if directory is None:
            with contextlib.suppress(EnvironmentProblem):
                directory = env.cache_dir()
        self.directory = None if directory is None else Path(directory) / FOLDER

    def take(self, part: Part, device: Device, folder: Path) -> Path | None:
        """Copies the file of a part that is whole, and that nobody else can have written, into a folder; returns its path there, or None for a miss.

        A file that is there and not used is told once in the log.

        Raises:
            OSError: the folder cannot be written.
        """
        name = _name(part, device)
        for shared in env.shared_cache_dirs():
            payload = _payload(shared / FOLDER / name, shared=True)
            if payload is not None:
                break
        else:
            payload = None if self.directory is None else _payload(self.directory / name, shared=False)
        if payload is None:
            return None
        made = folder / f"{part.symbol}{_SUFFIX}"
        made.write_bytes(payload)
        return made

    def keep(self, part: Part, device: Device, made: Path) -> None:
        """Puts a copy of a part's file in the cache; where that cannot be, it is told once in the log."""
        if self.directory is None:
            return
        path, temporary = self.directory / _name(part, device), None
        try:
            mode = _made(self.directory)
            handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=self.directory)
            with os.fdopen(handle, "wb") as file:
                file.write(made.read_bytes())
                file.flush()
                os.fchmod(handle, 0o600 | mode & 0o044)  # whoever may read the cache may read this
                os.fsync(handle)
            os.replace(temporary, path)
        except (OSError, EnvironmentProblem) as problem:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            # without the name of the temporary file, which is another each time
            why = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
            log_once(_log, "compiled parts are not kept in %s: %s", str(self.directory), why)


def parts_of(directory: Path) -> list[PartFile]:
    """Returns the files of compiled parts that lie in a kernel cache, sorted by name; nothing else that lies there."""
    return _files(directory, _PART)


def sweep(directory: Path) -> None:
    """Removes what processes that were killed while they kept a part have left in a kernel cache."""
    for file in _files(directory, _TEMPORARY):
        if file.used < time.time() - _LEFT_S:
            with contextlib.suppress(OSError):
                file.path.unlink()


def _files(directory: Path, names: re.Pattern[str]) -> list[PartFile]:
    """Returns the files among the parts of a kernel cache that have such a name."""
    found = []
    with contextlib.suppress(OSError):  # there are none
        for path in sorted((directory / FOLDER).iterdir()):
            with contextlib.suppress(OSError):  # another process has removed it
                info = path.lstat()
                if names.fullmatch(path.name) and stat.S_ISREG(info.st_mode):
                    found.append(PartFile(path, info.st_mtime, info.st_size))
    return found


def _name(part: Part, device: Device) -> str:
    """Returns the name of a part's file."""
    key = build_key(part.spec, device, [part.choice])
    return f"{key.with_layer(json.dumps(part.plain)).digest}{_SUFFIX}"


def _payload(path: Path, *, shared: bool) -> bytes | None:
    """Returns the bytes of a part's file that is whole and safe, and notes that it is used; None for a miss.

    Args:
        shared: the cache is only read.
    """
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError):  # not there, out of reach, or links in a circle
        return None
    try:
        why = danger(real.parent, (real.name,)) if shared else not_own(path, path.parent, path.parents[1])
        payload = path.read_bytes() if why is None else b""
        if why is None:
            CompiledPart.of_payload(payload)
    except FileNotFoundError:  # another process has removed it
        return None
    except (OSError, BuildFailed) as problem:
        why = str(problem)
    if why is not None:
        log_once(_log, "compiled part %s is not used and will be compiled again: %s", str(path), why)
        return None
    if not shared:
        with contextlib.suppress(OSError):  # a system that is only read
            os.utime(path)
    return payload


def _made(directory: Path) -> int:
    """Makes the folder of parts where it is missing, and that of the kernel cache; returns the mode of the latter.

    Raises:
        OSError: it cannot be made.
        EnvironmentProblem: one of them is not this user's alone to write.
    """
    directory.parents[1].mkdir(parents=True, exist_ok=True)
    directory.parent.mkdir(mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(directory.parent.stat().st_mode)
    if not directory.is_dir():
        directory.mkdir(mode=0o700, exist_ok=True)
        directory.chmod(0o700 | mode & 0o055)
    why = not_own(directory, directory.parent)
    if why is not None:
        raise EnvironmentProblem(why)
    return mode
