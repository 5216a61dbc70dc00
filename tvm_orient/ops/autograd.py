"""Gradients of the operators: each is linear in both operands, and its adjoints are the other two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..runtime import kernel
from .calls import NO_CALL, find_conv, find_conv_dw, find_conv_dx, find_conv_epilogue, plain_keys, quick_calls, strict_calls
from .library import conv, conv_dw, conv_dx, conv_epilogue


def conv_gradients(ctx: Any, grad: torch.Tensor, dx_of: Any = conv_dx, dw_of: Any = conv_dw) -> tuple[Any, ...]:
    """Returns the gradients of conv, in x and weight; dx_of and dw_of are the other two ops, or functions of the same arguments."""
    x, weight = ctx.saved_tensors
    taps, stride, padding_mode = ctx.options
    dx = dx_of(grad, weight, taps, x.shape[2], x.shape[3], stride, padding_mode) if ctx.needs_input_grad[0] else None
    dw = dw_of(x, grad, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None, None


def conv_dx_gradients(ctx: Any, grad: torch.Tensor, y_of: Any = conv, dw_of: Any = conv_dw) -> tuple[Any, ...]:
    """Returns the gradients of conv_dx, in dy and weight, as conv_gradients."""
    dy, weight = ctx.saved_tensors
    taps, _, _, stride, padding_mode = ctx.options
    ddy = y_of(grad, weight, taps, stride, padding_mode) if ctx.needs_input_grad[0] else None
    dw = dw_of(grad, dy, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
    return ddy, dw, None, None, None, None, None


def conv_dw_gradients(ctx: Any, grad: torch.Tensor, y_of: Any = conv, dx_of: Any = conv_dx) -> tuple[Any, ...]:
    """Returns the gradients of conv_dw, in x and dy, as conv_gradients."""
    x, dy = ctx.saved_tensors
    taps, stride, padding_mode = ctx.options
    dx = dx_of(dy, grad, taps, x.shape[2], x.shape[3], stride, padding_mode) if ctx.needs_input_grad[0] else None
    ddy = y_of(x, grad, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
    return dx, ddy, None, None, None


def _epilogue_gradients(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Returns the gradients of conv_epilogue, in x, weight and bias. What an activation's gradient needs is computed again rather than kept, but for ReLU."""
    x, weight, *kept = ctx.saved_tensors
    activation, *options = ctx.options
    if activation == "relu":
        grad = torch.ops.aten.threshold_backward(grad, kept[0], 0)
    elif activation != "none":
        bias = kept[0]
        z = conv(x, weight, *options) if bias is None else conv_epilogue(x, weight, bias, "none", *options)
        # aten's silu_backward has no derivative of its own
        grad = grad * (z.sigmoid() * (1 + z * (1 - z.sigmoid()))) if activation == "silu" else torch.ops.aten.gelu_backward(grad, z)
    dx = conv_dx(grad, weight, options[0], x.shape[2], x.shape[3], *options[1:]) if ctx.needs_input_grad[0] else None
    dw = conv_dw(x, grad, *options) if ctx.needs_input_grad[1] else None
    db = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
    return dx, dw, db, None, None, None, None


_AFTER = torch._C._after_autograd_keyset
_ENDS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
_ours_next: dict[int, bool] = {}  # by the dispatch keys of a call: whether what comes after autograd is our implementation


def _ours_is_next(keys: Any) -> bool:
    """Says whether our implementation comes after autograd for a call with these dispatch keys: no mode, subclass or transform is at work."""
    number = keys.raw_repr()
    ours = _ours_next.get(number)
    if ours is None:
        ours = _ours_next[number] = (keys & _AFTER).highestPriorityTypeId() in _ENDS
    return ours


def _saved(operands: Sequence[Any], options: tuple[Any, ...], output: torch.Tensor) -> Sequence[Any]:
    """Returns the tensors that an op's gradients need: its operands without the bias; with relu also the output, with another activation also the bias."""
    if options[0] == "relu":
        return (*operands[:2], output)
    return operands[:2] if options[0] == "none" else operands


