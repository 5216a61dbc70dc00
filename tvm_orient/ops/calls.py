"""Calls: what is checked and prepared once for calls that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..problem.spec import ConvSpec
from ..problem.taps import Taps
from ..runtime import kernel, loader, serving
from . import checks

# what a call has been checked and built for: everything about its operands but values and addresses; a CPU is device -1
_ready: dict[tuple[Any, ...], kernel.Call] = {}
_MOST = 4096
strict_calls: set[kernel.Call] = set()  # those of kernels for one problem alone: they refuse a weight or bias that is not theirs, unless N is 0
# what a call on a CPU with an image like this was, and what records it: short keys, since a strict call looks at the rest itself
quick_calls: dict[tuple[Any, ...], tuple[Any, Any]] = {}
NO_CALL = (None, None)
plain_keys: set[int] = set()  # dispatch keys with which our implementation comes after autograd, on a CPU


def _forget() -> None:
    for table in (_ready, strict_calls, quick_calls):
        table.clear()


serving.on_forget(_forget)


def layout_of(image: torch.Tensor) -> str:
    """The layout that an operator takes for an image (N, C, H, W): "nhwc" where it is channels_last and not contiguous."""
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
    """The call of a kernel on operands that have just been checked, the image first, kept for the calls like it. plane: height and width of x."""
    image = operands[0]
    bias, activation = epilogue
    spec = ConvSpec(
        op, image.shape[1], plane[0], plane[1], Taps.from_key(taps), stride=(stride[0], stride[1]), padding_mode=padding_mode,
        dtype=checks.dtype_name(image.dtype), layout=layout_of(image), bias=bias, activation=activation,
    )  # fmt: skip
    served = serving.kernel_for_call(spec, loader.device_of(image))
    call = served.prepared(*operands)
    if len(_ready) >= _MOST:
        _forget()
    if isinstance(served, kernel.Kernel) and not served.generic and image.shape[0]:
        strict_calls.add(call)
    _ready[key] = call
    return call


def find_conv(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> kernel.Call:
    key = ("conv", taps, stride[0], stride[1], padding_mode, _kind(x, weight))
    call = _ready.get(key)
    if call is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        call = _prepared(key, "conv", (x, weight), x.shape[2:], taps, stride, padding_mode)
    return call


def find_conv_epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> kernel.Call:
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
    key = ("conv_dx", taps, stride[0], stride[1], padding_mode, _kind(dy, weight), height, width)
    call = _ready.get(key)
    if call is None:
        checks.dx_operands(dy, weight, Taps.from_key(taps), height, width, (stride[0], stride[1]))
        call = _prepared(key, "conv_dx", (dy, weight), (height, width), taps, stride, padding_mode)
    return call


def find_conv_dw(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> kernel.Call:
    key = ("conv_dw", taps, stride[0], stride[1], padding_mode, _kind(x, dy))
    call = _ready.get(key)
    if call is None:
        checks.dw_operands(x, dy, (stride[0], stride[1]))
        call = _prepared(key, "conv_dw", (x, dy), x.shape[2:], taps, stride, padding_mode)
    return call
