"""The oracle: oriented depthwise convolution in float64, one tap at a time, straight from the definition.

For channel c of group g, with stride (sh, sw)::

    y[n, c, p, q] = sum_s w[c, s] * x~[n, c, p*sh + dh[g, s], q*sw + dw[g, s]]

x~ is x without bound: zeros outside the plane, or x repeated. Nothing is folded or pruned here, so that a kernel
that folds and prunes is checked against something that does not. Operands may be of any float dtype and device.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .errors import InvalidArgument
from .spec import PADDING_MODES, ConvSpec, stride_pair
from .taps import Taps

Window = tuple[slice, slice]

_RARE = 6.0  # in units of sqrt(n)*u: Hoeffding's inequality leaves 2*exp(-6*6/2) = 3e-8 beyond it


def conv(x: Tensor, w: Tensor, taps: Taps, stride: int | tuple[int, int] = (1, 1), padding_mode: str = "zeros") -> Tensor:
    """y (N, C, ceil(H/sh), ceil(W/sw)) in float64, of x (N, C, H, W) and w (C, K) of any float dtype.

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
    """dx (N, C, height, width) in float64: the adjoint of `conv` in x, of dy (N, C, P, Q) and w (C, K).

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
    """dw (C, K) in float64: the adjoint of `conv` in w, of x (N, C, H, W) and dy (N, C, P, Q). Colliding taps get equal gradients.

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
    """The op that spec names, in float64; the dtype and the layout of spec are not looked at: images are (N, C, H, W).

    Operands: conv (x, w), with spec.bias (x, w, bias); conv_dx (dy, w); conv_dw (x, dy).

    Raises:
        InvalidArgument: operands whose shapes are not those of the spec.
    """
    if len(operands) != 2 + spec.bias:
        raise InvalidArgument(f"{spec.op} takes {'three' if spec.bias else 'two'} operands, got {len(operands)}")
    plane = (spec.channels, spec.height, spec.width)
    out = (spec.channels, spec.out_height, spec.out_width)
    first, second = operands[:2]
    batch = first.shape[0] if first.ndim == 4 else 0
    if spec.op == "conv":
        _expect("x", first, (batch, *plane))
        return _ended(spec, conv(first, second, spec.taps, spec.stride, spec.padding_mode), *operands[2:])
    if spec.op == "conv_dx":
        _expect("dy", first, (batch, *out))
        return conv_dx(first, second, spec.taps, spec.height, spec.width, spec.stride, spec.padding_mode)
    _expect("x", first, (batch, *plane))
    return conv_dw(first, second, spec.taps, spec.stride, spec.padding_mode)


def _ended(spec: ConvSpec, y: Tensor, bias: Tensor | None = None) -> Tensor:
    """The epilogue of a spec in float64."""
    if bias is not None:
        _expect("bias", bias, (spec.channels,))
        y = y + bias.double().view(-1, 1, 1)
    return y if spec.activation == "none" else getattr(torch.nn.functional, spec.activation)(y)


