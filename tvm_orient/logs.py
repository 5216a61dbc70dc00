"""Tuning logs: JSON Lines, one record a line, one file per device and op. Append, read, look up, merge, prune.

A bad line is counted and skipped, never fatal. Nothing that was written is lost silently: appending is one write under a
file lock, and a file is replaced only where everything in it is read and kept or beaten.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import filelock
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from . import paths
from .device import Device, kin_of
from .errors import InvalidArgument, LogFileError
from .forks import kept
from .spec import OPS, ConvSpec
from .taps import Taps

SCHEMA: Final = 1
STEPS = ("user", "shipped", "alias", "mirror", "nearest", "default")
_SLUG = r"[A-Za-z0-9][A-Za-z0-9_.-]*"  # one folder name: no separator, not hidden
_warn_once = functools.lru_cache(maxsize=256)(logging.getLogger(__name__).warning)

Microseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Slug = Annotated[str, Field(pattern=f"^{_SLUG}$")]


class Record(BaseModel):
    """One tuned choice for a single-group spec on one device; fields that this version does not know are kept."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True, validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")  #: called "schema" in JSON
    spec: str  #: `tvm_orient.ConvSpec.key`
    template: Annotated[str, Field(min_length=1)]  #: its name
    template_version: int  #: raised when the same decisions come to mean another kernel
    decisions: dict[str, int | str]  #: the named choices
    device: Slug  #: its folder name, see `tvm_orient.device.Device`
    median_us: Microseconds  #: time of one launch with a cold cache
    spread_us: NotNegative  #: how much it varied; zero where every run fell in the same tick of the timer
    default_us: Microseconds  #: of the untuned choice in the same run
    floor_us: Microseconds  #: bytes moved over the measured copy bandwidth
    error: NotNegative  #: relative, against the reference
    #: gpu, cc, units, driver, cuda, tvm, tvm_ffi, version, date (ISO 8601), trials, seed; alias and nearest need cc and units
    provenance: dict[str, Any]

    @field_validator("spec")
    @classmethod
    def _one_group(cls, value: str) -> str:
        spec = ConvSpec.from_key(value)
        if spec.taps.groups != 1:
            raise InvalidArgument(f"a record serves one angle group, got {spec.taps.groups} in {value[:120]!r}: make one record for each of spec.parts()")
        if spec.key != value:
            raise InvalidArgument(f"a record needs the canonical spec key {spec.key[:120]!r}, got {value[:120]!r}")
        return value

    @model_validator(mode="after")
    def _has_a_line(self) -> Record:
        try:
            _ = self.line
        except (TypeError, RecursionError) as problem:
            raise ValueError(f"a record must be plain JSON: {problem}") from problem
        return self

    @property
    def identity(self) -> tuple[str, str, int, str]:
        """(spec, template, template_version, device): two records with the same one are two tries at the same thing."""
        return (self.spec, self.template, self.template_version, self.device)

    @property
    def date(self) -> str:
        """When it was measured; empty where the provenance does not say."""
        return str(self.provenance.get("date", ""))

    @property
    def line(self) -> str:
        """Canonical JSON without the newline: sorted keys, no spaces, ASCII, no NaN."""
        return json.dumps(self.model_dump(by_alias=True), sort_keys=True, separators=(",", ":"), allow_nan=False)


@dataclass(frozen=True)
class LogFile:
    """What a file holds: records in file order, and how many lines were skipped as bad, blank or of another schema."""

    path: Path
    records: tuple[Record, ...] = ()
    bad: int = 0
    blank: int = 0
    foreign: int = 0

    @kept
    def by_spec(self) -> dict[str, list[Record]]:
        """The records by spec key, best first."""
        groups: dict[str, list[Record]] = {}
        for record in _ranked(self.records):
            groups.setdefault(record.spec, []).append(record)
        return groups


