"""The integer half of SASS's arithmetic, by opcode, on uint32 arrays: as much of it as addresses, counters and predicates need.

The rules are read from disassembly, and operands keep nvdisasm's order. Anything else gives an unknown value, never a guess. Each function
of `INTEGER` takes where operands are read, the parts of the opcode after the first, and the operands (`r`, `parts`, `o`); it returns
the value of each register and predicate that the instruction writes.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from .bank_conflicts import WARP
from .decode import next_register, written_registers
from .known import ALL_BITS, NOTHING_KNOWN, U32, Known, apply_known, by_bits


class Reader(Protocol):
    """Where operands are read: `operands.KnownOperands`, or `lane_operands.LaneOperands`.

    Attributes:
        active: (lanes,) bool, those that execute the instruction.
    """

    active: Any

    def read(self, text: str) -> Known:
        """Return a word or a predicate, modifiers applied."""

    def partial(self, text: str) -> Known:
        """Return the same, also where only some bits are known."""

    def pair(self, text: str) -> tuple[Known, Known]:
        """Return the low and the high word of a 64-bit operand."""


_Results = dict[str, Known]  # by register or predicate
_Compute = Callable[[Reader, Sequence[str], Sequence[str]], _Results]
_PREDICATES = 7  # of a lane, beside the one that is always true


def _is_predicate(text: str) -> bool:
    """Return whether an operand is a predicate, negated or not."""
    return re.fullmatch(r"!?U?P[T\d]", text) is not None


def _wide(value: Any) -> Any:
    """Return words as uint64."""
    return np.asarray(value).astype(np.uint64)


def _signed(value: Any) -> Any:
    """Return words as int64 by their sign."""
    return np.asarray(value).astype(np.int32).astype(np.int64)


def _split(total: Any) -> tuple[Any, Any]:
    """Return the low and the high words of uint64."""
    return total.astype(U32), (total >> np.uint64(32)).astype(U32)


def _move(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """MOV d, a and its like: copies a word, or with 64 a pair."""
    if "64" in parts:
        low, high = r.pair(o[1])
        return {o[0]: low, next_register(o[0]): high}
    return {o[0]: r.read(o[1])}


def _special(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """CS2R d, special: writes two registers unless the opcode says 32."""
    value = r.read(o[1])
    return {o[0]: value} if "32" in parts else {o[0]: value, next_register(o[0]): value}


def _imad(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """IMAD d, a, b, c, [carry in]: a * b + c; WIDE keeps both words, HI the high one."""
    signed = "U32" not in parts
    a, b = r.read(o[1]), r.read(o[2])
    carry = [p for p in o[3:] if _is_predicate(p)]

    def product(x: Any, y: Any) -> Any:
        return (_signed(x) * _signed(y)).astype(np.uint64) if signed else _wide(x) * _wide(y)

    if "WIDE" in parts or "HI" in parts:
        low, high = r.pair(o[3])
        total = apply_known(lambda x, y, lo, hi: product(x, y) + _wide(lo) + (_wide(hi) << np.uint64(32)), a, b, low, high)
        lower, upper = (NOTHING_KNOWN, NOTHING_KNOWN) if total.known is None else (Known(part, total.known) for part in _split(total.value))
        return {o[0]: lower, next_register(o[0]): upper} if "WIDE" in parts else {o[0]: upper}
    more = r.read(carry[0]) if "X" in parts and carry else Known(U32(0), True)
    return {o[0]: apply_known(lambda x, y, c, m: (_wide(x) * _wide(y) + _wide(c) + _wide(m)).astype(U32), a, b, r.read(o[3]), more)}


def _iadd3(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """IADD3 d, [carry out, [second]], a, b, c, [carry in, [second]]: a + b + c."""
    at = next(i for i in range(1, len(o)) if not _is_predicate(o[i]))
    inputs = [r.read(text) for text in o[at : at + 3]]
    negated = [text[0] == "-" for text in o[at : at + 3]]
    carries = [r.read(text) for text in o[at + 3 :]] if "X" in parts else []
    carries = [c for c, text in zip(carries, o[at + 3 :], strict=False) if text not in ("!PT", "!UPT")]

    def total(*values: Any) -> Any:
        """Return the sum in 64 bits; a negated operand adds 2^32 - x, also where x is 0, so that the carry is the processor's."""
        result = _wide(0)
        for value, minus in itertools.zip_longest(values, negated, fillvalue=False):
            result = result + _wide(value) + (_wide(np.asarray(value) == 0) << np.uint64(32) if minus else np.uint64(0))
        return result

    whole = apply_known(total, *inputs, *carries)
    if whole.known is None:
        return dict.fromkeys(o[:at], NOTHING_KNOWN)
    low, high = _split(whole.value)
    results = {o[0]: Known(low, whole.known)}
    for text in o[1:at]:
        results[text] = Known(high > 0, whole.known)
    return results


