"""Checks of what users pass: shapes, dtypes and devices against the rule that they break."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..errors import InvalidArgument
from ..problem.line_offsets import Anchor, in_radians
from ..problem.spec import ACTIVATIONS, DTYPES, PADDING_MODES, stride_pair
from ..problem.taps import Taps

_NAMES = {getattr(torch, name): name for name in DTYPES}
_BY_HAND = (
    ": pad x by torch.nn.functional.pad(x, (r, r, r, r), mode={!r}), where r is a multiple of the stride and at least the reach of the taps, "
    "dilation * (K // 2); call with zeros, and leave r / stride pixels out on each side of the result"
)


def dtype_name(dtype: torch.dtype) -> str:
    """Returns the name that a spec has for a dtype.

    Raises:
        InvalidArgument: the dtype is not supported.
    """
    name = _NAMES.get(dtype)
    if name is None:
        raise InvalidArgument(f"dtype must be one of {', '.join(DTYPES)}, got {dtype}: convert the tensors first")
    return name


def tensor(given: Any, name: str) -> None:
    """Refuses an argument that is no dense tensor.

    Raises:
        InvalidArgument: it is no tensor, or a nested, quantized or sparse one.
    """
    if not isinstance(given, torch.Tensor):
        remedy = f": use torch.from_numpy({name})" if isinstance(given, np.ndarray) else f": use torch.tensor({name})" if isinstance(given, list) else ""
        raise InvalidArgument(f"{name} must be a torch.Tensor, got {type(given).__name__}{remedy}")
    if given.is_nested or given.is_quantized:
        kind, remedy = ("nested", "call the function on each part, or pad them") if given.is_nested else ("quantized", f"use {name}.dequantize()")
        raise InvalidArgument(f"{name} must be a dense tensor, got a {kind} one: {remedy}")
    if given.layout is not torch.strided:
        raise InvalidArgument(f"{name} must be a dense tensor, got one of layout {given.layout}: use {name}.to_dense()")


def _cast(name: str, dtype: torch.dtype, to: str) -> str:
    """Returns the next step for a tensor of the wrong dtype, in words."""
    if dtype == torch.uint8:
        return f"use {name}.float() / 255 for an image of bytes"
    return f"use {name}.to({to})"


def _same(first: torch.Tensor, second: torch.Tensor, names: str) -> None:
    one, other = names.split(" and ")
    if first.device != second.device:
        raise InvalidArgument(f"{names} must be on one device, got {first.device} and {second.device}: use {other}.to({one}.device)")
    if first.dtype != second.dtype:
        odd, name = (second.dtype, other) if first.dtype in _NAMES else (first.dtype, one)
        remedy = _cast(name, odd, f"{one if name == other else other}.dtype")
        raise InvalidArgument(f"{names} must have one dtype, got {first.dtype} and {second.dtype}: {remedy}")
    if first.dtype not in _NAMES:
        raise InvalidArgument(f"dtype must be one of {', '.join(DTYPES)}, got {first.dtype}: {_cast(one, first.dtype, 'torch.float32')}, and {other} alike")


def _image(image: torch.Tensor, name: str) -> None:
    tensor(image, name)
    if image.dim() != 4:
        raise InvalidArgument(f"{name} must have shape (N, C, H, W), got {tuple(image.shape)}: add the missing dimensions with unsqueeze")
    if image.shape[1] < 1 or image.shape[2] < 1 or image.shape[3] < 1:
        raise InvalidArgument(f"{name} must have C, H, W >= 1 (N may be 0), got {tuple(image.shape)}")


def weight_matrix(weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight (C, K) or (C, 1, 1, K) as a view (C, K).

    Raises:
        InvalidArgument: the weight has another shape.
    """
    if weight.dim() == 4 and weight.shape[1] == 1 and weight.shape[2] == 1:
        return weight.flatten(1)
    if weight.dim() != 2:
        raise InvalidArgument(f"weight must have shape (C, K) or (C, 1, 1, K), got {tuple(weight.shape)}")
    return weight


def conv_operands(x: torch.Tensor, weight: torch.Tensor, taps: Taps) -> None:
    """Checks the operands of conv: x (N, C, H, W) and weight (C, K).

    Raises:
        InvalidArgument: a rule is broken.
    """
    _image(x, "x")
    tensor(weight, "weight")
    if weight.shape[0] != x.shape[1]:
        raise InvalidArgument(f"depthwise needs one row of weights per channel: x has {x.shape[1]} channels, weight {weight.shape[0]}")
    if weight.shape[1] != taps.kernel_size:
        raise InvalidArgument(f"weight must have as many columns as there are taps: {taps.kernel_size} taps, weight has {weight.shape[1]}")
    _same(x, weight, "x and weight")


