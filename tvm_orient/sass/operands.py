"""The operands of SASS as values that are known in part: the registers of all lanes, special registers, constants, addresses.

Integers are known; what is loaded from memory, and every float, is not. Nothing is guessed: where a branch or an address would need an
unknown value, that is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BuildFailed
from .bank_conflicts import WARP
from .cubin import KernelFacts
from .decode import ADDRESS, CONSTANT, SINKS, high_word
from .known import ALL_BITS, NOTHING_KNOWN, U32, Known

_NUMBER = re.compile(r"-?0x[0-9a-f]+|-?\d+")
_POINTER_STEP = 1 << 36  # bytes between the arrays that pointers point to: far enough that no two of them meet
_ZERO = Known(U32(0), True)
_TRUE = Known(np.bool_(True), True)


def parameter_words(kernel: KernelFacts, arguments: Sequence[int]) -> dict[int, int]:
    """Return the words of constant bank 0 by their place in bytes: pointers 2^36 bytes apart, the int parameters in order, 1 for those not given."""
    words, numbers = {}, iter(arguments)
    for index, (offset, size) in enumerate(sorted(kernel.parameters)):
        value = (index + 1) * _POINTER_STEP if size == 8 else next(numbers, 1)
        for i in range(size // 4):
            words[offset + 4 * i] = value >> (32 * i) & 0xFFFFFFFF
    return words


class KnownOperands:
    """Registers of lanes side by side, each with what is known of it, and how the operands of an instruction are read from them.

    Attributes:
        lanes: how many lanes there are: whole warps of 32.
        active: (lanes,) bool, those that execute the current instruction; `alu.INTEGER` reads it.
    """

    def __init__(self, kernel: KernelFacts, lanes: int, special: dict[str, Any], arguments: Sequence[int]) -> None:
        """Start with no register known.

        Args:
            kernel: its constants and parameters are read.
            lanes: a multiple of 32.
            special: (lanes,) uint32 of each special register that is known, such as "SR_TID.X".
            arguments: the values of the kernel's int parameters in order.
        """
        self.lanes = lanes
        self.active: Any = None
        self._kernel = kernel
        self._special = special
        self._constants = parameter_words(kernel, arguments)
        self._registers: dict[str, Known] = {}

    def held(self, name: str) -> Known:
        """Return what a register holds, with those of its bits that are known."""
        return self._registers.get(name, NOTHING_KNOWN)

    def write(self, name: str, value: Known, active: Any) -> None:
        """Put a value into a register for the lanes of active, (lanes,) bool; other lanes keep what they have."""
        if name in SINKS:
            return
        if name.startswith("U"):  # one register for a whole warp
            active = np.repeat(active.reshape(-1, WARP).any(1), WARP)
        whole = bool(active.all())
        old = self._registers.get(name)
        if old is not None and old.bits != ALL_BITS == value.bits:  # of the other lanes a few bits were known: nothing is kept of them
            old = None
        if whole or old is None or (old.known is None and value.known is None):
            self._registers[name] = value if whole or value.known is None else Known(value.value, value.mask(self.lanes) & active)
            return
        data = np.where(active, 0 if value.known is None else value.value, 0 if old.known is None else old.value)
        self._registers[name] = Known(data, np.where(active, value.mask(self.lanes), old.mask(self.lanes)), value.bits & old.bits)

    def read(self, text: str) -> Known:
        """Return the value of a register, a predicate, a number or a constant; sign, complement and negation are applied."""
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
            return _TRUE
        if text in ("RZ", "URZ", "SRZ"):
            return _ZERO
        if _NUMBER.fullmatch(text):
            return Known(U32(int(text, 0) & 0xFFFFFFFF), True)
        constant = CONSTANT.fullmatch(text)
        if constant:
            return self._constant(int(constant[1], 16), constant[2], int(constant[3] or "0", 16))
        if text in self._special:
            return Known(self._special[text], True)
        if text.startswith("SR_"):
            return Known(U32(0), text == "SR_CgaCtaId")  # no kernel of ours is launched in clusters
        whole = self.held(text)
        return whole if whole.bits == ALL_BITS else NOTHING_KNOWN

    def partial(self, text: str) -> Known:
        """Return the same as `read`, also where only some bits are known: compilers keep predicates in bits of a register whose others are anything."""
        kept = self._registers.get(text.removesuffix(".reuse"))
        return kept if kept is not None and kept.bits != ALL_BITS else self.read(text)

    def pair(self, text: str) -> tuple[Known, Known]:
        """Return the low and the high word of a 64-bit operand."""
        return self.read(text), self.read(high_word(text))

    def branch_value(self, text: str, needed: Any) -> Any:
        """Return (lanes,) bool or uint32: the predicate or register that a branch goes by, which the lanes of needed must know.

        Raises:
            BuildFailed: one of them does not.
        """
        value = self.read(text)
        if value.known is None or not value.mask(self.lanes)[needed].all():
            raise BuildFailed(f"{self._kernel.name}: a branch depends on data")
        return np.broadcast_to(value.value, (self.lanes,))

    def address(self, text: str, needed: Any) -> Any:
        """Return (lanes,) int64: the bytes that [R1.64+UR4+0x10] and its like stand for, of which the lanes of needed must know every part.

        Raises:
            BuildFailed: one of them does not.
        """
        inner, total = ADDRESS.search(text)[1], np.zeros(self.lanes, np.int64)  # type: ignore[index]
        for part in inner.replace("+-", "+ -").split("+"):
            register, _, scale = part.strip().partition(".")
            if not re.match(r"U?R", register):
                total += int(register, 16)
                continue
            wide = scale in ("64", "U64")
            low, high = self.pair(register) if wide else (self.read(register), _ZERO)
            for half in (low, high):
                if half.known is None or not half.mask(self.lanes)[needed].all():
                    raise BuildFailed(f"{self._kernel.name}: an address depends on data: {text}")
            times = int(scale[1:]) if re.fullmatch(r"X\d+", scale) else 1
            total += (low.value.astype(np.int64) if wide else low.value.astype(np.int32).astype(np.int64) * times) + (high.value.astype(np.int64) << 32)
        return total

    def _constant(self, bank: int, register: str | None, offset: int) -> Known:
        """Return a word of a constant bank, at offset bytes or at a register beside it; bank 0 has the parameters, 0 where none of them lies."""
        if bank == 0:
            return Known(U32(self._constants.get(offset, 0)), True)
        table = np.frombuffer(self._kernel.constants.get(bank, b""), np.uint32)
        index = self.read(register) if register else _ZERO
        if not len(table) or index.known is None:
            return NOTHING_KNOWN
        return Known(table[np.minimum((index.value.astype(np.int64) + offset) // 4, len(table) - 1)], index.known)
