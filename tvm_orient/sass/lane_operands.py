"""The operands of SASS as values of lanes: decoded once by their text, then read as words, as addresses or as floating-point numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import BuildFailed
from .decode import ADDRESS, CONSTANT, high_word
from .float_alu import widened
from .known import Known
from .lane_registers import LaneRegisters
from .launch import KernelLaunch

_NUMBER = re.compile(r"-?0x[0-9a-f]+|-?\d+")
_HALF = re.compile(r"(.*)\.(H0_H0|H1_H1|H1_H0)")  # an operand of which both halves are the low one, both the high one, or each its own
_HELD = re.compile(r"U?R|c\[")  # how an operand begins that is held in a register or a constant
_Reader = Callable[[], Any]  # gives the value of an operand at the current instruction


class LaneOperands(LaneRegisters):
    """Registers of lanes, and how the operands of an instruction are read from them. It serves `alu.INTEGER` and `float_alu.FLOAT`."""

    def __init__(self, launch: KernelLaunch, special: dict[str, Any], exists: Any) -> None:
        """Start with nothing written.

        Args:
            launch: its constants are read.
            special: (lanes,) uint32, or one for all, of each special register that is followed.
            exists: (lanes,) bool, the lanes that are threads.
        """
        super().__init__(exists, launch.random)
        self._name = launch.name
        self._constants = launch.constants
        self._special = special
        self._readers: dict[tuple[str, str], _Reader] = {}

    # ---- reading --------------------------------------------------------------------------------

    def bits(self, text: str) -> Any:
        """Return a word of an operand, uint32, or a predicate, bool; sign, complement and negation are applied."""
        return self._decoded("bits", text, self._reader)

    def read(self, text: str) -> Known:
        """Return the same as a value that all lanes know, for integer instructions."""
        return Known(self._decoded("bits", text, self._reader), True)

    partial = read

    def pair(self, text: str) -> tuple[Known, Known]:
        """Return the low and the high word of a 64-bit operand."""
        return self.read(text), Known(self._decoded("high", text, lambda one: self._reader(high_word(one))), True)

    def single(self, text: str) -> Any:
        """Return an operand as float32."""
        return self._decoded("single", text, lambda one: self._signed(one, self._single))

    def double(self, text: str) -> Any:
        """Return an operand as float64."""
        return self._decoded("double", text, lambda one: self._signed(one, self._double))

    def halves(self, text: str, bfloat: bool) -> tuple[Any, Any]:
        """Return the low and the high half of an operand as float32; one of them twice where the operand says which."""
        low, high = (
            self._decoded(f"{'bfloat' if bfloat else 'half'} {i}", text, lambda one, i=i: self._signed(one, lambda plain: self._half(plain, i, bfloat)))  # type: ignore[misc]
            for i in (0, 1)
        )
        return low, high

    def address(self, text: str) -> Any:
        """Return (lanes,) int64: the bytes that [R1.64+UR4+0x10] and its like stand for."""
        return np.broadcast_to(self._decoded("address", text, self._place), self.live.shape)

    # ---- decoding -------------------------------------------------------------------------------

    def _decoded(self, kind: str, text: str, make: Callable[[str], _Reader]) -> Any:
        """Return the value of an operand; how it is read as this kind of value is made out once."""
        reader = self._readers.get((kind, text))
        if reader is None:
            reader = self._readers[kind, text] = make(text)
        return reader()

    def _reader(self, text: str) -> _Reader:
        """Return how an operand that is no floating-point number is read.

        Raises:
            BuildFailed: it is of a kind that is not followed here.
        """
        text = text.removesuffix(".reuse")
        if text[0] == "!":
            inner = self._reader(text[1:])
            return lambda: ~inner()
        if text[0] in "-~" and not text[1].isdigit():
            inner, more = self._reader(text[1:]), np.uint32(text[0] == "-")
            return lambda: ~inner() + more
        if text[0] == "|":
            inner = self._reader(text[1:-1])
            return lambda: np.abs(np.asarray(inner()).view(np.int32)).view(np.uint32)
        constant = CONSTANT.fullmatch(text)
        if constant:
            return self._constant(int(constant[1], 16), constant[2], int(constant[3] or "0", 16))
        fixed: Any = None
        if text in ("PT", "UPT"):
            fixed = np.bool_(True)
        elif text in ("RZ", "URZ"):
            fixed = np.uint32(0)
        elif _NUMBER.fullmatch(text):
            fixed = np.uint32(int(text, 0) & 0xFFFFFFFF)
        elif text in self._special:
            fixed = self._special[text]
        elif re.fullmatch(r"U?[RP]\d+", text):
            return lambda: self.value(text)
        else:
            raise BuildFailed(f"{self._name}: the operand {text} is not followed")
        return lambda: fixed

    def _constant(self, bank: int, register: str | None, offset: int) -> _Reader:
        """Return how a word of a constant bank is read, at offset bytes or at a register beside it."""
        words = self._constants.get(bank, {})
        if register is None:
            if offset not in words:
                raise BuildFailed(f"{self._name}: constant {offset:#x} of bank {bank} is not known")
            fixed = np.uint32(words[offset])
            return lambda: fixed
        table = np.array([words.get(place, 0) for place in range(0, max(words, default=0) + 4, 4)], np.uint32)
        index = self._reader(register)
        return lambda: table[np.minimum((index().astype(np.int64) + offset) // 4, len(table) - 1)]

    def _signed(self, text: str, plain: Callable[[str], _Reader]) -> _Reader:
        """Return how a floating-point operand with a sign or as a magnitude is read; plain: how the rest of its text is."""
        text = text.removesuffix(".reuse")
        if text[0] == "-" and not (text[1].isdigit() or text[1:4] in ("INF", "QNA")):
            inner = self._signed(text[1:], plain)
            return lambda: -inner()
        if text[0] == "|":
            inner = self._signed(text.replace("|", ""), plain)
            return lambda: np.abs(inner())
        return plain(text)

    def _single(self, text: str) -> _Reader:
        """Return how a float32 is read."""
        if _HELD.match(text):
            inner = self._reader(text)
            return lambda: inner().view(np.float32)
        fixed = np.float32(_number(text))
        return lambda: fixed

    def _double(self, text: str) -> _Reader:
        """Return how a float64 is read."""
        if _HELD.match(text):
            low, high = self._reader(text), self._reader(high_word(text))
            return lambda: (low().astype(np.uint64) | high().astype(np.uint64) << np.uint64(32)).view(np.float64)
        fixed = np.float64(_number(text))
        return lambda: fixed

    def _half(self, text: str, which: int, bfloat: bool) -> _Reader:
        """Return how one half of an operand is read, the low one (0) or the high one (1)."""
        if not _HELD.match(text):
            fixed = np.float32(_number((text.split() * 2)[1 - which]))
            return lambda: fixed
        named = _HALF.fullmatch(text)
        inner, part = self._reader(named[1] if named else text), named[2] if named else "H1_H0"
        shift = np.uint32(16 * (which if part == "H1_H0" else int(part == "H1_H1")))
        return lambda: widened(inner() >> shift, bfloat)

    def _place(self, text: str) -> _Reader:
        """Return how an address is read: the sum of its registers and numbers."""
        terms: list[_Reader] = []
        offset, inner = 0, ADDRESS.search(text)[1]  # type: ignore[index]
        for part in inner.replace("+-", "+ -").split("+"):
            register, _, scale = part.strip().partition(".")
            if not re.match(r"U?R", register):
                offset += int(register, 16)
            elif scale in ("64", "U64"):
                terms += [self._term(register, 1, np.uint32), self._term(high_word(register), 1 << 32, np.uint32)]
            else:
                terms.append(self._term(register, int(scale[1:]) if re.fullmatch(r"X\d+", scale) else 1, np.int32))
        return lambda: sum((term() for term in terms), np.int64(offset))

    def _term(self, register: str, times: int, kind: Any) -> _Reader:
        """Return how a register is read as a signed or unsigned word (kind), so many times."""
        inner = self._reader(register)
        return lambda: inner().view(kind).astype(np.int64) * times


def _number(text: str) -> float:
    """Return a floating-point number as nvdisasm prints it."""
    return float(text.replace("QNAN", "nan"))