def dx_operands(dy: torch.Tensor, weight: torch.Tensor, taps: Taps, height: int, width: int, stride: tuple[int, int]) -> None:
    """Checks the operands of conv_dx: dy (N, C, P, Q) with P = ceil(height/stride) and Q = ceil(width/stride), and weight (C, K).

    Raises:
        InvalidArgument: a rule is broken.
    """
    conv_operands(dy, weight, taps)
    _plane(dy, height, width, stride)


def dw_operands(x: torch.Tensor, dy: torch.Tensor, stride: tuple[int, int]) -> None:
    """Checks the operands of conv_dw: x (N, C, H, W), and dy (N, C, P, Q) with P = ceil(H/stride) and Q = ceil(W/stride).

    Raises:
        InvalidArgument: a rule is broken.
    """
    _image(x, "x")
    _image(dy, "dy")
    if x.shape[:2] != dy.shape[:2]:
        raise InvalidArgument(f"x and dy must have the same N and C, got {tuple(x.shape)} and {tuple(dy.shape)}")
    _plane(dy, x.shape[2], x.shape[3], stride)
    _same(x, dy, "x and dy")


def _plane(dy: torch.Tensor, height: int, width: int, stride: tuple[int, int]) -> None:
    stride = stride_pair(stride)
    want = (-(-height // stride[0]), -(-width // stride[1]))
    if dy.shape[2] != want[0] or dy.shape[3] != want[1]:
        raise InvalidArgument(f"dy must have ceil({height}/{stride[0]}) x ceil({width}/{stride[1]}) = {want[0]} x {want[1]} pixels, got {tuple(dy.shape[2:])}")


def options(stride: Any, padding_mode: str) -> tuple[int, int]:
    """Returns the stride as a pair (vertical, horizontal), after a check of padding_mode.

    Raises:
        InvalidArgument: a rule is broken.
    """
    if padding_mode not in PADDING_MODES:
        said = f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}"
        raise InvalidArgument(said + (_BY_HAND.format(padding_mode) if padding_mode in ("reflect", "replicate") else ""))
    return stride_pair(stride)


def activation_name(activation: str | None) -> str:
    """Returns the name that a spec has for an activation; None is "none".

    Raises:
        InvalidArgument: there is no such activation.
    """
    name = "none" if activation is None else activation
    if name not in ACTIVATIONS:
        raise InvalidArgument(f"activation must be None or one of {', '.join(ACTIVATIONS[1:])}, got {activation!r}: apply others to the result")
    return name


def bias_vector(bias: torch.Tensor, x: torch.Tensor) -> None:
    """Checks a bias: (C,), with the dtype and device of x.

    Raises:
        InvalidArgument: a rule is broken.
    """
    _image(x, "x")
    tensor(bias, "bias")
    if bias.dim() != 1 or bias.shape[0] != x.shape[1]:
        raise InvalidArgument(f"bias must have shape ({x.shape[1]},), one value per channel, got {tuple(bias.shape)}")
    _same(x, bias, "x and bias")


def angles(theta: Any, channels: int) -> tuple[float, ...]:
    """Returns theta (a number, (G,), (C,) or (C, 1), in radians) as numbers; a tensor is read once, on the host.

    Raises:
        InvalidArgument: another shape, whole numbers, or a tensor that asks for a gradient.
    """
    if isinstance(theta, torch.Tensor):
        if theta.requires_grad:
            raise InvalidArgument(
                "theta has no gradient, since it only chooses integer offsets, got a tensor with requires_grad=True: "
                "give theta.detach(), and train the weights, of several directions, instead"
            )
        theta = theta.detach().to("cpu", torch.float64 if theta.is_floating_point() else theta.dtype).numpy()
    values = in_radians(theta)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    values = values.reshape(1) if values.ndim == 0 else values
    if values.ndim != 1 or not 1 <= values.size <= channels:
        raise InvalidArgument(f"theta must be a number, (G,) with 1 <= G <= C = {channels}, (C,) or (C, 1), got shape {values.shape}")
    return tuple(values.tolist())


def line_key(theta: Any, kernel_size: int, dilation: int, anchor: Anchor, channels: int) -> str:
    """Returns the key of oriented taps at any theta that `angles` takes.

    Raises:
        InvalidArgument: as `angles` and `tvm_orient.Taps.oriented`.
    """
    return line_taps(angles(theta, channels), kernel_size, dilation, anchor, channels).key


def line_taps(theta: Sequence[float], kernel_size: int, dilation: int, anchor: Anchor, channels: int) -> Taps:
    """Returns oriented taps with the fewest groups that give every channel its own line."""
    taps = Taps.oriented(list(theta), kernel_size, dilation, anchor)
    return taps.for_channels(channels) if taps.groups == channels else taps
