"""One warp of each of some blocks, executed with values: where its lanes go, and what each instruction does to their registers and memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import BuildFailed
from .alu import INTEGER
from .bank_conflicts import WARP
from .checked_memory import Shared
from .decode import IDLE, INSTRUCTION_BYTES, SINKS, SPACES, Step
from .float_alu import FLOAT
from .lane_operands import LaneOperands
from .launch import KernelLaunch
from .warp_memory import LanePlaces, WarpMemory

MAX_BRANCHES = 2_000_000  # that a warp executes before a loop counts as one that never ends
_ZEROS = ("SRZ", "SR_CgaCtaId", "SR_TID.Z", "SR_CTAID.Y", "SR_CTAID.Z")  # special registers that are zero in every launch of ours

_COMPARISONS = ("ISETP", "UISETP", "FSETP", "DSETP")

_Places = list[tuple[int, Any]]  # where lanes go next: the index of an instruction, (lanes,) bool


class Warps:
    """One warp of each block, side by side: the lanes by the instruction that they are at.

    Attributes:
        block: (lanes,) int64, the block of a lane among those that run side by side.
        exists: (lanes,) bool, the lanes that are threads; the others only fill a warp.
        groups: lanes that go on, by the index of the instruction that they are at.
        parked: lanes that wait at a barrier, by the index of the instruction after it.
        touched: (lanes,) bool, the lanes that have read or written memory.
    """

    def __init__(self, launch: KernelLaunch, shared: Shared, blocks: Any, names: Any) -> None:
        """Place all lanes at the first instruction.

        Args:
            launch: what all blocks have in common.
            shared: the shared memory of these blocks.
            blocks: (blocks,) int64, their indices in the grid.
            names: (blocks,) int64, which warp of each block this is.
        """
        across, down = launch.threads
        lane = np.tile(np.arange(WARP), len(blocks))
        self.block = np.repeat(np.arange(len(blocks)), WARP)
        warp = names[self.block]
        inside = warp * WARP + lane  # thread of its block
        special = {"SR_TID.X": inside % across, "SR_TID.Y": inside // across, "SR_CTAID.X": blocks[self.block], "SR_LANEID": lane}
        words = {name: value.astype(np.uint32) for name, value in special.items()} | dict.fromkeys(_ZEROS, np.uint32(0))
        self.exists = inside < across * down
        self._name = launch.name
        self._steps = launch.steps
        self._lanes = LaneOperands(launch, words, self.exists)
        self._memory = WarpMemory(launch, shared, self._lanes, LanePlaces(self.block, warp, blocks[self.block] * across * down + inside))
        self.groups: dict[int, Any] = {0: self.exists} if self._lanes.alive else {}
        self.parked: dict[int, Any] = {}
        self.touched = np.zeros_like(self.exists)
        self._branches = 0

    # ---- where lanes go -------------------------------------------------------------------------

    def run(self) -> None:
        """Execute until every lane has come to a barrier or to its end.

        Raises:
            Fault: the code breaks a rule of memory or of registers.
            BuildFailed: it does something that is not followed here.
        """
        with np.errstate(all="ignore"):
            while self.groups:
                at = min(self.groups)
                mask = self.groups.pop(at)
                stop = min(self.groups, default=len(self._steps))
                whole = int(np.count_nonzero(mask)) == self._lanes.alive
                while at < stop:
                    step = self._lanes.step = self._steps[at]
                    self._lanes.at = at
                    if step.opcode[0] in _TURNS:
                        for place, lanes in _TURNS[step.opcode[0]](self, step, at, mask):
                            _join(self.groups, place, lanes)
                        break
                    self._do(step, at, mask, whole)
                    at += 1
                else:
                    if at >= len(self._steps):
                        raise BuildFailed(f"{self._name}: lanes run past the end of the code")
                    _join(self.groups, at, mask)

    def _guarded(self, step: Step, mask: Any) -> Any:
        """Return the lanes of mask for which the guard of an instruction holds."""
        self._lanes.active = mask
        return mask & self._lanes.bits(step.guard) if step.guard else mask

    def _branch(self, step: Step, at: int, mask: Any) -> _Places:
        """BRA and CALL: to the target where all conditions hold."""
        self._branches += 1
        if self._branches > MAX_BRANCHES:
            raise BuildFailed(f"{self._name}: more than {MAX_BRANCHES} branches")
        active = self._guarded(step, mask)
        if step.target < 0:
            raise BuildFailed(f"{self._name}: {step} is not followed")
        if step.opcode[-1] == "DIV":
            return [(at + 1, mask)]
        for condition in step.conditions:
            active = active & self._lanes.bits(condition)
        return [(step.target, active), (at + 1, mask & ~active)]

    def _indirect_branch(self, step: Step, at: int, mask: Any) -> _Places:
        """BRX Rx offset: to the address in Rx, since the offset undoes what the processor adds."""
        active = self._guarded(step, mask)
        places = np.broadcast_to(self._lanes.bits(step.operands[0].split()[0]), active.shape) // INSTRUCTION_BYTES
        return [*((int(place), active & (places == place)) for place in np.unique(places[active])), (at + 1, mask & ~active)]

    def _exit(self, step: Step, at: int, mask: Any) -> _Places:
        """EXIT: lanes end."""
        active = self._guarded(step, mask)
        self._lanes.end(active)
        return [(at + 1, mask & ~active)]

    def _barrier(self, step: Step, at: int, mask: Any) -> _Places:
        """BAR.SYNC: lanes wait for the others of their block."""
        if step.opcode[1] != "SYNC" or step.operands not in (("0x0",), ("0x0", "0x0")):
            raise BuildFailed(f"{self._name}: {step} is not followed")
        active = self._guarded(step, mask)
        _join(self.parked, at + 1, active)
        return [(at + 1, mask & ~active)]

    # ---- what one instruction does --------------------------------------------------------------

    def _do(self, step: Step, at: int, mask: Any, whole: bool) -> None:
        """Execute an instruction that is no branch for the lanes of mask; whole: whether these are all that live."""
        name, lanes = step.opcode[0], self._lanes
        if name in IDLE or step.guard == "!PT":
            return
        lanes.active = active = mask
        if step.guard:
            active = mask & lanes.bits(step.guard)
            count = int(np.count_nonzero(active))
            if not count:
                return
            whole, lanes.active = count == lanes.alive, active
        if name in SPACES or name == "LDGSTS":
            self.touched |= active
            self._memory.access(at, active, whole)
        elif name == "LDGDEPBAR":
            self._memory.commit(active)
        elif name == "BMOV":  # which lanes wait for each other after a branch: here the lowest address decides
            lanes.write(step.operands[0] if step.operands[0][0] == "R" else "RZ", np.uint32(0), active, whole)
        elif name == "DEPBAR":
            self._memory.await_groups(int(step.operands[1], 0), active)
        else:
            self._compute(step, active, whole)

    def _asked(self, step: Step, active: Any) -> Any:
        """Return the lanes of active for which a comparison decides: not those where what it is joined with says all, whose operands may be unwritten."""
        other = self._lanes.bits(step.operands[4])
        return active & other if "AND" in step.opcode else active & ~other if "OR" in step.opcode else active

    def _compute(self, step: Step, active: Any, whole: bool) -> None:
        """Execute an instruction on registers."""
        name, parts = step.opcode[0], step.opcode[1:]
        if name in _COMPARISONS:
            self._lanes.active = self._asked(step, active)
        results: dict[str, Any] = {}
        if name in INTEGER:
            known = INTEGER[name](self._lanes, parts, step.operands)
            results = {register: one.value for register, one in known.items() if one.known is not None or register in SINKS}
            results = results if len(results) == len(known) else {}
        if not results and name in FLOAT:
            results = FLOAT[name](self._lanes, parts, step.operands)
        if not results and name != "R2P":
            raise BuildFailed(f"{self._name}: {step} is not followed")
        if name == "R2UR":  # the value of the first lane that takes part
            first = active.reshape(-1, WARP).argmax(1) + np.arange(0, len(active), WARP)
            results = {register: np.repeat(np.broadcast_to(value, active.shape)[first], WARP) for register, value in results.items()}
        for register, value in results.items():
            self._lanes.write(register, value, active, whole)


def _join(groups: dict[int, Any], place: int, lanes: Any) -> None:
    """Add lanes, (lanes,) bool, to the group at a place, if there are any."""
    if lanes.any():
        groups[place] = groups[place] | lanes if place in groups else lanes


_TURNS: dict[str, Callable[[Warps, Step, int, Any], _Places]] = {
    "BRA": Warps._branch, "CALL": Warps._branch, "BRX": Warps._indirect_branch, "EXIT": Warps._exit, "BAR": Warps._barrier,
}  # fmt: skip
