"""Manifests: how.json beside a compiled kernel says what it is, in one form for caches, for those that are shared and for exported folders.

It holds the number of the form, the name of the folder, the build key, facts that launching needs and people ask for, and the kernel's checksum. A folder
whose how.json is not of this form, or does not fit its kernel, has a flaw that is told in words: for a cache that is a miss, and never an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem

FORMAT = 2  # the number of the form that is written; part of every digest of a build key, so that raising it makes every entry a miss
KERNEL = "kernel.so"
HOW = "how.json"
_OLD_EXPORT = 0  # the number of the form for exported folders of an earlier version, which had none and said everything at the top
_OLD_KEY = ("arch", "model", "features", "toolchain")  # fields that those folders have under the names of a build key


class Unreadable(EnvironmentProblem):
    """A how.json that is missing, is no how.json, or is of a form that this version does not read."""


@dataclass(frozen=True)
class Manifest:
    """A how.json that was read or written."""

    format: int  #: FORMAT, or 0 for an exported folder of before that number, which has no checksum
    name: str  #: the folder's: <op>-<digest>
    key: dict[str, Any]  #: the fields of the `tvm_orient.kernels.build_key.BuildKey`, tuples as lists
    facts: dict[str, Any]  #: workspace for conv_dw, steps, seconds; of an exported folder also spec, device, signature, and for CUDA kernels
    sha256: str  #: of kernel.so, in hexadecimal digits
    size: int  #: of kernel.so, in bytes
    made: str  #: when, as ISO 8601 in UTC

    @property
    def workspace(self) -> tuple[int, int] | None:
        """(bands, taps) of conv_dw's partial sums, for each image and channel; None where the kernel needs none."""
        found = self.facts.get("workspace")
        return (int(found[0]), int(found[1])) if found else None

    @property
    def features(self) -> tuple[str, ...]:
        """The instruction sets of a CPU that the kernel may use, in the words of Linux's cpuinfo; none for a GPU."""
        return tuple(str(self.key.get("features", "")).split())

    @property
    def model(self) -> str:
        """The CPU, or the level of x86-64, that the kernel was made for; empty for a GPU."""
        return str(self.key.get("model", ""))

    @property
    def plain(self) -> dict[str, Any]:
        """The manifest as JSON has it."""
        return dict(vars(self))


def seal(folder: Path, name: str, key: Mapping[str, Any], facts: Mapping[str, Any]) -> Manifest:
    """Writes how.json beside the kernel.so of a folder and brings both to the disk; returns what it wrote.

    Args:
        name: what the folder will be called.
        key: the fields of the build key.
        facts: of plain JSON.

    Raises:
        OSError: the folder cannot be written, or has no kernel.so.
    """
    kernel = folder / KERNEL
    made = datetime.now(UTC).isoformat(timespec="seconds")
    found = Manifest(FORMAT, name, dict(key), dict(facts), _sha256(kernel), kernel.stat().st_size, made)
    (folder / HOW).write_text(json.dumps(found.plain, indent=2) + "\n", encoding="utf-8")
    for path in (kernel, folder / HOW):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    return found


def read(folder: Path) -> Manifest:
    """Reads the manifest of a folder that `seal` wrote, or that an earlier version exported; the kernel is not looked at.

    Raises:
        Unreadable: there is none, or it is not of a form that this version reads.
    """
    try:
        how = json.loads((folder / HOW).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise Unreadable(f"{HOW} must be JSON, got {problem} in {folder}: build the kernel again") from problem
    if isinstance(how, dict) and "format" not in how and isinstance(how.get("spec"), str):
        return _old_export(how, folder.name)
    fields: dict[str, Any] = {"format": int, "name": str, "key": dict, "facts": dict, "sha256": str, "size": int, "made": str}
    wrong = [name for name, kind in fields.items() if not isinstance(how, dict) or type(how.get(name)) is not kind]
    if "format" not in wrong and how["format"] != FORMAT:
        raise Unreadable(f"{HOW} must be of format {FORMAT}, got format {how['format']} in {folder}: build the kernel again, or use the version that made it")
    if wrong:
        raise Unreadable(f"{HOW} must have {', '.join(fields)}, and lacks {', '.join(wrong)} in {folder}: build the kernel again")
    return Manifest(**{name: how[name] for name in fields})


def _old_export(how: dict[str, Any], name: str) -> Manifest:
    key = {field: how[field] for field in _OLD_KEY if field in how}
    facts = {field: value for field, value in how.items() if field not in (*_OLD_KEY, "made")}
    return Manifest(_OLD_EXPORT, name, {"spec": how["spec"], **key}, facts, "", 0, str(how.get("made", "")))


def flaw(folder: Path) -> str | None:
    """Says why the kernel of a folder cannot be used as an entry of a cache; returns None where it is whole."""
    try:
        how = read(folder)
        if how.format != FORMAT:
            return f"{HOW} is that of a folder which an earlier version exported, and has no checksum: export it again"
        size = (folder / KERNEL).stat().st_size
        if size != how.size:
            return f"{KERNEL} has {size} bytes, {HOW} says {how.size}"
        if _sha256(folder / KERNEL) != how.sha256:
            return f"{KERNEL} does not match the checksum in {HOW}"
    except (OSError, Unreadable) as problem:
        return str(problem)
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
