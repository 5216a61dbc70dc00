"""When lanes wait for global memory: one wait lets everything arrive that is on its way, so what counts is how many waits there are."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from .trace import Overlap, Trace

_COPIES = "copies"  # stands among the registers on their way for asynchronous copies that no commit has grouped yet
_NONE = Overlap(-1, -1)  # a group without copies, or whose copies have arrived


class ExposedWaits:
    """Loads and copies that are on their way from global memory, and the waits for them; the counts go to a trace.

    Attributes:
        per_warp: (warps,) int64, the instructions that each warp has executed; whoever runs them counts.
    """

    def __init__(self, trace: Trace) -> None:
        """Start with nothing on its way and nothing executed, for the warps of a trace."""
        self.per_warp: Any = np.zeros(trace.warps, np.int64)
        self._trace = trace
        self._coming: set[str] = set()  # registers that a load has yet to fill, and _COPIES
        self._groups: list[Overlap] = []  # groups of copies that nobody has waited for: what had been executed and waited when they were sent

    @property
    def busiest(self) -> int:
        """Instructions that the busiest warp has executed so far."""
        return int(self.per_warp.max(initial=0))

    def load(self, registers: list[str]) -> None:
        """Note that a load of global memory is to fill these registers."""
        self._coming.update(registers)

    def copy(self) -> None:
        """Note that an asynchronous copy was sent."""
        self._coming.add(_COPIES)

    def commit(self) -> None:
        """Make the copies that were sent since the last commit a group."""
        self._groups.append(Overlap(self.busiest, self._trace.exposed_waits) if _COPIES in self._coming else _NONE)
        self._coming.discard(_COPIES)

    def overwrite(self, register: str) -> None:
        """Note that a register gets another value, so that nobody waits for what was to come into it."""
        self._coming.discard(register)

    def use(self, operand: str) -> None:
        """Wait where the operand of an instruction is, or is addressed by, a register that has yet to be filled."""
        if not self._coming:
            return
        match = re.search(r"R(\d+)", operand)
        if match and f"R{match[1]}" in self._coming:
            self._wait()

    def await_groups(self, last: int) -> None:
        """Wait for all groups of copies but the last so many, as cp.async.wait_group does; no wait where they hold no copies."""
        awaited = max(self._groups[: len(self._groups) - last], default=_NONE)
        self._groups = self._groups[len(self._groups) - last :]
        if awaited == _NONE:
            return
        if last:
            now = self._trace.exposed_waits
            self._trace.overlaps[now] = Overlap(self.busiest - awaited.instructions, now - awaited.exposed_waits)
            self._trace.exposed_waits += 1
        else:
            self._wait()

    def _wait(self) -> None:
        """Count one wait, in which all arrives that is on its way."""
        self._trace.exposed_waits += 1
        self._coming.clear()
        self._groups = [_NONE] * len(self._groups)
