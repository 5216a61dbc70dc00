"""Executes the machine code of a kernel, with values, on arrays over lanes: what the GPU would compute, without one.

All blocks of a grid run side by side: one warp of each at a time, from barrier to barrier, in an order that the caller chooses.
Asynchronous copies land as late as their waits allow. What the code may not do is an error that names the instructions: see `checked_memory`;
also a barrier that only some threads of a block reach, and a read of a register that nothing wrote.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import BuildFailed, InvalidArgument
from .alu import INTEGER, widths
from .bank_conflicts import WARP
from .checked_memory import Fault, Global, Shared
from .cubin import KernelFacts
from .decode import SPACES, Step, steps
from .float_alu import FLOAT
from .interpreter import IDLE, MOST
from .lanes import ADDRESS, SINKS, Lanes

ORDERS = ("ascending", "descending", "random")
_LANES = 1 << 14  # lanes that run side by side, at most: what a cache holds of them
_STACK = 1 << 12  # bytes of local memory of a thread
_STACK_AT = (0x28, 0x37C)  # where constant bank 0 has the end of local memory
_THREADS_AT, _BLOCKS_AT = (0x0, 0x4, 0x8), (0xC, 0x10, 0x14)  # where it has the sizes of a block and of the grid, up to sm_90
_DESCRIPTORS = (0x118, 0x11C, 0x208, 0x20C)  # of global memory, which is all there is here
_ZEROS = ("SRZ", "SR_CgaCtaId", "SR_TID.Z", "SR_CTAID.Y", "SR_CTAID.Z")  # special registers that are zero in every launch of ours


class _Access(NamedTuple):
    """A load, store or copy as it stands: which operands are addresses, the registers that are moved, bytes a lane, and further conditions."""

    space: str
    load: bool
    spots: tuple[str, ...]
    registers: tuple[str, ...]
    size: int
    conditions: tuple[str, ...]


class _Copy(NamedTuple):
    """Copies on their way: lanes, the group of each, address in shared memory, bytes, instruction, words."""

    lanes: Any
    group: Any
    address: Any
    size: int
    at: int
    words: list[Any]


def execute(kernel: KernelFacts, grid: int, threads: int | tuple[int, int], arguments: Sequence[Any], order: str = "ascending", seed: int = 0) -> None:
    """Run a kernel: arrays among its arguments are pointers, changed in place; others are whole numbers.

    threads: of a block, or (along x, along y). order: in which the warps of a block run between two barriers. seed: of the garbage in
    registers and memory that nobody wrote, and of a random order.

    Raises:
        Fault: the kernel breaks a rule. BuildFailed: it does something that is not followed here.
        InvalidArgument: arguments or an order that the kernel does not have.
    """
    if order not in ORDERS:
        raise InvalidArgument(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if len(arguments) != len(kernel.parameters):
        raise InvalidArgument(f"{kernel.name} takes {len(kernel.parameters)} arguments, got {len(arguments)}")
    across, down = (threads, 1) if isinstance(threads, int) else threads
    memory = Global([argument for argument in arguments if isinstance(argument, np.ndarray)])
    constants = _constants(kernel, memory, arguments, (across, down), grid)
    code = steps(kernel.code)
    together = max(1, _LANES // WARP)
    random = np.random.default_rng(seed)
    for first in range(0, grid, together):
        blocks = np.arange(first, min(grid, first + together))
        try:
            _Blocks(kernel, code, constants, memory, blocks, across, down, order, random).run()
        except Fault as fault:
            places = ", after ".join(f"/*{16 * at:04x}*/ {_text(code[at])}" for at in fault.at)
            raise Fault(f"{kernel.name}: {places} {fault.what}" if places else f"{kernel.name}: {fault.what}", *fault.at) from fault
    memory.give_back()


def _text(step: Step) -> str:
    return " ".join(filter(None, (f"@{step.guard}" if step.guard else "", ".".join(step.opcode), ", ".join(step.operands))))


def _constants(kernel: KernelFacts, memory: Global, arguments: Sequence[Any], threads: tuple[int, int], grid: int) -> dict[int, int]:
    """Words of constant bank 0 by their place."""
    words = dict.fromkeys(_DESCRIPTORS, 0) | dict.fromkeys(_STACK_AT, _STACK)
    words |= dict(zip((*_THREADS_AT, *_BLOCKS_AT), (*threads, 1, grid, 1, 1), strict=True))
    addresses = iter(memory.addresses)
    for (offset, size), argument in zip(kernel.parameters, arguments, strict=True):
        value = next(addresses) if isinstance(argument, np.ndarray) else int(argument)
        for i in range(0, size, 4):
            words[offset + i] = value >> 8 * i & 0xFFFFFFFF
    return words


class _Blocks:
    """Blocks side by side, and the warps of each, which take turns."""

    def __init__(
        self, kernel: KernelFacts, code: list[Step], constants: dict[int, int], memory: Global, blocks: Any, across: int, down: int, order: str, random: Any
    ) -> None:
        grain = 2 if any(step.opcode[0] in ("LDS", "STS") and "U16" in step.opcode for step in code) else 4
        self.kernel, self.code, self.constants, self.memory, self.random, self.order = kernel, code, constants, memory, random, order
        self.shared = Shared(len(blocks), kernel.shared, grain, random)
        self.accesses: dict[int, _Access] = {}
        count = -(-across * down // WARP)
        names = np.tile(np.arange(count), (len(blocks), 1))  # the warp of each block that a turn runs
        if order == "random":
            names = random.permuted(names, axis=1)
        self.warps = [_Warps(self, blocks, names[:, turn], across, down) for turn in range(count)]

    def run(self) -> None:
        while any(warps.groups for warps in self.warps):
            turns = list(range(len(self.warps)))
            if self.order == "descending":
                turns.reverse()
            elif self.order == "random":
                self.random.shuffle(turns)
            for turn in turns:
                self.warps[turn].run()
            self._release()

    def _release(self) -> None:
        """Everyone of a block has come to a barrier, or nobody: on to the next epoch."""
        places = sorted({at for warps in self.warps for at in warps.parked})
        seen: dict[int, Any] = {}
        for at in places:
            for warps in self.warps:
                for block in np.unique(warps.block[warps.parked[at]]) if at in warps.parked else ():
                    if seen.setdefault(int(block), at) != at:
                        raise Fault("is a barrier where other threads of the block wait at another", at - 1, seen[int(block)] - 1)
        for warps in self.warps:
            waiting = np.logical_or.reduce([*warps.parked.values(), np.zeros(len(warps.block), bool)])
            left = warps.exists & ~waiting & np.isin(warps.block, list(seen))
            if left.any():
                raise Fault("is a barrier that only some threads of a block reach", seen[int(warps.block[left][0])] - 1)
            warps.groups, warps.parked = warps.parked, {}
        self.shared.epoch += 1


class _Warps(Lanes):
    """One warp of each block: values by register, lanes by the instruction that they are at."""

    def __init__(self, blocks: _Blocks, numbers: Any, names: Any, across: int, down: int) -> None:
        self.blocks, lane = blocks, np.tile(np.arange(WARP), len(numbers))
        self.block = np.repeat(np.arange(len(numbers)), WARP)
        self.warp = names[self.block]
        inside = self.warp * WARP + lane  # thread of its block
        self.thread = numbers[self.block] * across * down + inside
        special = {"SR_TID.X": inside % across, "SR_TID.Y": inside // across, "SR_CTAID.X": numbers[self.block], "SR_LANEID": lane}
        words = {name: value.astype(np.uint32) for name, value in special.items()} | dict.fromkeys(_ZEROS, np.uint32(0))
        super().__init__(blocks.kernel, blocks.code, blocks.constants, words, inside < across * down, blocks.random)
        self.exists, self.alive = self.live, int(np.count_nonzero(self.live))
        self.groups: dict[int, Any] = {0: self.exists} if self.alive else {}
        self.parked: dict[int, Any] = {}  # lanes that wait at a barrier, by the instruction after it
        self.commits, self.copies = np.zeros(len(lane), np.int64), list[_Copy]()
        self.local: Any = None
        self.done = 0

    # ---- where lanes go -------------------------------------------------------------------------

    def run(self) -> None:
        """Until every lane has come to a barrier or to its end."""
        with np.errstate(all="ignore"):
            while self.groups:
                at = min(self.groups)
                mask = self.groups.pop(at)
                stop = min(self.groups, default=len(self.code))
                whole = int(np.count_nonzero(mask)) == self.alive
                while at < stop:
                    step, self.at = self.code[at], at
                    if step.opcode[0] in _TURNS:
                        for place, lanes in _TURNS[step.opcode[0]](self, step, at, mask):
                            self._join(self.groups, place, lanes)
                        break
                    self._do(step, at, mask, whole)
                    at += 1
                else:
                    if at >= len(self.code):
                        raise BuildFailed(f"{self.kernel.name}: lanes run past the end of the code")
                    self._join(self.groups, at, mask)

    def _join(self, groups: dict[int, Any], place: int, lanes: Any) -> None:
        if lanes.any():
            groups[place] = groups[place] | lanes if place in groups else lanes

    def _guarded(self, step: Step, mask: Any) -> Any:
        self.active = mask
        return mask & self.truth(step.guard) if step.guard else mask

    def _branch(self, step: Step, at: int, mask: Any) -> list[tuple[int, Any]]:
        self.done += 1
        if self.done > MOST:
            raise BuildFailed(f"{self.kernel.name}: more than {MOST} branches")
        active = self._guarded(step, mask)
        if step.target < 0:
            raise BuildFailed(f"{self.kernel.name}: {_text(step)} is not followed")
        if step.opcode[-1] == "DIV":
            return [(at + 1, mask)]
        for operand in step.operands:
            if re.fullmatch(r"!?U?P\w+", operand):
                active = active & self.truth(operand)
        return [(step.target, active), (at + 1, mask & ~active)]

    def _jump(self, step: Step, at: int, mask: Any) -> list[tuple[int, Any]]:
        """BRX Rx offset: to the address in Rx (offset undoes what the processor adds); instructions take 16 bytes."""
        active = self._guarded(step, mask)
        places = np.broadcast_to(self.bits(step.operands[0].split()[0]), active.shape) // 16
        return [*((int(place), active & (places == place)) for place in np.unique(places[active])), (at + 1, mask & ~active)]

    def _exit(self, step: Step, at: int, mask: Any) -> list[tuple[int, Any]]:
        active = self._guarded(step, mask)
        self.live = self.live & ~active
        self.alive = int(np.count_nonzero(self.live))
        return [(at + 1, mask & ~active)]

    def _barrier(self, step: Step, at: int, mask: Any) -> list[tuple[int, Any]]:
        if step.opcode[1] != "SYNC" or step.operands not in (("0x0",), ("0x0", "0x0")):
            raise BuildFailed(f"{self.kernel.name}: {_text(step)} is not followed")
        active = self._guarded(step, mask)
        self._join(self.parked, at + 1, active)
        return [(at + 1, mask & ~active)]

    # ---- what one instruction does --------------------------------------------------------------

    def _do(self, step: Step, at: int, mask: Any, whole: bool) -> None:
        name = step.opcode[0]
        if name in IDLE or step.guard == "!PT":
            return
        self.active = active = mask
        if step.guard:
            active = mask & self.truth(step.guard)
            count = int(np.count_nonzero(active))
            if not count:
                return
            whole, self.active = count == self.alive, active
        if name in SPACES or name == "LDGSTS":
            self._move(step, at, active, whole)
        elif name == "LDGDEPBAR":
            self.commits = self.commits + active
        elif name == "BMOV":  # which lanes wait for each other after a branch: here the lowest address decides
            self.write(step.operands[0] if step.operands[0][0] == "R" else "RZ", np.uint32(0), active, whole)
        elif name == "DEPBAR":
            self._wait(int(step.operands[1], 0), active)
        else:
            self._compute(step, active, whole)

    def _compute(self, step: Step, active: Any, whole: bool) -> None:
        name, parts = step.opcode[0], step.opcode[1:]
        results: dict[str, Any] = {}
        if name in INTEGER:
            known = INTEGER[name](self, parts, step.operands)
            results = {register: one.value for register, one in known.items() if one.known is not None or register in SINKS}
            results = results if len(results) == len(known) else {}
        if not results and name in FLOAT:
            results = FLOAT[name](self, parts, step.operands)
        if not results and name != "R2P":
            raise BuildFailed(f"{self.kernel.name}: {_text(step)} is not followed")
        if name == "R2UR":  # of the first lane that takes part
            first = active.reshape(-1, WARP).argmax(1) + np.arange(0, len(active), WARP)
            results = {register: np.repeat(np.broadcast_to(value, active.shape)[first], WARP) for register, value in results.items()}
        for register, value in results.items():
            self.write(register, value, active, whole)

    # ---- memory ---------------------------------------------------------------------------------

    def _move(self, step: Step, at: int, active: Any, whole: bool) -> None:
        access = self.blocks.accesses.get(at)
        if access is None:
            access = self.blocks.accesses[at] = _decode(step)
        lanes = slice(None) if whole and self.alive == len(active) else np.flatnonzero(active)
        if access.space == "copy":
            self._copy(access, at, active)
            return
        address, memory, shared = self.address(access.spots[0])[lanes], self.blocks.memory, self.blocks.shared
        if access.load:
            blanks: list[Any] = [None] * len(access.registers)
            if access.space == "local":
                words = self._spilled(address, access.size, lanes)
            elif access.space == "global":
                words = memory.load(self.thread[lanes], address, access.size, at)
            else:
                words, blanks = shared.load(self.block[lanes], self.warp[lanes], address, access.size, at)
            for register, word, blank in zip(access.registers, words, blanks, strict=True):
                self.write(register, self._all(word, lanes), active, whole)
                if blank is not None:
                    self.forget(register, self._all(blank, lanes))
            return
        words = [np.broadcast_to(self.bits(register), active.shape)[lanes] for register in access.registers]
        if access.space == "local":
            for i, word in enumerate(words):
                self._room()[address // 4 + i, np.arange(len(active))[lanes]] = word
        elif access.space == "global":
            memory.store(self.thread[lanes], address, access.size, at, words)
        else:
            shared.store(self.block[lanes], self.warp[lanes], address, access.size, at, words)

    def _copy(self, access: _Access, at: int, active: Any) -> None:
        """Zeros where a condition is false; the source is read now, for nobody writes it."""
        inside = active
        for condition in access.conditions:
            inside = inside & self.truth(condition)
        words = [np.zeros(len(active), np.uint32) for _ in range(access.size // 4)]
        if inside.any():
            taken = np.flatnonzero(inside)
            for word, found in zip(words, self.blocks.memory.load(self.thread[taken], self.address(access.spots[1])[taken], access.size, at), strict=True):
                word[taken] = found
        lanes = np.flatnonzero(active)
        to = self.address(access.spots[0])[lanes]
        self.blocks.shared.send(self.block[lanes], self.warp[lanes], to, access.size, at)
        self.copies.append(_Copy(lanes, self.commits[lanes], to, access.size, at, [word[lanes] for word in words]))

    def _wait(self, last: int, active: Any) -> None:
        """Let land what these lanes have sent, but for so many of their last groups."""
        left = []
        for copy in self.copies:
            due = active[copy.lanes] & (copy.group < self.commits[copy.lanes] - last)
            if due.any():
                lanes = copy.lanes[due]
                self.blocks.shared.arrive(self.block[lanes], self.warp[lanes], copy.address[due], copy.size, copy.at, [word[due] for word in copy.words])
            if not due.all():
                later = ~due
                left.append(_Copy(copy.lanes[later], copy.group[later], copy.address[later], copy.size, copy.at, [word[later] for word in copy.words]))
        self.copies = left

    def _all(self, values: Any, lanes: Any) -> Any:
        """Values of some lanes among all."""
        if isinstance(lanes, slice):
            return values
        every = np.zeros(len(self.block), values.dtype)
        every[lanes] = values
        return every

    def _spilled(self, address: Any, size: int, lanes: Any) -> list[Any]:
        return [self._room()[address // 4 + i, np.arange(len(self.block))[lanes]] for i in range(size // 4)]

    def _room(self) -> Any:
        if self.local is None:
            self.local = self.blocks.random.integers(0, 1 << 32, (_STACK // 4, len(self.block)), np.uint64).astype(np.uint32)
        return self.local


_TURNS: dict[str, Callable[[_Warps, Step, int, Any], list[tuple[int, Any]]]] = {
    "BRA": _Warps._branch, "CALL": _Warps._branch, "BRX": _Warps._jump, "EXIT": _Warps._exit, "BAR": _Warps._barrier,
}  # fmt: skip


def _decode(step: Step) -> _Access:
    name = step.opcode[0]
    spots = tuple(operand for operand in step.operands if ADDRESS.search(operand))
    others = [operand for operand in step.operands if operand not in spots]
    size = next((int(part) // 8 for part in reversed(step.opcode) if part in ("64", "128")), 4)
    size = 2 if "U16" in step.opcode else size
    if any(part in step.opcode for part in ("S16", "U8", "S8", "16")):
        raise BuildFailed(f"{_text(step)} is not followed")
    if name == "LDGSTS":
        return _Access("copy", False, spots, (), size, tuple(others))
    registers = tuple(others[:1]) * max(1, size // 4) if others[0].startswith("RZ") else tuple(widths((name, str(max(32, size * 8))), others))
    return _Access(SPACES[name], name.startswith("LD"), spots, registers, size, ())
