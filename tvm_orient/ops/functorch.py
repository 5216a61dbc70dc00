"""The three linear ops in a form that torch.func and forward-mode differentiation take.

PyTorch's register_autograd makes functions that torch.func.grad refuses (pytorch issue 170834, still so in 2.13), and knows no
forward mode. Where either is at work the public functions therefore go through these, which have the same gradients and vmap rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import forward_ad

from . import autograd, library
from .vmap import mapped


def active() -> bool:
    """Says whether a torch.func transform or forward-mode differentiation is running (never while compiling: the ops themselves are traced)."""
    return not torch.compiler.is_compiling() and (bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0)


def _function(op: Callable[..., torch.Tensor], gradients: Callable[[Any, torch.Tensor], tuple[Any, ...]], *, foldable: bool) -> Any:
    """Returns an op as a Function that transforms take; gradients(ctx, grad) are made of such functions in turn. foldable is that of `vmap.mapped`."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(first: torch.Tensor, second: torch.Tensor, *options: Any) -> torch.Tensor:
            return op(first.contiguous(), second.contiguous(), *options)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            ctx.save_for_backward(*inputs[:2])
            ctx.save_for_forward(*inputs[:2])
            ctx.options = inputs[2:]

        @staticmethod
        def jvp(ctx: Any, first_t: torch.Tensor | None, second_t: torch.Tensor | None, *_: None) -> torch.Tensor:
            first, second = ctx.saved_tensors  # the op is linear in each
            parts = [(first_t, second)] * (first_t is not None) + [(first, second_t)] * (second_t is not None)
            return sum(Function.apply(*part, *ctx.options) for part in parts)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
            return gradients(ctx, grads[0])

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[torch.Tensor, int]:
            return mapped(Function.apply, foldable)(info, in_dims, *given)

    return Function


Conv: Any = _function(library.conv, lambda ctx, dy: autograd.conv_gradients(ctx, dy, ConvDx.apply, ConvDw.apply), foldable=True)
ConvDx: Any = _function(library.conv_dx, lambda ctx, ddx: autograd.conv_dx_gradients(ctx, ddx, Conv.apply, ConvDw.apply), foldable=True)
ConvDw: Any = _function(library.conv_dw, lambda ctx, ddw: autograd.conv_dw_gradients(ctx, ddw, Conv.apply, ConvDx.apply), foldable=False)
