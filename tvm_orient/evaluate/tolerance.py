"""The distance that a right result may have from the reference: a bound derived from rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..problem.spec import ConvSpec
from .reference import run

_MAX_SIGMAS = 6.0  # in units of sqrt(n)*u: Hoeffding's inequality leaves 2*exp(-6*6/2) = 3e-8 beyond it
_MAX_SLOPE = 1.13  # of an activation: that of GELU
_ERF_ERROR = 1.5e-7  # of an argument of GELU where erf is a polynomial (Abramowitz & Stegun 7.1.26)
_CALL_UNITS = 8  # units in the last place that an activation errs where it is a call


def tolerance(spec: ConvSpec, batch: int, *operands: Tensor) -> float:
    """Return the largest absolute error that rounding alone may put into a kernel's result for these operands.

    A sum of n products in any order, fused or not, errs by at most (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., eq. 3.5)::

        gamma_n * sum_i |a_i * b_i|        gamma_n = n*u / (1 - n*u)

    u is the unit roundoff of spec.sums. n is K for conv and conv_dx: a kernel that adds colliding weights first has no
    longer chain than that. n is N*P*Q for conv_dw, where the worst case is out of reach of any real kernel, so the
    depth is min(n, 6*sqrt(n)): rounding errors that are independent with mean zero, as random operands make them,
    exceed it with probability 3e-8 an output (Higham & Mary, A new approach to probabilistic rounding error analysis,
    2019). The sum of magnitudes is the reference on absolute values, at its largest output. The float64 reference's own
    error is added, and n results below the smallest normal number may be flushed to zero. A half-precision result is
    rounded once more. A result that holds one wrong product of ordinary size lies far outside for conv and conv_dx;
    conv_dw of a large batch hides small faults, so check it on small ones too.

    A bias is one more term. An activation stretches errors by at most 1.13 (the slope of GELU; that of SiLU is 1.1) and adds its
    own: 1.5e-7 of its argument where erf is a polynomial (Abramowitz & Stegun 7.1.26), some units in the last place where it is a call.

    Args:
        spec: the problem; its dtype and `tvm_orient.ConvSpec.sums` say what is rounded.
        batch: images N.
        operands: as in `run`.
    """
    if spec.plain is not spec:
        return _ended_tolerance(spec, batch, *operands)
    depth = spec.kernel_size if spec.op != "conv_dw" else batch * spec.out_height * spec.out_width
    sums = run(spec, *(operand.double().abs() for operand in operands))
    if depth == 0 or sums.numel() == 0:
        return 0.0
    kind, stored = torch.finfo(getattr(torch, spec.sums)), torch.finfo(getattr(torch, spec.dtype))
    bound = _gamma(depth, kind.eps / 2) + _gamma(depth, torch.finfo(torch.float64).eps / 2)
    most = float(sums.max())
    rounding = 0.0 if spec.sums == spec.dtype else stored.eps / 2 * (1 + bound) * most + stored.tiny * stored.eps
    return bound * most + depth * kind.tiny + rounding


def _ended_tolerance(spec: ConvSpec, batch: int, *operands: Tensor) -> float:
    """Return the tolerance for a spec with a bias or an activation: that of the op alone, stretched, and the epilogue's own errors."""
    bound = tolerance(spec.plain, batch, *operands[:2])
    most = float(run(spec.plain, *(operand.double().abs() for operand in operands[:2])).amax()) if operands[0].numel() else 0.0
    most += float(operands[2].abs().max()) if spec.bias else 0.0
    kind, stored = torch.finfo(getattr(torch, spec.sums)), torch.finfo(getattr(torch, spec.dtype))
    own = 0.0 if spec.activation == "none" else max(_CALL_UNITS * kind.eps, _ERF_ERROR if spec.sums == "float32" else 0.0)
    return _MAX_SLOPE * (bound + most * (kind.eps + own)) + stored.eps / 2 * most


def _gamma(depth: int, u: float) -> float:
    """Return gamma_n for depth n and unit roundoff u, with n bounded by `_MAX_SIGMAS` * sqrt(n)."""
    chain = min(float(depth), _MAX_SIGMAS * math.sqrt(depth)) * u
    return chain / (1 - chain) if chain < 1 else math.inf
