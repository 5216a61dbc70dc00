"""Calls a compiled function with operands between walls of NaN: a read past an end shows in the result, and a write there is found."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..compiler.lower import workspace_shape
from ..problem.generic_args import GenericArgs
from ..problem.spec import ConvSpec

WALL = 256  # elements of NaN before and after every tensor: a multiple of the 64 bytes that vector loads count on


@dataclass(frozen=True)
class Called:
    """The result of one call, (N, C, H, W) or (C, K) in spec.dtype, and in words what the function did to memory that is not its own."""

    result: Tensor
    faults: tuple[str, ...]


def operands(spec: ConvSpec, batch: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Returns random operands of spec.op: conv (x, w), with spec.bias (x, w, bias), conv_dx (dy, w), conv_dw (x, dy); images are (N, C, H, W)."""
    rng = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, spec.dtype)
    given = [operand for operand in spec.operands(batch) if operand.role == "input"]
    return tuple(torch.randn(operand.torch_shape, dtype=dtype, generator=rng) for operand in given)


def workspace_of(spec: ConvSpec, module: Any) -> tuple[int, int] | None:
    """Returns (bands, taps) of the workspace that a scheduled module of conv_dw needs; None for other ops."""
    return workspace_shape(spec, [module["main"]])


def call(
    spec: ConvSpec, function: Callable[..., object], given: Sequence[Tensor], workspace: tuple[int, int] | None, plan: GenericArgs | None = None
) -> Called:
    """Returns what a compiled function answers to operands, its result started from NaN.

    Args:
        given: as of `lanes`.
        workspace: as of `workspace_of`, or the plan's.
        plan: what a generic kernel is told.
    """
    batch, last = given[0].shape[0], spec.layout == "nhwc"
    given = [t.permute(0, 2, 3, 1).contiguous() if last and t.dim() == 4 else t for t in given]
    inputs = [_walled(tensor) for tensor in given]
    written = [operand for operand in spec.operands(batch, workspace or (1, 1)) if operand.role != "input"]
    outputs = [_walled(given[0].new_full(operand.shape, math.nan, dtype=getattr(torch, operand.dtype))) for operand in written]
    tables = [torch.from_numpy(table) for table in plan.tables] if plan else []
    function(*(tensor for tensor, _ in inputs), *tables, *(tensor for tensor, _ in outputs), *(plan.numbers if plan else ()))
    faults = [
        f"wrote past the end of a tensor of shape {tuple(tensor.shape)}"
        for tensor, buffer in inputs + outputs
        if not torch.cat([buffer[:WALL], buffer[WALL + tensor.numel() :]]).isnan().all()
    ]
    faults += [f"changed its operand of shape {tuple(tensor.shape)}" for (inside, _), tensor in zip(inputs, given, strict=True) if not _alike(inside, tensor)]
    out = outputs[-1][0].to(given[0].dtype)
    return Called(out.permute(0, 3, 1, 2) if last and out.dim() == 4 else out, tuple(faults))


def _walled(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (a copy of the tensor between NaN walls, the whole buffer)."""
    buffer = torch.full((tensor.numel() + 2 * WALL,), math.nan, dtype=tensor.dtype)
    inside = buffer[WALL : WALL + tensor.numel()].view(tensor.shape)
    inside.copy_(tensor)
    return inside, buffer


def _alike(one: Tensor, other: Tensor) -> bool:
    """Returns whether two tensors are equal, NaN being equal to NaN."""
    return one.shape == other.shape and bool(((one == other) | (one.isnan() & other.isnan())).all())
