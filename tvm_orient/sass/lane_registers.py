"""Registers of lanes side by side that hold values, and which lanes wrote them: what nobody wrote is garbage, and reading it an error."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bank_conflicts import WARP
from .checked_memory import Fault
from .decode import SINKS, Step

# opcodes that may take some bits of a register that nobody wrote as a whole
_MAY_READ_UNWRITTEN = {"LOP3", "P2R", "PRMT"}


class LaneRegisters:
    """The value of every register and predicate by lane.

    Attributes:
        live: (lanes,) bool, lanes that have not come to their end.
        alive: how many these are.
        active: (lanes,) bool, those that execute the current instruction.
        step: the current instruction.
        at: its index in the code.
        random: where the garbage in registers comes from.
    """

    def __init__(self, exists: Any, random: np.random.Generator) -> None:
        """Start with nothing written.

        Args:
            exists: (lanes,) bool, those that are threads; the others only fill a warp.
            random: see the class.
        """
        self.live = self.active = exists
        self.alive = int(np.count_nonzero(exists))
        self.step = Step("", ("NOP",), (), -1)
        self.at = 0
        self.random = random
        self._values: dict[str, Any] = {}
        self._written: dict[str, Any] = {}  # True for all lanes, or (lanes,) bool

    def end(self, lanes: Any) -> None:
        """Note that lanes, (lanes,) bool, have come to their end."""
        self.live = self.live & ~lanes
        self.alive = int(np.count_nonzero(self.live))

    def value(self, name: str) -> Any:
        """Return the value of a register: (lanes,) uint32, or bool of a predicate; or a scalar that all lanes share.

        Raises:
            Fault: an active lane never wrote it.
        """
        written = self._written.get(name)
        if written is not True and self.step.opcode[0] not in _MAY_READ_UNWRITTEN and (self.active if written is None else self.active & ~written).any():
            raise Fault(f"reads {name}, which nothing wrote", self.at)
        return self._raw(name)

    def write(self, name: str, value: Any, active: Any, whole: bool) -> None:
        """Put a value into a register.

        Args:
            name: of the register or predicate.
            value: (lanes,), or a scalar for all.
            active: (lanes,) bool, the lanes that get it.
            whole: whether these are all that live.
        """
        if name in SINKS:
            return
        if name[0] == "U" and not whole:  # one register for a whole warp
            active = np.repeat(active.reshape(-1, WARP).any(1), WARP)
            whole = bool((active | ~self.live).all())
        if whole:
            self._values[name], self._written[name] = value, True
            return
        self._values[name] = np.where(active, value, self._raw(name))
        before = self._written.get(name)
        if before is not True:
            self._written[name] = active if before is None else active | before

    def forget(self, name: str, lanes: Any) -> None:
        """Treat a register of these lanes, (lanes,) bool, as one that nothing wrote."""
        if name not in SINKS:
            self._written[name] = ~lanes & (True if self._written[name] is True else self._written[name])

    def _raw(self, name: str) -> Any:
        """Return what is in a register, written or not."""
        if name not in self._values:
            predicate = name.lstrip("U").startswith("P")
            self._values[name] = self.random.integers(0, 2 if predicate else 1 << 32, len(self.live), np.uint64).astype(bool if predicate else np.uint32)
        return self._values[name]