def _add(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """IADD d, a, b: a + b."""
    return {o[0]: apply_known(lambda a, b: (_wide(a) + _wide(b)).astype(U32), r.read(o[1]), r.read(o[2]))}


def _lea(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """LEA d, [carry out], a, b, [c], s, [carry in]: (a << s) + b; HI takes the high word of (c:a) << s, SX32 extends a by its sign."""
    at = next(i for i in range(1, len(o)) if not _is_predicate(o[i]))
    rest = [text for text in o[at:] if not _is_predicate(text)]
    a, b, shift = r.read(rest[0]), r.read(rest[1]), r.read(rest[-1])
    carries = [r.read(text) for text in o[at:] if _is_predicate(text) and "X" in parts]
    carry = carries[0] if carries else Known(U32(0), True)
    upper = r.read(rest[2]) if "HI" in parts and len(rest) > 3 else Known(U32(0), True)

    def value(x: Any, y: Any, s: Any, c: Any, m: Any) -> Any:
        wide = _wide(x) + (_wide(c) << np.uint64(32))
        if "SX32" in parts:
            wide = _signed(x).astype(np.uint64)
        moved = wide << _wide(s)
        word = moved >> np.uint64(32) if "HI" in parts else moved
        return _wide(word.astype(U32)) + _wide(y) + _wide(m)

    total = apply_known(value, a, b, shift, upper, carry)
    if total.known is None:
        return dict.fromkeys(o[:at], NOTHING_KNOWN)
    low, high = _split(total.value)
    return {o[0]: Known(low, total.known), **{text: Known(high > 0, total.known) for text in o[1:at]}}


def _shf(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """SHF d, low, shift, high: a funnel shift; HI takes the high word of the result."""
    low, shift, high = r.read(o[1]), r.read(o[2]), r.read(o[3])

    def value(lo: Any, s: Any, hi: Any) -> Any:
        s = _wide(s) & np.uint64(63 if "U64" in parts or "S64" in parts else 31)
        if "HI" in parts and "R" in parts:
            return (_signed(hi) >> s.astype(np.int64)).astype(U32) if "S32" in parts or "S64" in parts else (_wide(hi) >> s).astype(U32)
        both = _wide(lo) + (_wide(hi) << np.uint64(32))
        if "R" in parts:
            return (both >> s).astype(U32)
        return ((both << s) >> np.uint64(32)).astype(U32) if "HI" in parts else (both << s).astype(U32)

    return {o[0]: apply_known(value, low, shift, high)}


def _logic(lut: int, a: Any, b: Any, c: Any) -> Any:
    """Return the function of three bits that a table of eight entries gives, for every bit of the words."""
    result = U32(0)
    for bit in range(8):
        if lut >> bit & 1:
            result = result | ((a if bit & 4 else ~a) & (b if bit & 2 else ~b) & (c if bit & 1 else ~c))
    return result


def _lop3(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """LOP3 [P], d, a, b, c, table, predicate: any function of three bits; P says whether the result is not zero."""
    at = 2 if _is_predicate(o[0]) else 1  # a predicate that says "not zero" may stand before the result
    lut = int(o[at + 3], 16)
    value = by_bits(lambda a, b, c: _logic(lut, a, b, c), *(r.partial(text) for text in o[at : at + 3]))
    outs: _Results = {o[at - 1]: value}
    if at == 2:
        outs[o[0]] = apply_known(lambda v: np.asarray(v) != 0, value) if value.bits == ALL_BITS else NOTHING_KNOWN
    return outs


def _plop3(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """PLOP3 P, Q, a, b, c, table, ...: any function of three predicates."""
    lut = int(o[5], 16)

    def value(a: Any, b: Any, c: Any) -> Any:
        index = np.asarray(a, np.int64) * 4 + np.asarray(b, np.int64) * 2 + np.asarray(c, np.int64)
        return (lut >> index & 1).astype(bool)

    one = apply_known(value, *(r.read(text) for text in o[2:5]))
    return {o[0]: one, o[1]: one} if o[1] not in ("PT", "UPT") else {o[0]: one}


_COMPARE = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip


def _isetp(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """ISETP P, Q, a, b, with, [how the low words compare, for EX]: P = (a cmp b) op with; Q = (not (a cmp b)) op with."""
    cast, compare = _wide if "U32" in parts else _signed, _COMPARE[parts[0]]
    if "EX" in parts:
        first = apply_known(lambda a, b, low: np.where(cast(a) == cast(b), low, compare(cast(a), cast(b))), r.read(o[2]), r.read(o[3]), r.read(o[5]))
    else:
        first = apply_known(lambda a, b: compare(cast(a), cast(b)), r.read(o[2]), r.read(o[3]))
    other = r.read(o[4])
    join = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}[next(p for p in parts[1:] if p in ("AND", "OR", "XOR"))]
    return {o[1]: apply_known(lambda a, b: join(~a, b), first, other), o[0]: apply_known(join, first, other)}


def _select(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """SEL d, a, b, P: a where P, else b."""
    return {o[0]: apply_known(lambda p, a, b: np.asarray(np.where(p, a, b)).astype(U32), r.read(o[3]), r.read(o[1]), r.read(o[2]))}


def _minmax(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """IMNMX d, a, b, P: the lesser where P; VIADDMNMX d, a, b, c, P compares a + b with c."""
    cast = _wide if "U32" in parts else _signed
    inputs = [r.read(text) for text in o[1:-1]]

    def value(p: Any, *v: Any) -> Any:
        a, b = (v[0], v[1]) if len(v) == 2 else ((_wide(v[0]) + _wide(v[1])).astype(U32), v[2])
        return np.where(p, np.minimum(cast(a), cast(b)), np.maximum(cast(a), cast(b))).astype(U32)

    return {o[0]: apply_known(value, r.read(o[-1]), *inputs)}


def _half(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """HFMA2 d, -RZ, RZ, x, y: how a constant of two halves is made. Any other HFMA2 computes data."""
    if len(o) == 5 and {text.lstrip("-") for text in o[1:3]} == {"RZ"}:
        high, low = (int(np.float16(float(text)).view(np.uint16)) for text in o[3:5])
        return {o[0]: Known(U32(high << 16 | low), True)}
    return dict.fromkeys(written_registers(["HFMA2"], o[:1]), NOTHING_KNOWN)


def _prmt(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """PRMT d, a, selector, b: bytes of (b:a), picked by the nibbles of the selector; 8 in a nibble asks for the byte's sign eight times."""
    if parts or not o[2].startswith("0x"):
        return {o[0]: NOTHING_KNOWN}
    selector = int(o[2], 16)

    def value(a: Any, b: Any) -> Any:
        both = _wide(a) + (_wide(b) << np.uint64(32))
        result = np.zeros_like(both)
        for i in range(4):
            byte = (both >> np.uint64(8 * (selector >> (4 * i) & 7))) & np.uint64(255)
            if selector >> (4 * i) & 8:
                byte = (byte >> np.uint64(7)) * np.uint64(255)
            result = result | (byte << np.uint64(8 * i))
        return result.astype(U32)

    return {o[0]: apply_known(value, r.read(o[1]), r.read(o[3]))}


def _dot(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """IDP.2A d, a, b, c: both halves of a times two bytes of b, unsigned, plus c."""
    if (parts[0], *parts[2:]) != ("2A", "U16", "U8"):
        return {o[0]: NOTHING_KNOWN}
    first = 16 if parts[1] == "HI" else 0

    def value(a: Any, b: Any, c: Any) -> Any:
        low, high = _wide(b) >> np.uint64(first) & np.uint64(255), _wide(b) >> np.uint64(first + 8) & np.uint64(255)
        return ((_wide(a) & np.uint64(0xFFFF)) * low + (_wide(a) >> np.uint64(16)) * high + _wide(c)).astype(U32)

    return {o[0]: apply_known(value, r.read(o[1]), r.read(o[2]), r.read(o[3]))}


def _abs(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """IABS d, a: the magnitude of a."""
    return {o[0]: apply_known(lambda a: np.abs(_signed(a)).astype(U32), r.read(o[1]))}


def _to_predicates(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """R2P PR, a, mask: predicate i is bit i, where the mask has it."""
    mask, value = int(o[2], 16), r.read(o[1])
    return {f"P{i}": apply_known(lambda v, i=i: (np.asarray(v) >> U32(i) & U32(1)) != 0, value) for i in range(_PREDICATES) if mask >> i & 1}


def _from_predicates(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """P2R d, PR, a, mask: bits of the mask from the predicates, the others from a; UP2UR takes those of the whole warp."""
    mask, kind = int(o[3], 16), o[1].removesuffix("R")
    value = apply_known(lambda a: np.asarray(a) & U32(~mask & 0xFFFFFFFF), r.read(o[2]))
    for i in range(_PREDICATES):
        if mask >> i & 1:
            value = apply_known(lambda v, p, i=i: v | (np.asarray(p).astype(U32) << U32(i)), value, r.read(f"{kind}{i}"))
    return {o[0]: value}


def _vote(r: Reader, parts: Sequence[str], o: Sequence[str]) -> _Results:
    """VOTE.ALL and VOTE.ANY p, q: whether q holds for all or any of the lanes of a warp that execute it."""
    value = r.read(o[1])
    if value.known is None or parts[0] not in ("ALL", "ANY"):
        return {o[0]: NOTHING_KNOWN}
    active = r.active.reshape(-1, WARP)
    votes = np.broadcast_to(value.value, r.active.shape).reshape(-1, WARP)
    agreed = (votes | ~active).all(1) if parts[0] == "ALL" else (votes & active).any(1)
    known = (np.broadcast_to(value.known, r.active.shape).reshape(-1, WARP) | ~active).all(1)
    return {o[0]: Known(np.repeat(agreed, WARP), np.repeat(known, WARP))}


INTEGER: dict[str, _Compute] = {
    "S2R": _move, "S2UR": _move, "CS2R": _special, "MOV": _move, "UMOV": _move, "R2UR": _move, "LDC": _move, "ULDC": _move, "LDCU": _move,
    "IMAD": _imad, "UIMAD": _imad, "IADD3": _iadd3, "UIADD3": _iadd3, "VIADD": _add, "IADD": _add, "UIADD": _add, "LEA": _lea, "ULEA": _lea,
    "SHF": _shf, "USHF": _shf, "LOP3": _lop3, "ULOP3": _lop3, "PLOP3": _plop3, "UPLOP3": _plop3, "ISETP": _isetp, "UISETP": _isetp, "SEL": _select,
    "USEL": _select, "IMNMX": _minmax, "VIMNMX": _minmax, "UIMNMX": _minmax, "VIADDMNMX": _minmax, "HFMA2": _half, "PRMT": _prmt, "UPRMT": _prmt, "IABS": _abs,
    "IDP": _dot, "R2P": _to_predicates, "VOTE": _vote, "VOTEU": _vote, "P2R": _from_predicates, "UP2UR": _from_predicates,
}  # fmt: skip