@dataclass(frozen=True)
class Found:
    """The answer of a lookup; record and source are None where step is "default" or "none"."""

    record: Record | None
    step: str  #: which of STEPS answered; "default" asks for the template's own choice, "none": the mode forbids it too
    source: Path | None  #: the record's file
    tried: tuple[tuple[str, str], ...]  #: (step, why it did not answer), in order


# ---- files --------------------------------------------------------------------------------------


def log_path(directory: Path, device_slug: str, op: str) -> Path:
    """The file of one device and op: directory/<slug>/<op>.jsonl.

    Raises:
        InvalidArgument: an unknown op, or a slug that is not one plain folder name.
    """
    if op not in OPS:
        raise InvalidArgument(f"op must be one of {', '.join(OPS)}, got {op!r}")
    if not re.fullmatch(_SLUG, device_slug):
        raise InvalidArgument(f"a device slug is one folder name such as nvidia-h200, got {device_slug!r}: see device.slugify")
    return Path(directory) / device_slug / f"{op}.jsonl"


# the newest reading of each file, with the stamp it had: a lookup in a hot process costs one stat
_readings: dict[str, tuple[tuple[int, int, int], LogFile]] = {}


def read(path: Path) -> LogFile:
    """Every record of a file; lines that are bad, blank, cut short or of another schema are only counted.

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
    path = log_path(paths.user_log_dir() if directory is None else directory, row.device, row.spec.partition("-")[0])
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
    rows = _sorted(records)
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
    kept = {(record.spec, record.device): record.median_us for record in reversed(_ranked(rows))}
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


# ---- sets of records ----------------------------------------------------------------------------


def _sorted(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.identity, record.line))


def _ranked(records: Iterable[Record]) -> list[Record]:
    """Best first: lowest median, then newest, then canonical JSON, so that the order of the input never matters."""
    rows = sorted(sorted(records, key=lambda record: record.line), key=lambda record: record.date, reverse=True)
    return sorted(rows, key=lambda record: record.median_us)


def merge(files: Iterable[Path]) -> list[Record]:
    """The best record of each identity in these files, sorted by identity: commutative, associative, idempotent.

    Raises:
        LogFileError: a file cannot be read as a whole.
    """
    worst_first = reversed(_ranked(record for file in files for record in read(file).records))
    return _sorted({record.identity: record for record in worst_first}.values())


def prune(records: Iterable[Record]) -> list[Record]:
    """The single best record of each (spec, device), sorted by identity."""
    return _sorted({(record.spec, record.device): record for record in reversed(_ranked(records))}.values())


# ---- lookup -------------------------------------------------------------------------------------


def lookup(
    spec: ConvSpec, device: Device, accepts: Callable[[Record], str | None], *, directories: Sequence[Path] | None = None, mode: str | None = None
) -> Found:
    """The best record for a single-group spec on a device, by the chain user, shipped, alias, mirror, nearest, default.

    A file that cannot be read is passed over with one warning.

    Args:
        accepts: says why a record is not valid for this spec and device, or None where it is.
        directories: the user's folder first, then shipped ones (default: those of paths).
        mode: strict, nearest or default (default: TVM_ORIENT_LOOKUP).

    Raises:
        InvalidArgument: a spec of several groups, or an unknown mode.
    """
    mode = paths.lookup_mode() if mode is None else mode
    if mode not in paths.LOOKUP_MODES:
        raise InvalidArgument(f"mode must be one of {', '.join(paths.LOOKUP_MODES)}, got {mode!r}")
    if spec.taps.groups != 1:
        raise InvalidArgument(f"lookup takes a spec of one angle group, got {spec.taps.groups} groups in {spec.key[:120]!r}: look up each of spec.parts()")
    given = None if directories is None else [Path(folder) for folder in directories]
    user, shipped = (paths.user_log_dirs(), [paths.shipped_log_dir()]) if given is None else (given[:1], given[1:])
    tried: list[tuple[str, str]] = []
    for step, candidates, note in itertools.islice(_steps(spec, device, user, shipped), 2 if mode == "strict" else None):
        refusals = []
        for record, path in candidates:
            reason = accepts(record)
            if reason is None:
                return Found(record, step, path, tuple(tried))
            refusals.append(f"{record.template} v{record.template_version} in {path} refused: {reason}")
        tried.append((step, "; ".join(refusals[:3]) or note))
    tried += [(step, "mode strict lets only exact records answer") for step in STEPS[len(tried) : -1]]
    if mode == "default":
        return Found(None, "default", None, tuple(tried))
    return Found(None, "none", None, (*tried, ("default", f"mode {mode} forbids an untuned choice")))


def _steps(spec: ConvSpec, device: Device, user: Sequence[Path], shipped: Sequence[Path]) -> Iterator[tuple[str, list[tuple[Record, Path]], str]]:
    """Each step's name, its candidates best first, and what to say where there are none; worked out only when asked for."""

    def own(record: Record) -> bool:
        return record.device == device.slug

    def sibling(record: Record) -> bool:
        return not own(record) and _capability(record.provenance.get("cc")) == _capability(device.arch)

    def twins(key: str) -> list[tuple[Record, Path]]:
        alike = _pick(key, files, lambda record: sibling(record) and (kin_of(record.device) == device.kin or record.provenance.get("units") == device.units))
        return sorted(alike, key=lambda found: kin_of(found[0].device) != device.kin)

    for step, part in (("user", user), ("shipped", shipped)):
        opened = [_open(log_path(folder, device.slug, spec.op)) for folder in part]
        yield step, _pick(spec.key, [file for file, _ in opened], own), "; ".join(note for _, note in opened) or "no folder to look in"
    files = [_open(path)[0] for folder in (*user, *shipped) for path in sorted(folder.glob(f"*/{spec.op}.jsonl"))]
    cores = " nor from this CPU with another number of cores" if device.kind == "cpu" else ""
    yield "alias", twins(spec.key), f"no record of this spec from another device of {device.arch} with {device.units} units{cores}"
    key = dataclasses.replace(spec, taps=Taps(tuple(tuple((h, -w) for h, w in line) for line in spec.taps.table))).key
    mirrors = [] if key == spec.key else _pick(key, files, own) + twins(key)
    yield "mirror", mirrors, "the taps are their own mirror" if key == spec.key else f"no record of {key[:120]}"
    keys = sorted({(_distance(spec, other), other) for file in files for other in file.by_spec if _kind(other) == _kind(spec.key)})
    nearest = [candidate for _, other in keys for candidate in _pick(other, files, own) + _pick(other, files, sibling)]
    yield "nearest", nearest, f"no record of the same op, taps, stride, padding, dtype and layout on {device.arch}"


