"""Calls that are checked and prepared once: operands of the same shapes, strides and dtypes go straight to the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..problem.spec import ConvSpec
from ..problem.taps import Taps
from ..runtime import kernel, loader, serving
from . import checks

# calls by all that was checked and that their kernels were built for: everything about the operands but values and addresses (a CPU is device -1)
_ready: dict[tuple[Any, ...], kernel.Call] = {}
_MAX_READY = 4096  # kinds of calls that are kept; one more empties the tables
# the calls of kernels for one problem alone, which refuse a weight or bias that does not fit them, unless N is 0
strict_calls: set[kernel.Call] = set()
# (strict call, its recording with gradients) on a CPU, by the image and the options alone: a strict call looks at the other operands itself
quick_calls: dict[tuple[Any, ...], tuple[Any, Any]] = {}
NO_CALL = (None, None)
plain_keys: set[int] = set()  # dispatch keys of calls on a CPU after whose autograd our implementation comes


def _forget() -> None:
    for table in (_ready, strict_calls, quick_calls):
        table.clear()


serving.on_forget(_forget)


def layout_of(image: torch.Tensor) -> str:
    """Returns the layout that an operator takes for an image (N, C, H, W): "nhwc" where it is channels_last and not contiguous."""
    return "nchw" if image.is_contiguous() or not image.is_contiguous(memory_format=torch.channels_last) else "nhwc"


def _kind(a: torch.Tensor, b: torch.Tensor) -> tuple[Any, ...]:
    return a.shape, a.stride(), b.shape, b.stride(), a.dtype, b.dtype, a.get_device(), b.get_device()


def _prepared(
    key: tuple[Any, ...],
    op: str,
    operands: tuple[torch.Tensor, torch.Tensor],
    plane: Sequence[int],
    taps: str,
    stride: Sequence[int],
    padding_mode: str,
    epilogue: tuple[bool, str] = (False, "none"),
) -> kernel.Call:
    """Returns the call of a kernel on operands that have just been checked, and keeps it for the calls like it.

    Args:
        key: its place in `_ready`.
        operands: the image first.
        plane: height and width of x.
        epilogue: (whether there is a bias, the name of the activation).
    """
    image = operands[0]
    bias, activation = epilogue
    spec = ConvSpec(
        op, image.shape[1], plane[0], plane[1], Taps.from_key(taps), stride=(stride[0], stride[1]), padding_mode=padding_mode,
        dtype=checks.dtype_name(image.dtype), layout=layout_of(image), bias=bias, activation=activation,
    )  # fmt: skip
    served = serving.kernel_for_call(spec, loader.device_of(image))
    call = served.prepared(*operands)
    if len(_ready) >= _MAX_READY:
        _forget()
    if isinstance(served, kernel.Kernel) and not served.generic and image.shape[0]:
        strict_calls.add(call)
    _ready[key] = call
    return call


def find_conv(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> kernel.Call:
    """Returns the call for operands of conv, which are checked unless calls like it were before.

    Raises:
        InvalidArgument: as `checks.conv_operands`.
        Unsupported, BuildFailed, EnvironmentProblem: as `serving.kernel_for_call`; so do the three functions below.
    """
    key = ("conv", taps, stride[0], stride[1], padding_mode, _kind(x, weight))
    call = _ready.get(key)
    if call is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        call = _prepared(key, "conv", (x, weight), x.shape[2:], taps, stride, padding_mode)
    return call


def find_conv_epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> kernel.Call:
    """Returns the call for operands of conv_epilogue, as `find_conv`; errors also as `checks.bias_vector`."""
    added = None if bias is None else (bias.shape, bias.dtype, bias.get_device())
    key = (activation, taps, stride[0], stride[1], padding_mode, _kind(x, weight), added)
    call = _ready.get(key)
    if call is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        if bias is not None:
            checks.bias_vector(bias, x)
        call = _prepared(key, "conv", (x, weight), x.shape[2:], taps, stride, padding_mode, (bias is not None, activation))
    return call


def find_conv_dx(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: list[int], padding_mode: str) -> kernel.Call:
    """Returns the call for operands of conv_dx, as `find_conv`; errors as `checks.dx_operands`."""
    key = ("conv_dx", taps, stride[0], stride[1], padding_mode, _kind(dy, weight), height, width)
    call = _ready.get(key)
    if call is None:
        checks.dx_operands(dy, weight, Taps.from_key(taps), height, width, (stride[0], stride[1]))
        call = _prepared(key, "conv_dx", (dy, weight), (height, width), taps, stride, padding_mode)
    return call


def find_conv_dw(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> kernel.Call:
    """Returns the call for operands of conv_dw, as `find_conv`; errors as `checks.dw_operands`."""
    key = ("conv_dw", taps, stride[0], stride[1], padding_mode, _kind(x, dy))
    call = _ready.get(key)
    if call is None:
        checks.dw_operands(x, dy, (stride[0], stride[1]))
        call = _prepared(key, "conv_dw", (x, dy), x.shape[2:], taps, stride, padding_mode)
    return call
