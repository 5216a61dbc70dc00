"""The floating-point half of SASS's arithmetic, by opcode, on arrays over lanes.

A fused multiply-add is rounded once: the product of two float32 is exact in float64, where the sum is taken. Denormals are kept where
an instruction may flush them, and MUFU is rounded to nearest where the hardware is off by a unit or two: both stay within what
`tolerance.tolerance` allows. The rules are read from disassembly, and operands keep nvdisasm's order. Each function of `FLOAT` takes where
operands are read, the parts of the opcode after the first, and the operands (`s`, `parts`, `o`); it returns the bits of each register,
(lanes,) uint32, and the value of each predicate, (lanes,) bool, that the instruction writes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import BuildFailed
from .bank_conflicts import WARP

_F32 = np.float32
_F64 = np.float64
_U32 = np.uint32
_ROUNDINGS = ("RP", "RM", "RZ")  # of an opcode: up, down, to zero; one that names none rounds to nearest
_HALF_BITS = _U32(16)  # bits of a half: how far the high one is shifted, and how many float32 has more than bfloat16
_LOW_HALF = _U32(0x0000FFFF)  # mask of a word's low half
_BFLOAT_NAN = _U32(0x7FFF)  # the NaN that a conversion to bfloat16 gives


class Source(Protocol):
    """Where operands are read, modifiers applied: `lane_operands.LaneOperands`.

    Attributes:
        active: (lanes,) bool, those that execute the instruction.
    """

    active: Any

    def bits(self, text: str) -> Any:
        """Return a word, uint32, or a predicate, bool."""

    def single(self, text: str) -> Any:
        """Return an operand as float32."""

    def double(self, text: str) -> Any:
        """Return an operand as float64."""

    def halves(self, text: str, bfloat: bool) -> tuple[Any, Any]:
        """Return the low and the high half of an operand as float32."""


Results = dict[str, Any]  # by register or predicate
_Compute = Callable[[Source, Sequence[str], Sequence[str]], Results]


def _bits(value: Any) -> Any:
    """Return the bits of float32, uint32."""
    return np.asarray(value, _F32).view(_U32)


def _pair(register: str, value: Any) -> Results:
    """Return a float64 as a pair of registers, the first of which is named."""
    whole = np.asarray(value, _F64).view(np.uint64)
    return {register: whole.astype(_U32), f"R{int(register[1:]) + 1}": (whole >> np.uint64(32)).astype(_U32)}


def _saturated(value: Any, parts: Sequence[str]) -> Any:
    """Return a value, clamped to 0 to 1 with NaN as 0 where the opcode says so."""
    return np.clip(np.nan_to_num(value), 0, 1) if "SAT" in parts else value


def _ffma(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """FFMA d, a, b, c: a * b + c, rounded once."""
    total = s.single(o[1]).astype(_F64) * s.single(o[2]) + s.single(o[3])
    return {o[0]: _bits(_saturated(total, parts))}


def _fadd(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """FADD d, a, b: a + b."""
    return {o[0]: _bits(_saturated(s.single(o[1]) + s.single(o[2]), parts))}


def _fmul(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """FMUL d, a, b: a * b."""
    return {o[0]: _bits(_saturated(s.single(o[1]) * s.single(o[2]), parts))}


def _fminmax(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """FMNMX d, a, b, P: the lesser where P, else the greater; the number where one of the two is NaN, but for NAN."""
    a, b = s.single(o[1]), s.single(o[2])
    join = (np.minimum, np.maximum) if "NAN" in parts else (np.fmin, np.fmax)
    return {o[0]: _bits(np.where(s.bits(o[3]), join[0](a, b), join[1](a, b)))}


def _fselect(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """FSEL d, a, b, P: a where P, else b."""
    return {o[0]: _bits(np.where(s.bits(o[3]), s.single(o[1]), s.single(o[2])))}


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal,
    "NE": lambda a, b: (a < b) | (a > b), "NEU": np.not_equal, "NUM": lambda a, b: (a == a) & (b == b), "NAN": lambda a, b: (a != a) | (b != b),
    "LTU": lambda a, b: ~(a >= b), "LEU": lambda a, b: ~(a > b), "GTU": lambda a, b: ~(a <= b), "GEU": lambda a, b: ~(a < b),
    "EQU": lambda a, b: ~((a < b) | (a > b)),
}  # fmt: skip
_JOIN = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


def _compared(s: Source, parts: Sequence[str], o: Sequence[str], a: Any, b: Any) -> Results:
    """FSETP P, Q, a, b, with: P = (a cmp b) op with; Q = (not (a cmp b)) op with."""
    first, other = np.asarray(_COMPARE[parts[0]](a, b)), s.bits(o[4])
    join = _JOIN[next(part for part in parts[1:] if part in _JOIN)]
    return {o[1]: join(~first, other), o[0]: join(first, other)}


def _fsetp(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """FSETP: see `_compared`."""
    return _compared(s, parts, o, s.single(o[2]), s.single(o[3]))


def _dsetp(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """DSETP: see `_compared`."""
    return _compared(s, parts, o, s.double(o[2]), s.double(o[3]))


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "RCP": lambda v: 1 / v, "RSQ": lambda v: 1 / np.sqrt(v), "SQRT": np.sqrt, "EX2": np.exp2, "LG2": np.log2, "TANH": np.tanh, "SIN": np.sin, "COS": np.cos,
}  # fmt: skip


def _mufu(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """MUFU.function d, a: a transcendental function."""
    if parts[0] not in _FUNCTIONS or "F16" in parts:
        raise BuildFailed(f"MUFU.{'.'.join(parts)} is not followed")
    return {o[0]: _bits(_FUNCTIONS[parts[0]](s.single(o[1]).astype(_F64)))}


def _dfma(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """DFMA d, a, b, c: a * b + c, in the longer format of the CPU, which is close to fused."""
    return _pair(o[0], (s.double(o[1]).astype(np.longdouble) * s.double(o[2]) + s.double(o[3])).astype(_F64))


def _dadd(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """DADD d, a, b: a + b."""
    return _pair(o[0], s.double(o[1]) + s.double(o[-1]))


def _dmul(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """DMUL d, a, b: a * b."""
    return _pair(o[0], s.double(o[1]) * s.double(o[2]))


# ---- half precision -----------------------------------------------------------------------------


def narrowed(value: Any, bfloat: bool) -> Any:
    """Return float32 rounded to float16 or bfloat16, to nearest and ties to even: its bits in the low half of a word, uint32."""
    if not bfloat:
        return np.asarray(value, np.float16).view(np.uint16).astype(_U32)
    bits = _bits(value)
    rounded = (bits + _U32(0x7FFF) + (bits >> _HALF_BITS & _U32(1))) >> _HALF_BITS
    return np.where(np.isnan(value), _BFLOAT_NAN, rounded).astype(_U32)


def widened(bits: Any, bfloat: bool) -> Any:
    """Return the float16 or bfloat16 in the low half of a word, uint32, as float32."""
    low = np.asarray(bits, _U32) & _LOW_HALF
    return (low << _HALF_BITS).view(_F32) if bfloat else low.astype(np.uint16).view(np.float16).astype(_F32)


def _packed(high: Any, low: Any, bfloat: bool) -> Any:
    """Return two float32 as halves of one word, uint32."""
    return narrowed(high, bfloat) << _HALF_BITS | narrowed(low, bfloat)


def _pack(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """F2FP d, a, b: two float32 as halves, a in the high one."""
    if "PACK_AB" not in parts or any(part in parts for part in ("RELU", *_ROUNDINGS)):
        raise BuildFailed(f"F2FP.{'.'.join(parts)} is not followed")
    return {o[0]: _packed(s.single(o[1]), s.single(o[2]), "BF16" in parts)}


def _half_sum(s: Source, parts: Sequence[str], o: Sequence[str], fold: Callable[..., Any]) -> Results:
    """Return fold of the low and of the high halves of the operands after the first; with F32 of the low ones alone, as float32."""
    bfloat = "BF16_V2" in parts or "BF16" in parts
    inputs = [s.halves(text, bfloat) for text in o[1:]]
    low, high = (fold(*(pair[i].astype(_F64) for pair in inputs)) for i in (0, 1))
    if "F32" in parts:
        return {o[0]: _bits(low)}
    low, high = (_saturated(value, parts) for value in (low, high))
    if "RELU" in parts:
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    return {o[0]: _packed(high, low, bfloat) if bfloat else np.asarray(high, np.float16).view(np.uint16).astype(_U32) << _HALF_BITS | narrowed(low, False)}


def _hfma(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """HFMA2 d, a, b, c: a * b + c, each half rounded once."""
    return _half_sum(s, parts, _joined(o), lambda a, b, c: a * b + c)


def _hadd(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """HADD2 d, a, b: a + b."""
    return _half_sum(s, parts, _joined(o), lambda a, b: a + b)


def _hmul(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """HMUL2 d, a, b: a * b."""
    return _half_sum(s, parts, _joined(o), lambda a, b: a * b)


def _joined(o: Sequence[str]) -> list[str]:
    """Return operands in which two numbers side by side, which nvdisasm prints for the high and the low half, are one."""
    result: list[str] = []
    for text in o:
        if result and _is_number(text) and _is_number(result[-1]):
            result[-1] += f" {text}"
        else:
            result.append(text)
    return result


def _is_number(text: str) -> bool:
    """Return whether an operand is a number."""
    try:
        float(text.replace("QNAN", "nan"))
    except ValueError:
        return False
    return True


# ---- between formats ----------------------------------------------------------------------------


def _rounded(exact: Any, parts: Sequence[str]) -> Any:
    """Return float64 as float32, by the rounding that the opcode names."""
    nearest = np.asarray(exact, _F64).astype(_F32)
    if "RP" in parts:
        return np.where(nearest < exact, np.nextafter(nearest, _F32(np.inf)), nearest)
    if "RM" in parts:
        return np.where(nearest > exact, np.nextafter(nearest, _F32(-np.inf)), nearest)
    if "RZ" in parts:
        return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, _F32(0)), nearest)
    return nearest


def _to_float(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """I2F and I2FP d, a: a word as a float, by its sign unless the opcode says U32."""
    value = np.asarray(s.bits(o[1]))
    if any(part in parts for part in ("U64", "S64", "U16", "S16", "U8", "S8", "F16")):
        raise BuildFailed(f"I2F.{'.'.join(parts)} is not followed")
    exact = value.astype(_F64) if "U32" in parts else value.view(np.int32).astype(_F64)
    return _pair(o[0], exact) if "F64" in parts else {o[0]: _bits(_rounded(exact, parts))}


def _to_int(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """F2I d, a: a float as a word, clamped to what a word holds."""
    value = np.asarray(s.double(o[1]) if "F64" in parts else s.single(o[1])).astype(_F64)
    turned = np.trunc(value) if "TRUNC" in parts else np.floor(value) if "FLOOR" in parts else np.ceil(value) if "CEIL" in parts else np.rint(value)
    least, most = (0, 2**32 - 1) if "U32" in parts else (-(2**31), 2**31 - 1)
    return {o[0]: np.clip(np.nan_to_num(turned), least, most).astype(np.int64).astype(_U32)}


def _between(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """F2F.to.from d, a: a float in another format."""
    to, source = [part for part in parts if part in ("F16", "F32", "F64", "BF16")]
    value = s.double(o[1]) if source == "F64" else s.single(o[1]) if source == "F32" else s.halves(o[1], source == "BF16")[0]
    if to == "F64":
        return _pair(o[0], np.asarray(value, _F64))
    return {o[0]: _bits(value) if to == "F32" else narrowed(value, to == "BF16")}


def _shuffle(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """SHFL.mode P, d, a, b, c: a of another lane of the warp, by the rules of PTX's shfl.sync; P says whether that lane is in range."""
    lane = np.arange(s.active.size) % WARP
    by, limits = (np.broadcast_to(s.bits(text), s.active.shape).astype(np.int64) for text in o[3:5])
    by, clamp, segment = by & 31, limits & 31, limits >> 8 & 31
    last = (lane & segment) | (clamp & ~segment)
    other = {"UP": lane - by, "DOWN": lane + by, "BFLY": lane ^ by, "IDX": (lane & segment) | (by & ~segment)}[parts[0]]
    inside = other >= last if parts[0] == "UP" else other <= last
    place = np.arange(s.active.size) - lane + np.where(inside, other, lane)
    if not s.active[place][s.active].all():
        raise BuildFailed("a shuffle reads a lane that takes no part in it")
    return {o[1]: np.broadcast_to(s.bits(o[2]), s.active.shape)[place], o[0]: inside}


FLOAT: dict[str, _Compute] = {
    "FFMA": _ffma, "FADD": _fadd, "FMUL": _fmul, "FMNMX": _fminmax, "FSEL": _fselect, "FSETP": _fsetp, "MUFU": _mufu,
    "DFMA": _dfma, "DADD": _dadd, "DMUL": _dmul, "DSETP": _dsetp, "F2FP": _pack, "HFMA2": _hfma, "HADD2": _hadd, "HMUL2": _hmul,
    "I2F": _to_float, "I2FP": _to_float, "F2I": _to_int, "F2F": _between, "SHFL": _shuffle,
}  # fmt: skip
