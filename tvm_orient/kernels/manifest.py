"""How a kernel in a folder was made: the file that lies beside it, sealed with a checksum."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .build_key import FORMAT, BuildKey

KERNEL, HOW = "kernel.so", "how.json"


def seal(folder: Path, key: BuildKey, facts: dict[str, Any]) -> None:
    """Writes how.json and brings both files to the disk."""
    kernel = folder / KERNEL
    how = {
        "format": FORMAT,
        "name": key.name,
        "key": dataclasses.asdict(key),
        "facts": facts,
        "sha256": _sha256(kernel),
        "size": kernel.stat().st_size,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (folder / HOW).write_text(json.dumps(how, indent=2) + "\n", encoding="utf-8")
    for path in (kernel, folder / HOW):
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def how_made(entry: Path) -> dict[str, Any]:
    """Return what an entry's how.json says.

    Raises:
        ValueError: it is not a JSON object.
    """
    how = json.loads((entry / HOW).read_text(encoding="utf-8"))
    if not isinstance(how, dict):
        raise ValueError(f"{HOW} is not an object")
    return how


def flaw_of(entry: Path) -> str | None:
    """Why an entry cannot be used; None where it is whole."""
    try:
        how = how_made(entry)
        size = (entry / KERNEL).stat().st_size
        if size != how.get("size"):
            return f"{KERNEL} has {size} bytes, {HOW} says {how.get('size')}"
        if _sha256(entry / KERNEL) != how.get("sha256"):
            return f"{KERNEL} does not match the checksum in {HOW}"
    except (OSError, ValueError) as problem:
        return str(problem)
    return None


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
