"""Keep the results of a GPU run on disk: a line of JSON each, added in one write, in two places, and whole whenever a run is cut."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

Result = dict[str, Any]
RESULTS = "results.jsonl"  # one result a line
FACTS = "facts.json"  # the machine and the kit of the run


def read(folder: Path) -> dict[str, Result]:
    """Returns the results in a folder by their id, the newest of each; a line that a crash cut short is left out."""
    found: dict[str, Result] = {}
    path = folder / RESULTS
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            result = json.loads(line)
            found[result["id"]] = result
        except (ValueError, KeyError, TypeError):
            continue
    return found


class Results:
    """Keep what a run has found, in a folder that lasts and in copies of it.

    Args:
        folders: the first lasts; the others get the same files. What any of them has already counts as found.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = list(dict.fromkeys(path.resolve() for path in folders))
        self.found: dict[str, Result] = {}
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            self.found |= read(folder)
        for folder in self.folders:
            known = read(folder)
            for name, result in self.found.items():
                if name not in known:
                    _append(folder / RESULTS, result)

    def add(self, name: str, result: Result) -> None:
        """Adds one result to every folder."""
        result = {"id": name, **result, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        self.found[name] = result
        for folder in self.folders:
            _append(folder / RESULTS, result)

    def take_back(self, names: Collection[str]) -> None:
        """Removes results: what they say was no kernel's doing."""
        self.found = {name: result for name, result in self.found.items() if name not in names}
        for folder in self.folders:
            write(folder / RESULTS, "".join(json.dumps(result) + "\n" for result in read(folder).values() if result["id"] not in names))

    def place(self, name: str) -> Path:
        """Returns a file of the folder that lasts."""
        return self.folders[0] / name

    def share(self) -> None:
        """Brings every other file of the folder that lasts to the copies, each whole."""
        for path in (path for path in self.folders[0].iterdir() if path.is_file() and path.name != RESULTS and not path.name.startswith(".")):
            for folder in self.folders[1:]:
                temporary = folder / f".{path.name}.tmp"
                shutil.copyfile(path, temporary)
                os.replace(temporary, folder / path.name)


def write(path: Path, text: str) -> None:
    """Replaces a file in one step."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def _append(path: Path, result: Result) -> None:
    line = json.dumps(result).encode() + b"\n"
    handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(handle).st_size
        if size and os.pread(handle, 1, size - 1) != b"\n":  # a crash cut the last line
            line = b"\n" + line
        written = os.write(handle, line)
        if written != len(line):
            os.ftruncate(handle, size)
            raise OSError(f"only {written} of {len(line)} bytes of a result fitted on the disk: free it; {path} is as it was")
        os.fsync(handle)
    finally:
        os.close(handle)
