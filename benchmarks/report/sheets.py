"""Keep CSV files that grow: rows by a key, where a later one replaces an earlier one, and the file is whole at every moment."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

RESULTS = Path(__file__).resolve().parents[1] / "results"  # where the committed tables lie


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a file; none where it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Replace a file by a header and these rows in one step; a value of None is an empty field."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: "" if (value := row.get(name)) is None else value for name in columns} for row in rows)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def add(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]], key: Sequence[str]) -> int:
    """Add rows to a file, each in place of the one that has the same values in the columns of key; returns how many the file has then."""
    found: dict[tuple[str, ...], Mapping[str, object]] = {}
    for row in (*read(path), *rows):
        found[tuple(str(row.get(name, "")) for name in key)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, columns, found.values())
    return len(found)