def _recording_function(call: kernel.Call, options: tuple[Any, ...], gradients: Any, tensors: int) -> Any:
    """Returns the Function of one call, which costs less than handing call and options to a common one."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *operands: Any) -> torch.Tensor:
            output: torch.Tensor = call(*operands)
            ctx.to_save = _saved(operands, options, output)  # what save_for_backward does
            return output

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
            return gradients(ctx, grads[0])[:tensors]

    Function._backward_cls.options = options  # type: ignore[attr-defined]
    return super(torch.autograd.Function, Function).apply  # without looking for transforms: ours is next


def _differentiable(op: Any, find: Any, gradients: Any, *, tensors: int = 2) -> Any:
    """Returns an op's implementation at the Autograd key, which does what torch.library.register_autograd does and costs less in each call.

    Where our implementation comes next it is called, not dispatched to; and a call without gradients does nothing for their sake.

    Args:
        op: the operator.
        find: returns the call of a kernel for the op's inputs, as the `find_` functions of `calls`.
        gradients: returns the gradients in the op's inputs, given a ctx and the gradient in its result.
        tensors: how many of the inputs, the first ones, are tensors.

    Returns:
        A function of the dispatch keys, the operands, the options and, where the call may be kept in `calls.quick_calls`, its key there.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> torch.Tensor:
            *operands, (call, ctx.options) = given
            output: torch.Tensor = call(*operands)
            ctx.save_for_backward(*_saved(operands, ctx.options, output))
            return output

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
            return (*gradients(ctx, grads[0])[:tensors], None)

    def recorded(keys: Any, operands: tuple[Any, ...], options: tuple[Any, ...], key: tuple[Any, ...] | None = None) -> torch.Tensor:
        def dispatched(*operands: Any) -> torch.Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keys & _AFTER, *operands, *options)

        wanted = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in operands)
        if not _ours_is_next(keys):
            return Function.apply(*operands, (dispatched, options)) if wanted else dispatched(*operands)
        call = find(*operands, *options)
        if operands[0].device.type == "cpu":
            plain_keys.add(keys.raw_repr())
        if key is not None and call in strict_calls:
            quick_calls[key] = call, _recording_function(call, options, gradients, tensors) if wanted else None
        if wanted:
            return super(torch.autograd.Function, Function).apply(*operands, (call, options))
        return call(*operands)

    return recorded


_conv_recorded = _differentiable(conv, find_conv, conv_gradients)
_conv_epilogue_recorded = _differentiable(conv_epilogue, find_conv_epilogue, _epilogue_gradients, tensors=3)
conv_dx_recorded = _differentiable(conv_dx, find_conv_dx, conv_dx_gradients)
conv_dw_recorded = _differentiable(conv_dw, find_conv_dw, conv_dw_gradients)
_recording = torch.is_grad_enabled
_REFUSALS = (TypeError, ValueError, RuntimeError)  # what tvm-ffi raises; torch's checkpointing stops a forward by an exception of its own


def conv_called(keys: Any, x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    """Computes conv at the Autograd key: a call on a CPU like one before goes straight to its kernel."""
    key = None
    if keys.raw_repr() in plain_keys:
        key = x.shape, x.stride(), x.dtype, taps, stride[0], stride[1], padding_mode
        call, record = quick_calls.get(key, NO_CALL)
        try:
            if not (_recording() and (x.requires_grad or weight.requires_grad)):
                if call is not None:
                    return call(x, weight)
            elif record is not None:
                return record(x, weight)
        except _REFUSALS:  # another weight than the kernel's: the checks say what is wrong with it, or another call takes it
            pass
    return _conv_recorded(keys, (x, weight), (taps, stride, padding_mode), key)


def conv_epilogue_called(
    keys: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> torch.Tensor:
    """Computes conv_epilogue at the Autograd key, as `conv_called`."""
    key = None
    if keys.raw_repr() in plain_keys:
        key = x.shape, x.stride(), x.dtype, taps, stride[0], stride[1], padding_mode, activation, bias is None
        call, record = quick_calls.get(key, NO_CALL)
        try:
            if not (_recording() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))):
                if call is not None:
                    return call(x, weight, bias)
            elif record is not None:
                return record(x, weight, bias)
        except _REFUSALS:  # as in conv_called
            pass
    return _conv_epilogue_recorded(keys, (x, weight, bias), (activation, taps, stride, padding_mode), key)
