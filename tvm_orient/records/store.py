"""Tuning logs: JSON Lines, one record a line, one file per device and op. Append, read, merge, prune.

A bad line is counted and skipped, never fatal. Nothing that was written is lost silently: appending is one write under a
file lock, and a file is replaced only where everything in it is read and kept or beaten.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import filelock

from .. import env
from ..errors import InvalidArgument, LogFileError
from ..forks import kept
from ..problem.spec import OPS, ConvSpec
from .record import SCHEMA, SLUG, Record, in_order, ranked


@dataclass(frozen=True)
class LogFile:
    """The records of a file, in file order, and how many lines were skipped as bad, blank or of another schema."""

    path: Path
    records: tuple[Record, ...] = ()
    bad: int = 0
    blank: int = 0
    foreign: int = 0

    @kept
    def by_spec(self) -> dict[str, list[Record]]:
        """Returns the records by spec key, best first."""
        groups: dict[str, list[Record]] = {}
        for record in ranked(self.records):
            groups.setdefault(record.spec, []).append(record)
        return groups


# ---- files --------------------------------------------------------------------------------------


def log_path(directory: Path, device_slug: str, op: str) -> Path:
    """Returns the file of one device and op: directory/<slug>/<op>.jsonl.

    Raises:
        InvalidArgument: an unknown op, or a slug that is not one plain folder name.
    """
    if op not in OPS:
        raise InvalidArgument(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if not re.fullmatch(SLUG, device_slug):
        raise InvalidArgument(f"a device slug is one folder name such as nvidia-h200, got {device_slug!r}: see device.slugify")
    return Path(directory) / device_slug / f"{op}.jsonl"


# the newest reading of each file, with the stamp it had: a lookup in a hot process costs one stat
_readings: dict[str, tuple[tuple[int, int, int], LogFile]] = {}


def read(path: Path) -> LogFile:
    """Returns every record of a file; lines that are bad, blank, cut short or of another schema are only counted.

    Raises:
        LogFileError: missing, not readable, a folder, or not a text file at all.
    """
    place = os.path.abspath(path)
    try:
        stamp = (info := os.stat(place)).st_mtime_ns, info.st_size, info.st_ino
        held = _readings.get(place)
        if held and held[0] == stamp:
            return held[1]
        raw = Path(place).read_bytes()
    except OSError as problem:
        raise LogFileError(f"cannot read the tuning log {path}: {problem.strerror}: give a readable .jsonl file") from problem
    log = _parse(Path(place), raw)
    _readings[place] = (stamp, log)
    return log


def _parse(path: Path, raw: bytes) -> LogFile:
    lines = raw.split(b"\n")
    rows = [_parse_line(line) for line in lines if line.strip()]
    records = tuple(row for row in rows if isinstance(row, Record))
    foreign = rows.count("foreign")
    if not records and not foreign and (b"\0" in raw or raw.decode(errors="ignore").encode() != raw):
        raise LogFileError(f"a tuning log must be UTF-8 text, one JSON record a line, got {raw[:16]!r}... in {path}: remove it or restore the log")
    blank = len(lines) - len(rows) - (0 if lines[-1].strip() else 1)  # what follows the last newline is no line
    return LogFile(path, records, len(rows) - len(records) - foreign, blank, foreign)


def _parse_line(line: bytes) -> Record | Literal["bad", "foreign"]:
    try:
        fields = json.loads(line.decode())
        schema = fields.get("schema") if isinstance(fields, dict) else None
        if type(schema) is not int:
            return "bad"
        return Record.model_validate(fields) if schema == SCHEMA else "foreign"
    except (ValueError, RecursionError):
        return "bad"


def _lock(path: Path) -> filelock.BaseFileLock:
    place = path.resolve()
    return filelock.FileLock(place.with_name(f".{place.name}.lock"), timeout=60)


def append(record: Record, directory: Path | None = None) -> Path:
    """Adds one line to the device's file under directory (default: the user's log folder) and returns the file.

    A line that a crash cut short stays alone, and a write that fails leaves the file as it was.

    Raises:
        InvalidArgument: the record was changed into something invalid.
        LogFileError: the file cannot be written.
    """
    try:
        row = Record.model_validate(json.loads(record.line))
    except (TypeError, ValueError) as problem:
        raise InvalidArgument(f"not a valid record, nothing was written: {problem}: make it with Record(...)") from problem
    path = log_path(env.user_log_dir() if directory is None else directory, row.device, ConvSpec.op_of_key(row.spec))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _lock(path):
            _append_line(path, row.line.encode() + b"\n")
    except OSError as problem:
        raise LogFileError(f"cannot add a record to {path}: {problem}: free the disk, or set TVM_ORIENT_LOG_DIR to a folder you can write to") from problem
    return path


def _append_line(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":  # a crash cut the last line
            line = b"\n" + line
        try:
            written = os.write(fd, line)
            if written != len(line):
                raise OSError(f"only {written} of {len(line)} bytes fitted on the disk")
            os.fsync(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def write(records: Iterable[Record], path: Path, force: bool = False) -> None:
    """Replaces a file by these records, sorted, in one step.

    Raises:
        LogFileError: the file cannot be written; or, without force, it holds bad lines, lines of another schema, or a
            (spec, device) that these records do not serve at least as fast.
    """
    rows = in_order(records)
    place = Path(path).resolve()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with _lock(place):
            if not force and place.exists():
                _refuse_loss(place, rows)
            _replace(place, "".join(f"{row.line}\n" for row in rows).encode())
    except OSError as problem:
        raise LogFileError(f"cannot write the tuning log {path}: {problem}: choose a folder you can write to") from problem


def _refuse_loss(path: Path, rows: list[Record]) -> None:
    old = read(path)
    if old.bad or old.foreign:
        rule = "a tuning log is replaced only where every line is understood"
        raise LogFileError(f"{rule}, got {old.bad} bad lines and {old.foreign} of another schema in {path}: mend them or update tvm_orient; force drops them")
    kept = {(record.spec, record.device): record.median_us for record in reversed(ranked(rows))}
    lost = [record for record in old.records if kept.get((record.spec, record.device), math.inf) > record.median_us]
    if lost:
        rule = "a tuning log is replaced only by records that are as good"
        raise LogFileError(f"{rule}, got none as fast for {len(lost)} records of {path} ({lost[0].spec[:120]}): merge that file too; force drops them")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")  # one name is enough under the lock, and a crash leaves one file at most
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            temporary.chmod(path.stat().st_mode & 0o777)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