def tolerance(spec: ConvSpec, batch: int, *operands: Tensor) -> float:
    """Largest absolute error that rounding alone may put into a kernel's result for these operands.

    A sum of n products in any order, fused or not, errs by at most (Higham, Accuracy and Stability of Numerical
    Algorithms, 2nd ed., eq. 3.5)::

        gamma_n * sum_i |a_i * b_i|        gamma_n = n*u / (1 - n*u)

    u is the unit roundoff of spec.sums. n is K for conv and conv_dx: a kernel that adds colliding weights first has no
    longer chain than that. n is N*P*Q for conv_dw, where the worst case is out of reach of any real kernel, so the
    depth is min(n, 6*sqrt(n)): rounding errors that are independent with mean zero, as random operands make them,
    exceed it with probability 3e-8 an output (Higham & Mary, A new approach to probabilistic rounding error analysis,
    2019). The sum of magnitudes is the reference on absolute values, at its largest output. The float64 reference's own
    error is added, and n results below the smallest normal number may be flushed to zero. A half-precision result is
    rounded once more. A result that holds one wrong product of ordinary size lies far outside for conv and conv_dx;
    conv_dw of a large batch hides small faults, so check it on small ones too.

    A bias is one more term. An activation stretches errors by at most 1.13 (the slope of GELU; that of SiLU is 1.1) and adds its
    own: 1.5e-7 of its argument where erf is a polynomial (Abramowitz & Stegun 7.1.26), some units in the last place where it is a call.

    Args:
        spec: the problem; its dtype and `tvm_orient.ConvSpec.sums` say what is rounded.
        batch: images N.
        operands: as in `run`.
    """
    if spec.plain is not spec:
        return _ended_tolerance(spec, batch, *operands)
    depth = spec.kernel_size if spec.op != "conv_dw" else batch * spec.out_height * spec.out_width
    sums = run(spec, *(operand.double().abs() for operand in operands))
    if depth == 0 or sums.numel() == 0:
        return 0.0
    kind, stored = torch.finfo(getattr(torch, spec.sums)), torch.finfo(getattr(torch, spec.dtype))
    bound = _gamma(depth, kind.eps / 2) + _gamma(depth, torch.finfo(torch.float64).eps / 2)
    most = float(sums.max())
    rounding = 0.0 if spec.sums == spec.dtype else stored.eps / 2 * (1 + bound) * most + stored.tiny * stored.eps
    return bound * most + depth * kind.tiny + rounding


def _ended_tolerance(spec: ConvSpec, batch: int, *operands: Tensor) -> float:
    bound = tolerance(spec.plain, batch, *operands[:2])
    most = float(run(spec.plain, *(operand.double().abs() for operand in operands[:2])).amax()) if operands[0].numel() else 0.0
    most += float(operands[2].abs().max()) if spec.bias else 0.0
    kind, stored = torch.finfo(getattr(torch, spec.sums)), torch.finfo(getattr(torch, spec.dtype))
    own = 0.0 if spec.activation == "none" else max(8 * kind.eps, 1.5e-7 if spec.sums == "float32" else 0.0)
    return 1.13 * (bound + most * (kind.eps + own)) + stored.eps / 2 * most


def _gamma(depth: int, u: float) -> float:
    chain = min(float(depth), _RARE * math.sqrt(depth)) * u
    return chain / (1 - chain) if chain < 1 else math.inf


def _plane(name: str, tensor: Tensor) -> tuple[int, int, int, int]:
    if tensor.ndim != 4 or 0 in tensor.shape[1:]:
        raise InvalidArgument(f"{name} must have four dimensions (N, C, H, W) with C, H, W >= 1, got shape {tuple(tensor.shape)}")
    batch, channels, height, width = tensor.shape
    return batch, channels, height, width


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise InvalidArgument(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def _walk(taps: Taps, channels: int, height: int, width: int, stride: tuple[int, int], padding_mode: str) -> Iterator[tuple[int, int, int, Window, Window]]:
    """Every tap of every group: (first channel, stop channel, tap, pixels of y, pixels of x that the tap pairs with them)."""
    if padding_mode not in PADDING_MODES:
        raise InvalidArgument(f"padding_mode must be one of {', '.join(PADDING_MODES)}, got {padding_mode!r}")
    for (lo, hi), line in zip(taps.channel_ranges(channels), taps.table, strict=True):
        for s, (dh, dw) in enumerate(line):
            for rows_out, rows_in in _overlaps(dh, height, stride[0], padding_mode):
                for columns_out, columns_in in _overlaps(dw, width, stride[1], padding_mode):
                    yield lo, hi, s, (rows_out, columns_out), (rows_in, columns_in)


def _overlaps(offset: int, size: int, step: int, padding_mode: str) -> Iterator[tuple[slice, slice]]:
    """Along one axis, the outputs p whose input p*step + offset exists, and those inputs.

    Circular: p*step + offset modulo size is what two shifts see together, offset mod size and that less size.
    """
    shifts = (offset,) if padding_mode == "zeros" else (offset % size, offset % size - size)
    for shift in shifts:
        start = max(0, -(shift // step))
        stop = min(-(-size // step), -((shift - size) // step))
        if start < stop:
            yield slice(start, stop), slice(start * step + shift, (stop - 1) * step + shift + 1, step)
