"""Registers of lanes side by side, and how the operands of SASS are read from them: decoded once by their text, as words or as numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import BuildFailed
from .bank_conflicts import WARP
from .checked_memory import Fault
from .cubin import KernelFacts
from .decode import Step
from .float_alu import widened
from .known import Known

SINKS = ("RZ", "URZ", "PT", "UPT")  # what is written there is lost
ADDRESS = re.compile(r"\[([^\[\]]*)\]$")
_NUMBER = re.compile(r"-?0x[0-9a-f]+|-?\d+")
_CONSTANT = re.compile(r"c\[0x(\w+)\]\[(?:(U?R\w+)\+?)?(?:(-?0x\w+))?\]")
_HALF = re.compile(r"(.*)\.(H0_H0|H1_H1|H1_H0)")
_IN_MEMORY = re.compile(r"U?R|c\[")
_PICKY = {"LOP3", "P2R", "PRMT"}  # opcodes that may take some bits of a register that nobody wrote as a whole
_Reader = Callable[[], Any]


class Lanes:
    """Values by register, and which lanes wrote them; active: the lanes that execute the instruction at `at`.

    Attributes:
        special: values of special registers.
        live: lanes that have not come to their end.
    """

    def __init__(
        self, kernel: KernelFacts, code: list[Step], constants: dict[int, int], special: dict[str, Any], exists: Any, random: np.random.Generator
    ) -> None:
        self.kernel, self.code, self.random, self.special = kernel, code, random, special
        self.live = self.active = exists
        self.at = 0
        self._constants = {
            bank: dict(zip(range(0, len(held), 4), np.frombuffer(held, np.uint32).tolist(), strict=False)) for bank, held in kernel.constants.items()
        }
        self._constants[0] = constants
        self._registers: dict[str, Any] = {}
        self._written: dict[str, Any] = {}  # True, or which lanes
        self._readers: dict[tuple[str, str], _Reader] = {}

    def write(self, name: str, value: Any, active: Any, whole: bool) -> None:
        """Put a value into a register for these lanes; whole: they are all that live."""
        if name in SINKS:
            return
        if name[0] == "U" and not whole:  # one register for a whole warp
            active = np.repeat(active.reshape(-1, WARP).any(1), WARP)
            whole = bool((active | ~self.live).all())
        if whole:
            self._registers[name], self._written[name] = value, True
            return
        self._registers[name] = np.where(active, value, self._raw(name))
        before = self._written.get(name)
        if before is not True:
            self._written[name] = active if before is None else active | before

    def forget(self, name: str, lanes: Any) -> None:
        """From now on nothing is in a register of these lanes."""
        if name not in SINKS:
            self._written[name] = ~lanes & (True if self._written[name] is True else self._written[name])

    def _raw(self, name: str) -> Any:
        """What is in a register, written or not."""
        if name not in self._registers:
            predicate = name.lstrip("U").startswith("P")
            self._registers[name] = self.random.integers(0, 2 if predicate else 1 << 32, len(self.live), np.uint64).astype(bool if predicate else np.uint32)
        return self._registers[name]

    def _decoded(self, kind: str, text: str, make: Callable[[str], _Reader]) -> Any:
        reader = self._readers.get((kind, text))
        if reader is None:
            reader = self._readers[kind, text] = make(text)
        return reader()

    def bits(self, text: str) -> Any:
        """A word of an operand, or a predicate; sign, complement and negation applied."""
        return self._decoded("bits", text, self._reader)

    truth = bits

    def read(self, text: str) -> Known:
        """The same for integer instructions."""
        return Known(self._decoded("bits", text, self._reader), True)

    partial = read

    def pair(self, text: str) -> tuple[Known, Known]:
        """The low and the high word of a 64-bit operand."""
        return self.read(text), Known(self._decoded("high", text, lambda one: self._reader(_high(one))), True)

    def single(self, text: str) -> Any:
        """An operand as float32."""
        return self._decoded("single", text, lambda one: self._signed(one, self._single))

    def double(self, text: str) -> Any:
        """An operand as float64."""
        return self._decoded("double", text, lambda one: self._signed(one, self._double))

    def halves(self, text: str, bfloat: bool) -> tuple[Any, Any]:
        """The low and the high half of an operand as float32; both the same where it says which."""
        low, high = (
            self._decoded(f"{'bfloat' if bfloat else 'half'} {i}", text, lambda one, i=i: self._signed(one, lambda plain: self._half(plain, i, bfloat)))  # type: ignore[misc]
            for i in (0, 1)
        )
        return low, high

    def address(self, text: str) -> Any:
        """Bytes, as int64 by lane, of [R1.64+UR4+0x10] and its like."""
        return np.broadcast_to(self._decoded("address", text, self._place), self.live.shape)

    # ---- decoding -------------------------------------------------------------------------------

    def _register(self, name: str) -> _Reader:
        def value() -> Any:
            written = self._written.get(name)
            if written is not True and self.code[self.at].opcode[0] not in _PICKY and (written is None or (self.active & ~written).any()):
                raise Fault(f"reads {name}, which nothing wrote", self.at)
            return self._raw(name)

        return value

    def _reader(self, text: str) -> _Reader:
        """How an operand that is no number of floating point is read, decoded once."""
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
        constant = _CONSTANT.fullmatch(text)
        if constant:
            return self._constant(int(constant[1], 16), constant[2], int(constant[3] or "0", 16))
        fixed: Any = None
        if text in ("PT", "UPT"):
            fixed = np.bool_(True)
        elif text in ("RZ", "URZ"):
            fixed = np.uint32(0)
        elif _NUMBER.fullmatch(text):
            fixed = np.uint32(int(text, 0) & 0xFFFFFFFF)
        elif text in self.special:
            fixed = self.special[text]
        elif re.fullmatch(r"U?[RP]\d+", text):
            return self._register(text)
        else:
            raise BuildFailed(f"{self.kernel.name}: the operand {text} is not followed")
        return lambda: fixed

    def _constant(self, bank: int, register: str | None, offset: int) -> _Reader:
        words = self._constants.get(bank, {})
        if register is None:
            if offset not in words:
                raise BuildFailed(f"{self.kernel.name}: constant {offset:#x} of bank {bank} is not known")
            fixed = np.uint32(words[offset])
            return lambda: fixed
        table = np.array([words.get(place, 0) for place in range(0, max(words, default=0) + 4, 4)], np.uint32)
        index = self._reader(register)
        return lambda: table[np.minimum((index().astype(np.int64) + offset) // 4, len(table) - 1)]

    def _signed(self, text: str, plain: Callable[[str], _Reader]) -> _Reader:
        text = text.removesuffix(".reuse")
        if text[0] == "-" and not (text[1].isdigit() or text[1:4] in ("INF", "QNA")):
            inner = self._signed(text[1:], plain)
            return lambda: -inner()
        if text[0] == "|":
            inner = self._signed(text.replace("|", ""), plain)
            return lambda: np.abs(inner())
        return plain(text)

    def _single(self, text: str) -> _Reader:
        if _IN_MEMORY.match(text):
            inner = self._reader(text)
            return lambda: inner().view(np.float32)
        fixed = np.float32(float(text.replace("QNAN", "nan")))
        return lambda: fixed

    def _double(self, text: str) -> _Reader:
        if _IN_MEMORY.match(text):
            low, high = self._reader(text), self._reader(_high(text))
            return lambda: (low().astype(np.uint64) | high().astype(np.uint64) << np.uint64(32)).view(np.float64)
        fixed = np.float64(float(text.replace("QNAN", "nan")))
        return lambda: fixed

    def _half(self, text: str, which: int, bfloat: bool) -> _Reader:
        if not _IN_MEMORY.match(text):
            fixed = np.float32(float((text.split() * 2)[1 - which].replace("QNAN", "nan")))
            return lambda: fixed
        named = _HALF.fullmatch(text)
        inner, part = self._reader(named[1] if named else text), named[2] if named else "H1_H0"
        shift = np.uint32(16 * (which if part == "H1_H0" else int(part == "H1_H1")))
        return lambda: widened(inner() >> shift, bfloat)

    def _place(self, text: str) -> _Reader:
        terms: list[_Reader] = []
        offset, inner = 0, ADDRESS.search(text)[1]  # type: ignore[index]
        for part in inner.replace("+-", "+ -").split("+"):
            register, _, scale = part.strip().partition(".")
            if not re.match(r"U?R", register):
                offset += int(register, 16)
            elif scale in ("64", "U64"):
                terms += [self._term(register, 1, np.uint32), self._term(_high(register), 1 << 32, np.uint32)]
            else:
                terms.append(self._term(register, int(scale[1:]) if re.fullmatch(r"X\d+", scale) else 1, np.int32))
        return lambda: sum((term() for term in terms), np.int64(offset))

    def _term(self, register: str, times: int, kind: Any) -> _Reader:
        """A register as a signed or unsigned word, so many times."""
        inner = self._reader(register)
        return lambda: inner().view(kind).astype(np.int64) * times


def _high(text: str) -> str:
    """The operand that holds the high word of a 64-bit one."""
    text = text.removesuffix(".reuse")
    constant = re.fullmatch(r"(c\[0x\w+\]\[(?:U?R\w+\+)?)(0x\w+)\]", text)
    if constant:
        return f"{constant[1]}{int(constant[2], 16) + 4:#x}]"
    register = re.fullmatch(r"(U?R)(\d+)", text)
    return f"{register[1]}{int(register[2]) + 1}" if register else "RZ"
