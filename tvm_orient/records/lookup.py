"""Which record answers for a problem: the user's own, shipped ones, those of a device of the same kind, of the mirrored problem, of the nearest one.

A step that does not answer says why, and that is kept beside what the next ones say.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .. import env
from ..errors import InvalidArgument, LogFileError
from ..notices import log_once
from ..problem.device import Device, kin_of, same_instructions
from ..problem.spec import ConvSpec
from .record import Record
from .store import LogFile, log_path, read

STEPS = ("user", "shipped", "alias", "mirror", "nearest", "default")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """The answer of a lookup; record and source are None where step is "default" or "none"."""

    record: Record | None
    step: str  #: which of STEPS answered; "default" asks for the template's own choice, "none": the mode forbids it too
    source: Path | None  #: the record's file
    tried: tuple[tuple[str, str], ...]  #: (step, why it did not answer), in order


def lookup(
    spec: ConvSpec, device: Device, accepts: Callable[[Record], str | None], *, directories: Sequence[Path] | None = None, mode: str | None = None
) -> Found:
    """Returns the best record for a single-group spec on a device, by the chain user, shipped, alias, mirror, nearest, default.

    A file that cannot be read is passed over with one warning.

    Args:
        accepts: says why a record is not valid for this spec and device, or None where it is.
        directories: the user's folder first, then shipped ones (default: those of paths).
        mode: strict, nearest or default (default: TVM_ORIENT_LOOKUP).

    Raises:
        InvalidArgument: a spec of several groups, or an unknown mode.
    """
    mode = env.lookup_mode() if mode is None else mode
    if mode not in env.LOOKUP_MODES:
        raise InvalidArgument(f"mode must be one of {', '.join(env.LOOKUP_MODES)}, got {mode!r}")
    if spec.taps.groups != 1:
        raise InvalidArgument(f"lookup takes a spec of one angle group, got {spec.taps.groups} groups in {spec.key[:120]!r}: look up each of spec.parts()")
    given = None if directories is None else [Path(folder) for folder in directories]
    user, shipped = (env.user_log_dirs(), [env.shipped_log_dir()]) if given is None else (given[:1], given[1:])
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
    """Yields each step's name, its candidates best first, and what to say where there are none; worked out only when asked for."""

    def own(record: Record) -> bool:
        return record.device == device.slug

    def sibling(record: Record) -> bool:
        return not own(record) and same_instructions(str(record.provenance.get("cc")), device.arch)

    def twins(key: str) -> list[tuple[Record, Path]]:
        alike = _pick(key, files, lambda record: sibling(record) and (kin_of(record.device) == device.kin or record.provenance.get("units") == device.units))
        return sorted(alike, key=lambda found: kin_of(found[0].device) != device.kin)

    for step, part in (("user", user), ("shipped", shipped)):
        opened = [_open(log_path(folder, device.slug, spec.op)) for folder in part]
        yield step, _pick(spec.key, [file for file, _ in opened], own), "; ".join(note for _, note in opened) or "no folder to look in"
    files = [_open(path)[0] for folder in (*user, *shipped) for path in sorted(folder.glob(f"*/{spec.op}.jsonl"))]
    cores = " nor from this CPU with another number of cores" if device.kind == "cpu" else ""
    yield "alias", twins(spec.key), f"no record of this spec from another device of {device.arch} with {device.units} units{cores}"
    key = dataclasses.replace(spec, taps=spec.taps.mirrored).key
    mirrors = [] if key == spec.key else _pick(key, files, own) + twins(key)
    yield "mirror", mirrors, "the taps are their own mirror" if key == spec.key else f"no record of {key[:120]}"
    family = ConvSpec.family_of_key(spec.key)
    keys = sorted({(_distance(spec, other), other) for file in files for other in file.by_spec if ConvSpec.family_of_key(other) == family})
    nearest = [candidate for _, other in keys for candidate in _pick(other, files, own) + _pick(other, files, sibling)]
    yield "nearest", nearest, f"no record of the same op, taps, stride, padding, dtype and layout on {device.arch}"


def _open(path: Path) -> tuple[LogFile, str]:
    """Returns the file, empty where it cannot be read, and what to say where it has no answer."""
    try:
        file = read(path)
    except LogFileError as problem:
        if isinstance(problem.__cause__, FileNotFoundError):
            return LogFile(path), f"{path} does not exist"
        log_once(_log, "tuning log passed over: %s", str(problem))
        return LogFile(path), str(problem)
    return file, f"{path} has no record of this spec" + (f" ({file.bad} bad lines skipped)" if file.bad else "")


def _pick(key: str, files: Iterable[LogFile], wanted: Callable[[Record], bool]) -> list[tuple[Record, Path]]:
    return [(record, file.path) for file in files for record in file.by_spec.get(key, ()) if wanted(record)]


def _distance(spec: ConvSpec, key: str) -> float:
    other = ConvSpec.from_key(key)
    return sum(weight * abs(math.log(getattr(spec, name) / getattr(other, name))) for name, weight in (("height", 1.0), ("width", 1.0), ("channels", 0.25)))
