"""Compiled parts of layers on disk, one file each: an angle that one layer was made of serves every other layer that has it.

They lie in the folder `parts` of the kernel cache. A file is put in its place whole or not at all, and holds its own checksum; one that does not
check out is a miss. Nothing depends on it: where it cannot be written, parts are compiled again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
from pathlib import Path

from .. import env
from ..compiler.parts import CompiledPart, Part
from ..errors import BuildFailed, EnvironmentProblem
from ..notices import log_once
from ..problem.device import Device
from .build_key import build_key

FOLDER = "parts"
_SUFFIX = ".part"
_log = logging.getLogger(__name__)


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

    def find(self, part: Part, device: Device) -> Path | None:
        """Returns the file of a part that is whole; None for a miss."""
        path = self._path(part, device)
        if path is None or not path.is_file() or not _ours(path):
            return None
        try:
            CompiledPart.of_payload(path.read_bytes())
            os.utime(path)  # used now: what was not used for long goes first
        except (OSError, BuildFailed) as problem:
            log_once(_log, "compiled part %s is not used and will be compiled again: %s", str(path), str(problem))
            return None
        return path

    def keep(self, part: Part, device: Device, made: Path) -> Path:
        """Puts the file of a part in its place, and returns where it lies: there, or where it was made if it cannot be written."""
        path = self._path(part, device)
        if path is None:
            return made
        temporary: str | None = None
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not _ours(path.parent):
                return made
            handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", dir=path.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(made.read_bytes())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError as problem:
            if temporary is not None:
                with contextlib.suppress(OSError):
                    os.unlink(temporary)
            log_once(_log, "a compiled part is not kept in %s: %s", str(path.parent), str(problem))
            return made
        return path

    def _path(self, part: Part, device: Device) -> Path | None:
        """Returns where a part's file lies; None where there is no cache."""
        if self.directory is None:
            return None
        key = build_key(part.spec, device, [part.choice])
        return self.directory / f"{key.with_layer(json.dumps(part.plain)).digest}{_SUFFIX}"


def _ours(path: Path) -> bool:
    """Returns whether a file or folder is this user's, and nobody else may write to it: it holds code."""
    info = path.stat()
    return info.st_uid == os.geteuid() and not info.st_mode & 0o022
