"""The three ops as torch.func sees them.

PyTorch's register_autograd makes functions that torch.func.grad refuses (pytorch issue 170834, still so in 2.13). Inside a
torch.func transform the public functions therefore go through these, which have the same gradients and vmap rules.
"""

from __future__ import annotations

from typing import Any

import torch

from . import ops


def active() -> bool:
    """Whether a torch.func transform is running (never while compiling, where the ops themselves are traced)."""
    return not torch.compiler.is_compiling() and bool(torch._C._are_functorch_transforms_active())


class _Bilinear(torch.autograd.Function):
    """A function of two tensors and options; its gradients are the other two functions."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.options = inputs[2:]

    @classmethod
    def mapped(cls, info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[torch.Tensor, int]:
        """The vmap rule: that of the op, over this function."""
        return ops.mapped(cls.apply, cls is not ConvDw)(info, in_dims, *given)


class Conv(_Bilinear):
    """ops.conv(x, weight, taps, stride, padding_mode)."""

    @staticmethod
    def forward(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: Any, padding_mode: str) -> torch.Tensor:
        return ops.conv(x.contiguous(), weight.contiguous(), taps, stride, padding_mode)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (x, weight), (taps, stride, padding_mode), (dy,) = ctx.saved_tensors, ctx.options, grads
        dx = ConvDx.apply(dy, weight, taps, x.shape[-2], x.shape[-1], stride, padding_mode) if ctx.needs_input_grad[0] else None
        dw = ConvDw.apply(x, dy, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[torch.Tensor, int]:
        return Conv.mapped(info, in_dims, *given)


class ConvDx(_Bilinear):
    """ops.conv_dx(dy, weight, taps, height, width, stride, padding_mode)."""

    @staticmethod
    def forward(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: Any, padding_mode: str) -> torch.Tensor:
        return ops.conv_dx(dy.contiguous(), weight.contiguous(), taps, height, width, stride, padding_mode)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (dy, weight), (taps, _, _, stride, padding_mode), (dx,) = ctx.saved_tensors, ctx.options, grads
        ddy = Conv.apply(dx, weight, taps, stride, padding_mode) if ctx.needs_input_grad[0] else None
        dw = ConvDw.apply(dx, dy, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
        return ddy, dw, None, None, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[torch.Tensor, int]:
        return ConvDx.mapped(info, in_dims, *given)


class ConvDw(_Bilinear):
    """ops.conv_dw(x, dy, taps, stride, padding_mode)."""

    @staticmethod
    def forward(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: Any, padding_mode: str) -> torch.Tensor:
        return ops.conv_dw(x.contiguous(), dy.contiguous(), taps, stride, padding_mode)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        (x, dy), (taps, stride, padding_mode), (dw,) = ctx.saved_tensors, ctx.options, grads
        dx = ConvDx.apply(dy, dw, taps, x.shape[-2], x.shape[-1], stride, padding_mode) if ctx.needs_input_grad[0] else None
        ddy = Conv.apply(x, dw, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
        return dx, ddy, None, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *given: Any) -> tuple[torch.Tensor, int]:
        return ConvDw.mapped(info, in_dims, *given)
