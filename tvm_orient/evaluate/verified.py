"""The verdict on a kernel's result: held against the reference, within what rounding alone may do."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ..problem.spec import ConvSpec
from . import reference, tolerance


@dataclass(frozen=True)
class Verdict:
    """The finding about a result: right, or how it is wrong."""

    difference: float  #: the largest one from the reference; NaN where the result holds one, infinite where its shape is another
    bound: float  #: the largest that rounding may make: `tvm_orient.evaluate.tolerance.tolerance`
    largest: float  #: absolute value of the reference; 1 where all of it is zero
    wrong: str  #: what the result is, for people: off by so much, or of another shape; empty where it is right

    @property
    def relative(self) -> float:
        """Returns the difference over the largest value."""
        return self.difference / self.largest


class Expected:
    """The result that a spec has for given operands, worked out once for all kernels that are held against it.

    Args:
        operands: inputs of spec.op in torch's shapes, images as (N, C, H, W), of the spec's dtype or wider.
    """

    def __init__(self, spec: ConvSpec, *operands: Tensor) -> None:
        self.result = reference.run(spec, *operands)  #: float64
        self.bound = tolerance.tolerance(spec, operands[0].shape[0], *operands)

    def verdict(self, result: Tensor) -> Verdict:
        """Returns whether a result of the same operands is right; it is compared in torch's shape, images as (N, C, H, W)."""
        largest = (float(self.result.abs().max()) if self.result.numel() else 0.0) or 1.0
        if result.shape != self.result.shape:
            wrong = f"of shape {tuple(result.shape)} instead of {tuple(self.result.shape)}"
            return Verdict(math.inf, self.bound, largest, wrong)
        difference = float((result.double() - self.result).abs().max()) if result.numel() else 0.0
        if difference <= self.bound:
            return Verdict(difference, self.bound, largest, "")
        return Verdict(difference, self.bound, largest, f"off by {difference:.3g}, where rounding allows {self.bound:.3g}")  # NaN comes here too
