"""What the floating-point instructions of SASS compute, by opcode, on arrays over lanes.

A fused multiply-add is rounded once: the product of two float32 is exact in float64, where the sum is taken. Denormals are kept where
an instruction may flush them, and MUFU is rounded to nearest where the hardware is off by a unit or two: both stay within what
`tolerance.tolerance` allows. Read from disassembly; operands keep nvdisasm's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import BuildFailed
from .bank_conflicts import WARP

_F32, _F64, _U32 = np.float32, np.float64, np.uint32
_ROUNDINGS = ("RP", "RM", "RZ")  # up, down, to zero; nothing is to nearest
_BFLOAT_SHIFT = _U32(16)  # bits that float32 has and bfloat16 lacks
_HIGH, _LOW = _U32(0xFFFF0000), _U32(0x0000FFFF)


class Source(Protocol):
    """Where operands are read, modifiers applied; active: the lanes that execute the instruction."""

    active: Any

    def bits(self, text: str) -> Any: ...

    def truth(self, text: str) -> Any: ...

    def single(self, text: str) -> Any: ...

    def double(self, text: str) -> Any: ...

    def halves(self, text: str, bfloat: bool) -> tuple[Any, Any]: ...


Results = dict[str, Any]
_Compute = Callable[[Source, Sequence[str], Sequence[str]], Results]


def _bits(value: Any) -> Any:
    """A float32 as its bits."""
    return np.asarray(value, _F32).view(_U32)


def _pair(register: str, value: Any) -> Results:
    """A float64 in two registers."""
    whole = np.asarray(value, _F64).view(np.uint64)
    return {register: whole.astype(_U32), f"R{int(register[1:]) + 1}": (whole >> np.uint64(32)).astype(_U32)}


def _saturated(value: Any, parts: Sequence[str]) -> Any:
    return np.clip(np.nan_to_num(value), 0, 1) if "SAT" in parts else value


def _ffma(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    total = s.single(o[1]).astype(_F64) * s.single(o[2]) + s.single(o[3])
    return {o[0]: _bits(_saturated(total, parts))}


def _fadd(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return {o[0]: _bits(_saturated(s.single(o[1]) + s.single(o[2]), parts))}


def _fmul(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return {o[0]: _bits(_saturated(s.single(o[1]) * s.single(o[2]), parts))}


def _fminmax(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """d, a, b, P: the lesser where P; a number where one of the two is NaN."""
    a, b = s.single(o[1]), s.single(o[2])
    join = (np.minimum, np.maximum) if "NAN" in parts else (np.fmin, np.fmax)
    return {o[0]: _bits(np.where(s.truth(o[3]), join[0](a, b), join[1](a, b)))}


def _fselect(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return {o[0]: _bits(np.where(s.truth(o[3]), s.single(o[1]), s.single(o[2])))}


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal, "EQ": np.equal,
    "NE": lambda a, b: (a < b) | (a > b), "NEU": np.not_equal, "NUM": lambda a, b: (a == a) & (b == b), "NAN": lambda a, b: (a != a) | (b != b),
    "LTU": lambda a, b: ~(a >= b), "LEU": lambda a, b: ~(a > b), "GTU": lambda a, b: ~(a <= b), "GEU": lambda a, b: ~(a < b),
    "EQU": lambda a, b: ~((a < b) | (a > b)),
}  # fmt: skip
_JOIN = {"AND": np.logical_and, "OR": np.logical_or, "XOR": np.logical_xor}


def _compared(s: Source, parts: Sequence[str], o: Sequence[str], a: Any, b: Any) -> Results:
    """P, Q, a, b, with: P = (a cmp b) op with; Q = (not (a cmp b)) op with."""
    first, other = np.asarray(_COMPARE[parts[0]](a, b)), s.truth(o[4])
    join = _JOIN[next(part for part in parts[1:] if part in _JOIN)]
    return {o[1]: join(~first, other), o[0]: join(first, other)}


def _fsetp(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return _compared(s, parts, o, s.single(o[2]), s.single(o[3]))


def _dsetp(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return _compared(s, parts, o, s.double(o[2]), s.double(o[3]))


_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "RCP": lambda v: 1 / v, "RSQ": lambda v: 1 / np.sqrt(v), "SQRT": np.sqrt, "EX2": np.exp2, "LG2": np.log2, "TANH": np.tanh, "SIN": np.sin, "COS": np.cos,
}  # fmt: skip


def _mufu(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    if parts[0] not in _FUNCTIONS or "F16" in parts:
        raise BuildFailed(f"MUFU.{'.'.join(parts)} is not followed")
    return {o[0]: _bits(_FUNCTIONS[parts[0]](s.single(o[1]).astype(_F64)))}


def _dfma(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """Fused, in the longer format of the CPU."""
    return _pair(o[0], (s.double(o[1]).astype(np.longdouble) * s.double(o[2]) + s.double(o[3])).astype(_F64))


def _dadd(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return _pair(o[0], s.double(o[1]) + s.double(o[-1]))


def _dmul(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return _pair(o[0], s.double(o[1]) * s.double(o[2]))


# ---- half precision -----------------------------------------------------------------------------


def narrowed(value: Any, bfloat: bool) -> Any:
    """The bits of float32 as float16 or bfloat16, to nearest and ties to even, in the low half of a word."""
    if not bfloat:
        return np.asarray(value, np.float16).view(np.uint16).astype(_U32)
    bits = _bits(value)
    rounded = (bits + _U32(0x7FFF) + (bits >> _BFLOAT_SHIFT & _U32(1))) >> _BFLOAT_SHIFT
    return np.where(np.isnan(value), _U32(0x7FFF), rounded).astype(_U32)


def widened(bits: Any, bfloat: bool) -> Any:
    """Float32 of a float16 or bfloat16 in the low half of a word."""
    low = np.asarray(bits, _U32) & _LOW
    return (low << _BFLOAT_SHIFT).view(_F32) if bfloat else low.astype(np.uint16).view(np.float16).astype(_F32)


def _packed(high: Any, low: Any, bfloat: bool) -> Any:
    return narrowed(high, bfloat) << _BFLOAT_SHIFT | narrowed(low, bfloat)


def _pack(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """F2FP d, a, b: a above b, as halves."""
    if "PACK_AB" not in parts or any(part in parts for part in ("RELU", *_ROUNDINGS)):
        raise BuildFailed(f"F2FP.{'.'.join(parts)} is not followed")
    return {o[0]: _packed(s.single(o[1]), s.single(o[2]), "BF16" in parts)}


def _half_sum(s: Source, parts: Sequence[str], o: Sequence[str], fold: Callable[..., Any]) -> Results:
    """Both halves by themselves; F32 for the low one alone, as float32."""
    bfloat = "BF16_V2" in parts or "BF16" in parts
    inputs = [s.halves(text, bfloat) for text in o[1:]]
    low, high = (fold(*(pair[i].astype(_F64) for pair in inputs)) for i in (0, 1))
    if "F32" in parts:
        return {o[0]: _bits(low)}
    low, high = (_saturated(value, parts) for value in (low, high))
    if "RELU" in parts:
        low, high = np.maximum(low, 0), np.maximum(high, 0)
    return {o[0]: _packed(high, low, bfloat) if bfloat else np.asarray(high, np.float16).view(np.uint16).astype(_U32) << _BFLOAT_SHIFT | narrowed(low, False)}


def _hfma(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return _half_sum(s, parts, _joined(o), lambda a, b, c: a * b + c)


def _hadd(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return _half_sum(s, parts, _joined(o), lambda a, b: a + b)


def _hmul(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    return _half_sum(s, parts, _joined(o), lambda a, b: a * b)


def _joined(o: Sequence[str]) -> list[str]:
    """Operands with two numbers side by side, high and low, made one."""
    result: list[str] = []
    for text in o:
        if result and _is_number(text) and _is_number(result[-1]):
            result[-1] += f" {text}"
        else:
            result.append(text)
    return result


def _is_number(text: str) -> bool:
    try:
        float(text.replace("QNAN", "nan"))
    except ValueError:
        return False
    return True


# ---- between formats ----------------------------------------------------------------------------


def _rounded(exact: Any, parts: Sequence[str]) -> Any:
    """Float64 as float32, by the rounding that the opcode names."""
    nearest = np.asarray(exact, _F64).astype(_F32)
    if "RP" in parts:
        return np.where(nearest < exact, np.nextafter(nearest, _F32(np.inf)), nearest)
    if "RM" in parts:
        return np.where(nearest > exact, np.nextafter(nearest, _F32(-np.inf)), nearest)
    if "RZ" in parts:
        return np.where(np.abs(nearest) > np.abs(exact), np.nextafter(nearest, _F32(0)), nearest)
    return nearest


def _to_float(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """I2F and I2FP: of a word, signed unless it says otherwise."""
    value = np.asarray(s.bits(o[1]))
    if any(part in parts for part in ("U64", "S64", "U16", "S16", "U8", "S8", "F16")):
        raise BuildFailed(f"I2F.{'.'.join(parts)} is not followed")
    exact = value.astype(_F64) if "U32" in parts else value.view(np.int32).astype(_F64)
    return _pair(o[0], exact) if "F64" in parts else {o[0]: _bits(_rounded(exact, parts))}


def _to_int(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """F2I: clamped to what a word holds."""
    value = np.asarray(s.double(o[1]) if "F64" in parts else s.single(o[1])).astype(_F64)
    turned = np.trunc(value) if "TRUNC" in parts else np.floor(value) if "FLOOR" in parts else np.ceil(value) if "CEIL" in parts else np.rint(value)
    least, most = (0, 2**32 - 1) if "U32" in parts else (-(2**31), 2**31 - 1)
    return {o[0]: np.clip(np.nan_to_num(turned), least, most).astype(np.int64).astype(_U32)}


def _between(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """F2F.to.from."""
    to, source = [part for part in parts if part in ("F16", "F32", "F64", "BF16")]
    value = s.double(o[1]) if source == "F64" else s.single(o[1]) if source == "F32" else s.halves(o[1], source == "BF16")[0]
    if to == "F64":
        return _pair(o[0], np.asarray(value, _F64))
    return {o[0]: _bits(value) if to == "F32" else narrowed(value, to == "BF16")}


def _shuffle(s: Source, parts: Sequence[str], o: Sequence[str]) -> Results:
    """SHFL.mode P, d, a, b, c: a of another lane of the warp, by the rules of PTX's shfl.sync; P: whether that lane is in range."""
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
