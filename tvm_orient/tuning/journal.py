"""The journal of tuning trials, from which a run that was stopped goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from ..errors import TuningFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice

FOLDER = ".trials"  # in the folder of logs


def journals(directory: Path, device: Device) -> Path:
    """Returns the folder of a device's journals, beside its logs in directory."""
    return directory / FOLDER / device.slug


class Journal:
    """The trials of one problem on one device at one batch size; a file that is only appended to, so that a second run can resume."""

    def __init__(self, directory: Path, device: Device, part: ConvSpec, batch: int) -> None:
        name = hashlib.sha256(f"{part.key} {batch}".encode()).hexdigest()[:16]
        self.path = journals(directory, device) / f"{part.op}-{name}.jsonl"

    def entries(self) -> list[tuple[Choice, float | None]]:
        """Returns (choice, seconds, or None where it failed) of every readable trial, each choice once."""
        found: dict[Choice, float | None] = {}
        lines = self.path.read_text(errors="replace").splitlines() if self.path.is_file() else []
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):  # a line that a crash cut short
                entry = json.loads(line)
                found[Choice.named(*json.loads(entry["choice"]))] = entry["seconds"]
        return list(found.items())

    def forget(self) -> None:
        """Removes the trials of this problem at this batch size, and no others.

        Raises:
            TuningFailed: the file cannot be removed.
        """
        try:
            self.path.unlink(missing_ok=True)
        except OSError as problem:
            raise TuningFailed(f"the journal of trials {self.path} cannot be removed ({problem}): remove it by hand, or tune in another --log-dir") from problem

    def add(self, choice: Choice, seconds: float | None, error: str) -> None:
        """Appends one trial: its seconds, or None and the error that it failed with.

        Raises:
            TuningFailed: the file cannot be written.
        """
        key = json.dumps([choice.template, choice.version, choice.by_name], sort_keys=True)
        entry = {"choice": key, "seconds": seconds, **({"error": error[:500]} if error else {})}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as problem:
            raise TuningFailed(f"the journal of trials cannot be written ({problem}): free the disk, or set TVM_ORIENT_LOG_DIR") from problem
