"""Runs the integer half of a kernel's SASS for whole blocks of threads: what each warp really executes and where it loads and stores.

A count of instructions as they stand in the code says nothing of loops, branches and bank conflicts. Here addresses, loop counters
and predicates are computed for every thread, so that all three come out exactly; data (floats, what is loaded) stays unknown, and
a branch or an address that depends on it is an error. Lanes that part meet again at the lowest address among them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BuildFailed
from .alu import INTEGER, widths
from .bank_conflicts import WARP, wavefronts
from .cubin import KernelFacts
from .decode import ADDRESS, SPACES, Step, steps
from .known import ALL_BITS, Known
from .trace import Trace

MOST = 2_000_000  # instructions: a loop that never ends is an error
_NONE = (-1, -1)  # a group of no copies
IDLE = {"NEVER", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "NOP", "BAR", "YIELD", "ERRBAR", "MEMBAR", "CCTL"}


def run(kernel: KernelFacts, threads: int, blocks: Sequence[int], arguments: Sequence[int] = ()) -> Trace:
    """Run blocks with these indices, side by side.

    arguments: values of the int parameters, in order; pointers get places far apart.

    Raises:
        BuildFailed: the kernel does something that is not followed here.
    """
    return SassInterpreter(kernel, threads, blocks, arguments).trace


class SassInterpreter:
    """State of all lanes: a value and what is known of it by register."""

    def __init__(self, kernel: KernelFacts, threads: int, blocks: Sequence[int], arguments: Sequence[int]) -> None:
        self.kernel, self.steps = kernel, steps(kernel.code)
        padded = -(-threads // WARP) * WARP
        lane = np.arange(padded * len(blocks))
        self.lanes, self.block = len(lane), lane // padded
        self.special = {"SR_TID.X": (lane % padded).astype(np.uint32), "SR_CTAID.X": np.asarray(blocks, np.uint32)[self.block]}
        self.registers: dict[str, Known] = {}
        self.active: Any = None
        self.constants = _parameters(kernel, arguments)
        self.trace = Trace(len(blocks), self.lanes // WARP)
        self.loaded: list[Any] = []
        self.words: list[Any] = []
        self.waiting: set[str] = set()  # registers that a load of global memory has yet to fill
        self.sent: list[tuple[int, int]] = []  # groups of copies that nobody has waited for: instructions of a warp and rounds until then
        self.per_warp = np.zeros(self.lanes // WARP, np.int64)
        self._loop(lane % padded < threads)
        self.trace.sectors["load"] = len(np.unique(np.concatenate(self.loaded))) if self.loaded else 0
        self.trace.stored = 2 * len(np.unique(np.concatenate(self.words))) if self.words else 0
        self.trace.instructions_of_a_warp = int(self.per_warp.max(initial=0))

    def _loop(self, start: Any) -> None:
        groups, done = {0: start}, 0
        while groups:
            at = min(groups)
            mask = groups.pop(at)
            if at >= len(self.steps):
                raise BuildFailed(f"{self.kernel.name}: lanes run past the end of the code")
            done += 1
            if done > MOST:
                raise BuildFailed(f"{self.kernel.name}: more than {MOST} instructions")
            for place, lanes in self._step(self.steps[at], at, mask):
                if lanes.any():
                    groups[place] = groups[place] | lanes if place in groups else lanes

    def _step(self, step: Step, at: int, mask: Any) -> list[tuple[int, Any]]:
        """Execute one instruction for the lanes of mask: where lanes go next."""
        name, active = step.opcode[0], mask
        if step.guard:
            active = mask & self._predicate(step.guard, mask)
        warps = mask.reshape(-1, WARP).any(1)
        self.per_warp += warps
        if step.guard == "!PT":  # padding that takes a slot
            name = "NEVER"
        self.trace.warp_instructions[name] += int(warps.sum())
        if name in ("BRA", "CALL"):
            if step.opcode[-1] == "DIV" or (name == "CALL" and step.target < 0):
                return [(at + 1, mask)]
            for operand in step.operands:
                if re.fullmatch(r"!?U?P\w+", operand):
                    active = active & self._predicate(operand, mask)
            return [(step.target, active), (at + 1, mask & ~active)]
        if name == "BRX":
            return [*self._jump(step, active), (at + 1, mask & ~active)]
        if name == "EXIT":
            return [(at + 1, mask & ~active)]
        if name in SPACES or name == "LDGSTS":
            self._memory(step, name, active)
        elif name == "LDGDEPBAR":
            self.sent.append((int(self.per_warp.max(initial=0)), self.trace.rounds) if "copies" in self.waiting else _NONE)
            self.waiting.discard("copies")
        elif name == "DEPBAR":
            self._arrived(int(step.operands[1], 0))
        elif name not in IDLE:
            self._compute(step, active)
        return [(at + 1, mask)]

    def _compute(self, step: Step, active: Any) -> None:
        for operand in step.operands[1:]:
            self._await(operand)
        self.active = active
        compute = INTEGER.get(step.opcode[0])
        results = compute(self, step.opcode[1:], step.operands) if compute else {name: Known(None, None) for name in widths(step.opcode, step.operands[:1])}
        for name, value in results.items():
            self._write(name, value, active)

    def _arrived(self, last: int) -> None:
        """Wait for all groups of copies but so many of the last."""
        awaited = max(self.sent[: len(self.sent) - last], default=_NONE)
        self.sent = self.sent[len(self.sent) - last :]
        if awaited == _NONE:
            return
        if last:
            self.trace.ahead[self.trace.rounds] = (int(self.per_warp.max(initial=0)) - awaited[0], self.trace.rounds - awaited[1])
            self.trace.rounds += 1
        else:
            self._wait()

    def _wait(self) -> None:
        """One round, in which all arrives that is on its way."""
        self.trace.rounds += 1
        self.waiting.clear()
        self.sent = [_NONE] * len(self.sent)

    def _await(self, operand: str) -> None:
        if not self.waiting:
            return
        match = re.search(r"R(\d+)", operand)
        if match and f"R{match[1]}" in self.waiting:
            self._wait()

    def _write(self, name: str, value: Known, active: Any) -> None:
        if name in ("RZ", "URZ", "PT", "UPT"):
            return
        self.waiting.discard(name)
        if name.startswith("U"):  # one register for a whole warp
            active = np.repeat(active.reshape(-1, WARP).any(1), WARP)
        whole = bool(active.all())
        old = self.registers.get(name)
        if old is not None and old.bits != ALL_BITS == value.bits:  # of the other lanes a few bits were known: nothing is kept of them
            old = None
        if whole or old is None or (old.known is None and value.known is None):
            self.registers[name] = value if whole or value.known is None else Known(value.value, value.mask(self.lanes) & active)
            return
        data = np.where(active, 0 if value.known is None else value.value, 0 if old.known is None else old.value)
        self.registers[name] = Known(data, np.where(active, value.mask(self.lanes), old.mask(self.lanes)), value.bits & old.bits)

    def _predicate(self, text: str, needed: Any) -> Any:
        value = self.read(text)
        if value.known is None or not value.mask(self.lanes)[needed].all():
            raise BuildFailed(f"{self.kernel.name}: a branch depends on data")
        return np.broadcast_to(value.value, (self.lanes,))

    def read(self, text: str) -> Known:
        """The value of a register, predicate or constant operand; sign, complement and negation applied."""
        text = text.removesuffix(".reuse")
        if text[0] == "!":
            inner = self.read(text[1:])
            return inner if inner.known is None else Known(~inner.value, inner.known)
        if text[0] in "-~" and not text[1].isdigit():
            inner = self.read(text[1:])
            if inner.known is None:
                return inner
            return Known(((~inner.value).astype(np.uint64) + np.uint64(text[0] == "-")).astype(np.uint32), inner.known)
        if text in ("PT", "UPT"):
            return Known(np.bool_(True), True)
        if text in ("RZ", "URZ", "SRZ"):
            return Known(np.uint32(0), True)
        if re.fullmatch(r"-?0x[0-9a-f]+|-?\d+", text):
            return Known(np.uint32(int(text, 0) & 0xFFFFFFFF), True)
        constant = re.fullmatch(r"c\[0x(\w+)\]\[(?:(U?R\w+)\+?)?(?:(-?0x\w+))?\]", text)
        if constant:
            return self._constant(int(constant[1], 16), constant[2], int(constant[3] or "0", 16))
        if text in self.special:
            return Known(self.special[text], True)
        if text.startswith("SR_"):
            return Known(np.uint32(0), text == "SR_CgaCtaId")
        whole = self.registers.get(text, Known(None, None))
        return whole if whole.bits == ALL_BITS else Known(None, None)

    def partial(self, text: str) -> Known:
        """As `read`, where not every bit need be known: predicates are kept in bits of a register whose others are anything."""
        kept = self.registers.get(text.removesuffix(".reuse"))
        return kept if kept is not None and kept.bits != ALL_BITS else self.read(text)

    def pair(self, text: str) -> tuple[Known, Known]:
        """The low and high word of a 64-bit operand."""
        text = text.removesuffix(".reuse")
        constant = re.fullmatch(r"(c\[0x\w+\]\[)(0x\w+)\]", text)
        if constant:
            return self.read(text), self.read(f"{constant[1]}{int(constant[2], 16) + 4:#x}]")
        register = re.fullmatch(r"(U?R)(\d+)", text)
        return (self.read(text), self.read(f"{register[1]}{int(register[2]) + 1}")) if register else (self.read(text), Known(np.uint32(0), True))

    def _constant(self, bank: int, register: str | None, offset: int) -> Known:
        if bank == 0:
            return Known(np.uint32(self.constants.get(offset, 0)), True)
        table = np.frombuffer(self.kernel.constants.get(bank, b""), np.uint32)
        index = self.read(register) if register else Known(np.uint32(0), True)
        if not len(table) or index.known is None:
            return Known(None, None)
        return Known(table[np.minimum((index.value.astype(np.int64) + offset) // 4, len(table) - 1)], index.known)

    def _jump(self, step: Step, active: Any) -> list[tuple[int, Any]]:
        """BRX Rx offset: to the address in Rx (offset undoes what the processor adds); instructions take 16 bytes."""
        register = step.operands[0].split()[0]
        value = self.read(register)
        if value.known is None or not value.mask(self.lanes)[active].all():
            raise BuildFailed(f"{self.kernel.name}: a branch depends on data")
        places = np.broadcast_to(value.value, (self.lanes,)) // 16
        return [(int(place), active & (places == place)) for place in np.unique(places[active])]

    def _memory(self, step: Step, name: str, active: Any) -> None:
        spots = [operand for operand in step.operands if ADDRESS.search(operand)]
        size = next((int(part) // 8 for part in reversed(step.opcode) if part in ("64", "128")), 4)
        size = next((n for part, n in (("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1), ("16", 2)) if part in step.opcode), size)
        for operand in step.operands:
            self._await(operand)
        if name == "LDGSTS":  # zeros where its predicate is false
            self._transfer("STS", "shared", self._address(spots[0], active), size, active)
            for operand in step.operands[2:]:
                active = active & self._predicate(operand, active)
            self._transfer("LDG", "global", self._address(spots[1], active), size, active)
            self.waiting.add("copies")
            return
        if SPACES[name] == "local":
            self._local(name, spots[0], [o for o in step.operands if o != spots[0]], size, active)
            return
        if active.any():
            self._transfer(name, SPACES[name], self._address(spots[0], active), size, active)
        if name.startswith("LD"):
            filled = widths((name, str(max(32, size * 8))), step.operands[:1])
            for register in filled:
                self._write(register, Known(None, None), active)
            if name == "LDG":
                self.waiting.update(filled)

    def _local(self, name: str, spot: str, data: Sequence[str], size: int, active: Any) -> None:
        """Spilled registers: kept by the text of their address, which is a constant from the frame."""
        for index, register in enumerate(widths((name, str(max(32, size * 8))), data)):
            place = f"{spot}.{index}"
            if name == "STL":
                self._write(place, self.registers.get(register, Known(None, None)), active)
            else:
                self._write(register, self.registers.get(place, Known(None, None)), active)

    def _address(self, text: str, active: Any) -> Any:
        """Bytes, as int64 by lane, of [R1.64+UR4+0x10] and its like."""
        inner, total = ADDRESS.search(text)[1], np.zeros(self.lanes, np.int64)  # type: ignore[index]
        for part in inner.replace("+-", "+ -").split("+"):
            register, _, scale = part.strip().partition(".")
            if not re.match(r"U?R", register):
                total += int(register, 16)
                continue
            low, high = self.pair(register) if scale in ("64", "U64") else (self.read(register), Known(np.uint32(0), True))
            for half in (low, high):
                if half.known is None or not half.mask(self.lanes)[active].all():
                    raise BuildFailed(f"{self.kernel.name}: an address depends on data: {text}")
            times = int(scale[1:]) if re.fullmatch(r"X\d+", scale) else 1
            wide = scale in ("64", "U64")
            total += (low.value.astype(np.int64) if wide else low.value.astype(np.int32).astype(np.int64) * times) + (high.value.astype(np.int64) << 32)
        return total

    def _transfer(self, name: str, space: str, address: Any, size: int, active: Any) -> None:
        """Count the wavefronts of one access, and remember which sectors it touched."""
        if not active.any():
            return
        self.trace.wavefronts[name] += wavefronts(address, size, active, lines=space == "global")
        if name == "LDG":
            self.loaded.append(np.unique(address[active] // 32 * self.trace.blocks + self.block[active]))
        elif space == "global":
            warp = np.flatnonzero(active) // WARP
            self.trace.sectors["store"] += len(np.unique(address[active] // 32 * len(self.per_warp) + warp))
            self.words.append((address[active, None] + np.arange(0, size, 2)).ravel())


def _parameters(kernel: KernelFacts, arguments: Sequence[int]) -> dict[int, int]:
    """Words of constant bank 0: pointers 2^36 bytes apart, then the int parameters in order."""
    words, numbers = {}, iter(arguments)
    for index, (offset, size) in enumerate(sorted(kernel.parameters)):
        value = (index + 1) << 36 if size == 8 else next(numbers, 1)
        for i in range(size // 4):
            words[offset + 4 * i] = value >> (32 * i) & 0xFFFFFFFF
    return words
