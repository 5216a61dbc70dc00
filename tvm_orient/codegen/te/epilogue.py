"""Builds the activation that is applied to a sum before it is stored, as TE expressions in the dtype of the sums."""

from __future__ import annotations

import math
from typing import Any

from ...toolchain.tvm import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)

_LN2_HIGH = 0.693145751953125  # ln 2 to 16 bits, so that a whole multiple of it is exact in float32
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)  # Abramowitz & Stegun 7.1.26, error below 1.5e-7
_ERF_SLOPE = 0.3275911  # p of the same formula: t = 1 / (1 + p x)


def activate(name: str, z: Any, dtype: str, vector_math: bool) -> Any:
    """Returns the activation of that name (spec.ACTIVATIONS) at z, which is of dtype.

    vector_math: float32 exponentials by polynomials instead of calls, so that LLVM can vectorise.
    """
    if name == "none":
        return z
    if vector_math:
        return _activated(name, z, dtype, dtype == "float32")
    sum_of = tirx.Var("sum", dtype)  # z may be all the taps: written once, not at each use
    return tirx.Let(sum_of, z, _activated(name, sum_of, dtype, False))


def _activated(name: str, z: Any, dtype: str, vector_math: bool) -> Any:
    """Returns an activation other than none at z, which may stand in it several times."""

    def number(value: float) -> Any:
        return tirx.const(value, dtype)

    if name == "relu":
        return tirx.Select(z < number(0), number(0), z)  # unlike max, passes NaN on
    if name == "silu":
        return z / (number(1) + (_exp(-z) if vector_math else tirx.exp(-z)))
    if name == "gelu" and vector_math:
        tail = number(0.5) * _erfc(tirx.abs(z) * number(math.sqrt(0.5)))
        return z * tirx.Select(z < number(0), tail, number(1) - tail)
    return z * number(0.5) * (number(1) + tirx.erf(z * number(math.sqrt(0.5))))


def _horner(x: Any, coefficients: list[float]) -> Any:
    """Returns the polynomial at x in float32, constant coefficient first."""
    total = tirx.const(coefficients[-1], "float32")
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + tirx.const(coefficient, "float32")
    return total


def _exp(x: Any) -> Any:
    """Returns e^x in float32: 2^n by its bits, times the Taylor series to degree 7 on |r| <= ln(2)/2, whose error is below 6e-9."""

    def number(value: float) -> Any:
        return tirx.const(value, "float32")

    x = tirx.Min(tirx.Max(x, number(-87.0)), number(88.0))
    n = tirx.floor(x * number(1 / math.log(2)) + number(0.5))
    r = x - n * number(_LN2_HIGH) - n * number(math.log(2) - _LN2_HIGH)
    power = tirx.reinterpret("float32", (n.astype("int32") + tirx.const(127, "int32")) << tirx.const(23, "int32"))
    return _horner(r, [1 / math.factorial(k) for k in range(8)]) * power


def _erfc(x: Any) -> Any:
    """Returns 1 - erf(x) for x >= 0 in float32."""
    t = tirx.const(1, "float32") / (tirx.const(1, "float32") + tirx.const(_ERF_SLOPE, "float32") * x)
    return t * _horner(t, list(_ERF)) * _exp(-x * x)