def _open(path: Path) -> tuple[LogFile, str]:
    """The file, empty where it cannot be read, and what to say where it has no answer."""
    try:
        file = read(path)
    except LogFileError as problem:
        if isinstance(problem.__cause__, FileNotFoundError):
            return LogFile(path), f"{path} does not exist"
        _warn_once("tuning log passed over: %s", str(problem))
        return LogFile(path), str(problem)
    return file, f"{path} has no record of this spec" + (f" ({file.bad} bad lines skipped)" if file.bad else "")


def _pick(key: str, files: Iterable[LogFile], wanted: Callable[[Record], bool]) -> list[tuple[Record, Path]]:
    return [(record, file.path) for file in files for record in file.by_spec.get(key, ()) if wanted(record)]


def _kind(key: str) -> tuple[str, str]:
    """A spec key without its channels, height and width: two shapes of one problem share it."""
    return key.split("-")[0], key.split("-", 2)[2]


def _distance(spec: ConvSpec, key: str) -> float:
    other = ConvSpec.from_key(key)
    return sum(weight * abs(math.log(getattr(spec, name) / getattr(other, name))) for name, weight in (("height", 1.0), ("width", 1.0), ("channels", 0.25)))


def _capability(text: Any) -> str:
    """A compute capability as major.minor, whether it came as 9.0, 90 or sm_90a; another arch word as it is."""
    match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)[a-z]?", str(text))
    return f"{match[1]}.{match[2]}" if match else str(text)
