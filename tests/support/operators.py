"""Arguments of the operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.helpers import operands, spec_of
from tvm_orient.problem.taps import Taps

THREE = (0.3, 1.2, 2.7)


def arguments(
    op: str, taps: Taps, stride: tuple[int, int] = (1, 1), padding: str = "zeros", size: tuple[int, int] = (9, 10), grad: bool = True
) -> tuple[Any, ...]:
    """Arguments of torch.ops.tvm_orient.<op> for six channels."""
    spec = spec_of(op, 6, *size, taps, stride, padding)
    first, second = (t.requires_grad_(grad) for t in operands(spec, 2))
    plane = size if op == "conv_dx" else ()
    return (first, second, taps.key, *plane, list(stride), padding)


def smooth(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random values that ask for a gradient."""
    return torch.randn(*shape, dtype=dtype, requires_grad=True)
