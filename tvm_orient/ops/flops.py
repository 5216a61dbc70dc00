"""The operations that torch.utils.flop_counter counts for the operators: two for each tap of each pixel of the result, as it counts a depthwise Conv2d."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .. import ops  # noqa: F401  # defines the operators


def _counted(images: Sequence[int], taps: int) -> int:
    n, c, p, q = images
    return 2 * n * c * p * q * taps


def conv_flops(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Counts the operations of conv and conv_epilogue, from the shapes of their tensors; bias and activation are left out."""
    return _counted(out_shape, weight[1])


def conv_dx_flops(dy: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    """Counts the operations of conv_dx, from the shapes of its tensors."""
    return _counted(dy, weight[1])


def conv_dw_flops(x: Sequence[int], dy: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Counts the operations of conv_dw, from the shapes of its tensors."""
    return _counted(dy, out_shape[1])


register_flop_formula([torch.ops.tvm_orient.conv, torch.ops.tvm_orient.conv_epilogue])(conv_flops)
register_flop_formula(torch.ops.tvm_orient.conv_dx)(conv_dx_flops)
register_flop_formula(torch.ops.tvm_orient.conv_dw)(conv_dw_flops)
