"""The oracle: oriented depthwise convolution in float64, one tap at a time, straight from the definition.

For channel c of group g, with stride (sh, sw)::

    y[n, c, p, q] = sum_s w[c, s] * x~[n, c, p*sh + dh[g, s], q*sw + dw[g, s]]

x~ is x without bound: zeros outside the plane, or x repeated. Nothing is folded or pruned here, so that a kernel
that folds and prunes is checked against something that does not. Operands may be of any float dtype and device.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..problem.spec import PADDING_MODES, ConvSpec, stride_pair
from ..problem.taps import Taps

Window = tuple[slice, slice]


def conv(x: Tensor, w: Tensor, taps: Taps, stride: int | tuple[int, int] = (1, 1), padding_mode: str = "zeros") -> Tensor:
    """Return y (N, C, ceil(H/sh), ceil(W/sw)), float64, of x (N, C, H, W) and w (C, K) of any float dtype.

    Raises:
        InvalidArgument: shapes that do not fit, an unknown padding_mode, a stride < 1.
    """
    stride = stride_pair(stride)
    batch, channels, height, width = _plane("x", x)
    _expect("w", w, (channels, taps.kernel_size))
    x, w = x.double(), w.double()
    y = x.new_zeros(batch, channels, -(-height // stride[0]), -(-width // stride[1]))
    for lo, hi, s, out, into in _walk(taps, channels, height, width, stride, padding_mode):
        y[:, lo:hi, *out].addcmul_(x[:, lo:hi, *into], w[lo:hi, s, None, None])
    return y


def conv_dx(dy: Tensor, w: Tensor, taps: Taps, height: int, width: int, stride: int | tuple[int, int] = (1, 1), padding_mode: str = "zeros") -> Tensor:
    """Return dx (N, C, height, width), float64: the adjoint of `conv` in x, of dy (N, C, P, Q) and w (C, K) of any float dtype.

    Raises:
        InvalidArgument: shapes that do not fit, an unknown padding_mode, a stride < 1.
    """
    stride = stride_pair(stride)
    batch, channels, *_ = _plane("dy", dy)
    _expect("dy", dy, (batch, channels, -(-height // stride[0]), -(-width // stride[1])))
    _expect("w", w, (channels, taps.kernel_size))
    dy, w = dy.double(), w.double()
    dx = dy.new_zeros(batch, channels, height, width)
    for lo, hi, s, out, into in _walk(taps, channels, height, width, stride, padding_mode):
        dx[:, lo:hi, *into].addcmul_(dy[:, lo:hi, *out], w[lo:hi, s, None, None])
    return dx


def conv_dw(x: Tensor, dy: Tensor, taps: Taps, stride: int | tuple[int, int] = (1, 1), padding_mode: str = "zeros") -> Tensor:
    """Return dw (C, K), float64: the adjoint of `conv` in w, of x (N, C, H, W) and dy (N, C, P, Q) of any float dtype.

    Taps that collide get equal gradients.

    Raises:
        InvalidArgument: shapes that do not fit, an unknown padding_mode, a stride < 1.
    """
    stride = stride_pair(stride)
    batch, channels, height, width = _plane("x", x)
    _expect("dy", dy, (batch, channels, -(-height // stride[0]), -(-width // stride[1])))
    x, dy = x.double(), dy.double()
    dw = x.new_zeros(channels, taps.kernel_size)
    for lo, hi, s, out, into in _walk(taps, channels, height, width, stride, padding_mode):
        dw[lo:hi, s] += (x[:, lo:hi, *into] * dy[:, lo:hi, *out]).sum((0, 2, 3))
    return dw


def run(spec: ConvSpec, *operands: Tensor) -> Tensor:
    """Return the result of the op that a spec names, float64, with its bias and activation.

    Args:
        spec: the problem; its dtype and its layout are not looked at.
        operands: of any float dtype: conv (x, w), with spec.bias (x, w, bias); conv_dx (dy, w); conv_dw (x, dy). Images are (N, C, H, W), weights
            (C, K), a bias (C,).

    Raises:
        InvalidArgument: operands whose number or shapes are not those of the spec.
    """
    if len(operands) != 2 + spec.bias:
        raise InvalidArgument(f"{spec.op} takes {'three' if spec.bias else 'two'} operands, got {len(operands)}")
    first, second = operands[:2]
    image = spec.operands(first.shape[0] if first.ndim == 4 else 0)[0]
    _expect(image.name, first, image.torch_shape)
    if spec.op == "conv":
        return _ended(spec, conv(first, second, spec.taps, spec.stride, spec.padding_mode), *operands[2:])
    if spec.op == "conv_dx":
        return conv_dx(first, second, spec.taps, spec.height, spec.width, spec.stride, spec.padding_mode)
    return conv_dw(first, second, spec.taps, spec.stride, spec.padding_mode)


def _ended(spec: ConvSpec, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return y with the epilogue of a spec, float64."""
    if bias is not None:
        _expect("bias", bias, (spec.channels,))
        y = y + bias.double().view(-1, 1, 1)
    return y if spec.activation == "none" else getattr(torch.nn.functional, spec.activation)(y)


def _plane(name: str, tensor: Tensor) -> tuple[int, int, int, int]:
    """Return the shape of images, checked: name is what a message calls them."""
    if tensor.ndim != 4 or 0 in tensor.shape[1:]:
        raise InvalidArgument(f"{name} must have four dimensions (N, C, H, W) with C, H, W >= 1, got shape {tuple(tensor.shape)}")
    batch, channels, height, width = tensor.shape
    return batch, channels, height, width


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Check the shape of a tensor: name is what a message calls it."""
    if tuple(tensor.shape) != shape:
        raise InvalidArgument(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _walk(taps: Taps, channels: int, height: int, width: int, stride: tuple[int, int], padding_mode: str) -> Iterator[tuple[int, int, int, Window, Window]]:
    """Yield for every tap of every group (first channel, stop channel, tap, pixels of y, pixels of x that the tap pairs with them)."""
    if padding_mode not in PADDING_MODES:
        raise InvalidArgument(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    for (lo, hi), line in zip(taps.channel_ranges(channels), taps.table, strict=True):
        for s, (dh, dw) in enumerate(line):
            for rows_out, rows_in in _overlaps(dh, height, stride[0], padding_mode):
                for columns_out, columns_in in _overlaps(dw, width, stride[1], padding_mode):
                    yield lo, hi, s, (rows_out, columns_out), (rows_in, columns_in)


def _overlaps(offset: int, size: int, step: int, padding_mode: str) -> Iterator[tuple[slice, slice]]:
    """Yield along one axis (the outputs p whose input p*step + offset exists, those inputs).

    Circular padding reads p*step + offset modulo size: two shifts see that together, offset mod size and the same less size.
    """
    shifts = (offset,) if padding_mode == "zeros" else (offset % size, offset % size - size)
    for shift in shifts:
        start = max(0, -(shift // step))
        stop = min(-(-size // step), -((shift - size) // step))
        if start < stop:
            yield slice(start, stop), slice(start * step + shift, (stop - 1) * step + shift + 1, step)
