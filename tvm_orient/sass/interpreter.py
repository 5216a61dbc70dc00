"""Runs the integer half of a kernel's SASS for whole blocks of threads: what each warp really executes and where it loads and stores.

A count of instructions as they stand in the code says nothing of loops, branches and bank conflicts. Here addresses, loop counters
and predicates are computed for every thread, so that all three come out exactly; data (floats, what is loaded) stays unknown, and
a branch or an address that depends on it is an error. Lanes that part meet again at the lowest address among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BuildFailed
from .alu import INTEGER
from .bank_conflicts import WARP
from .cubin import KernelFacts
from .decode import IDLE, INSTRUCTION_BYTES, SPACES, Step, accessed_registers, bytes_per_lane, steps, written_registers
from .exposed_waits import ExposedWaits
from .known import NOTHING_KNOWN
from .memory_access import MemoryAccesses
from .operands import KnownOperands
from .trace import Trace

MAX_STEPS = 2_000_000  # instructions that are followed before a loop counts as one that never ends

_Places = list[tuple[int, Any]]  # where lanes go next: the index of an instruction, (lanes,) bool


def run(kernel: KernelFacts, threads: int, blocks: Sequence[int], arguments: Sequence[int] = ()) -> Trace:
    """Run blocks of a kernel side by side and return what they executed.

    Args:
        kernel: as `cubin.kernels` reads it.
        threads: of a block, all along x.
        blocks: the indices of the blocks that are run.
        arguments: values of the int parameters in order, 1 for those that are not given; pointers get places far apart.

    Raises:
        BuildFailed: the kernel does something that is not followed here.
    """
    interpreter = SassInterpreter(kernel, threads, blocks, arguments)
    interpreter.run()
    return interpreter.trace


class SassInterpreter:
    """All lanes of some blocks, and the instructions that they are at; executes them one by one.

    Attributes:
        trace: what was executed; complete after `run`.
    """

    def __init__(self, kernel: KernelFacts, threads: int, blocks: Sequence[int], arguments: Sequence[int]) -> None:
        """Take the arguments of `run`, and place all lanes at the first instruction."""
        self._name = kernel.name
        self._steps = steps(kernel.code)
        padded = -(-threads // WARP) * WARP  # threads of a block with those that fill its last warp
        lane = np.arange(padded * len(blocks))
        block = lane // padded
        special = {"SR_TID.X": (lane % padded).astype(np.uint32), "SR_CTAID.X": np.asarray(blocks, np.uint32)[block]}
        self._exists = lane % padded < threads
        self._operands = KnownOperands(kernel, len(lane), special, arguments)
        self.trace = Trace(len(blocks), len(lane) // WARP)
        self._accesses = MemoryAccesses(self.trace, block)
        self._waits = ExposedWaits(self.trace)

    def run(self) -> None:
        """Execute until every lane has ended.

        Raises:
            BuildFailed: the kernel does something that is not followed here, or does not end.
        """
        groups, done = {0: self._exists}, 0
        while groups:
            at = min(groups)
            mask = groups.pop(at)
            if at >= len(self._steps):
                raise BuildFailed(f"{self._name}: lanes run past the end of the code")
            done += 1
            if done > MAX_STEPS:
                raise BuildFailed(f"{self._name}: more than {MAX_STEPS} instructions")
            for place, lanes in self._step(self._steps[at], at, mask):
                if lanes.any():
                    groups[place] = groups[place] | lanes if place in groups else lanes
        self._accesses.finish()
        self.trace.instructions_of_a_warp = self._waits.busiest

    def _step(self, step: Step, at: int, mask: Any) -> _Places:
        """Execute one instruction for the lanes of mask, and return where they go next."""
        name, active = step.opcode[0], mask
        if step.guard:
            active = mask & self._operands.branch_value(step.guard, mask)
        warps = mask.reshape(-1, WARP).any(1)
        self._waits.per_warp += warps
        if step.guard == "!PT":  # padding that takes a slot
            name = "NEVER"
        self.trace.warp_instructions[name] += int(warps.sum())
        if name in ("BRA", "CALL"):
            return self._branch(step, at, mask, active)
        if name == "BRX":
            return [*self._indirect_branch(step, active), (at + 1, mask & ~active)]
        if name == "EXIT":
            return [(at + 1, mask & ~active)]
        if name == "LDGSTS":
            self._copy(step, active)
        elif name in SPACES:
            self._access(step, name, active)
        elif name == "LDGDEPBAR":
            self._waits.commit()
        elif name == "DEPBAR":
            self._waits.await_groups(int(step.operands[1], 0))
        elif name not in IDLE:
            self._compute(step, active)
        return [(at + 1, mask)]

    def _branch(self, step: Step, at: int, mask: Any, active: Any) -> _Places:
        """Return where the lanes of mask go from a branch that those of active may take."""
        if step.opcode[-1] == "DIV" or (step.opcode[0] == "CALL" and step.target < 0):
            return [(at + 1, mask)]
        for condition in step.conditions:
            active = active & self._operands.branch_value(condition, mask)
        return [(step.target, active), (at + 1, mask & ~active)]

    def _indirect_branch(self, step: Step, active: Any) -> _Places:
        """Return where lanes go by BRX Rx offset: to the address in Rx, since the offset undoes what the processor adds."""
        places = self._operands.branch_value(step.operands[0].split()[0], active) // INSTRUCTION_BYTES
        return [(int(place), active & (places == place)) for place in np.unique(places[active])]

    def _compute(self, step: Step, active: Any) -> None:
        """Execute an instruction on registers; what it writes is unknown where it is not one of `alu.INTEGER`."""
        for operand in step.operands[1:]:
            self._waits.use(operand)
        self._operands.active = active
        compute = INTEGER.get(step.opcode[0])
        if compute is None:
            results = dict.fromkeys(written_registers(step.opcode, step.operands[:1]), NOTHING_KNOWN)
        else:
            results = compute(self._operands, step.opcode[1:], step.operands)
        for name, value in results.items():
            self._waits.overwrite(name)
            self._operands.write(name, value, active)

    def _copy(self, step: Step, active: Any) -> None:
        """Send an asynchronous copy from global to shared memory; where its condition is false it writes zeros and reads nothing."""
        for operand in step.operands:
            self._waits.use(operand)
        (to, source), size = step.addresses[:2], bytes_per_lane(step.opcode)
        self._accesses.count("STS", "shared", self._operands.address(to, active), size, active)
        for operand in step.operands[2:]:
            active = active & self._operands.branch_value(operand, active)
        self._accesses.count("LDG", "global", self._operands.address(source, active), size, active)
        self._waits.copy()

    def _access(self, step: Step, name: str, active: Any) -> None:
        """Execute a load or a store."""
        for operand in step.operands:
            self._waits.use(operand)
        spot, space = step.addresses[0], SPACES[name]
        if space == "local":
            self._spill(name, spot, accessed_registers(step), active)
            return
        if active.any():
            self._accesses.count(name, space, self._operands.address(spot, active), bytes_per_lane(step.opcode), active)
        if name.startswith("LD"):
            filled = accessed_registers(step)
            for register in filled:
                self._waits.overwrite(register)
                self._operands.write(register, NOTHING_KNOWN, active)
            if name == "LDG":
                self._waits.load(filled)

    def _spill(self, name: str, spot: str, registers: Sequence[str], active: Any) -> None:
        """Store registers to local memory or load them; they are kept by the text of their address, which is a constant from the frame."""
        for index, register in enumerate(registers):
            place = f"{spot}.{index}"
            source, to = (register, place) if name == "STL" else (place, register)
            self._waits.overwrite(to)
            self._operands.write(to, self._operands.held(source), active)
