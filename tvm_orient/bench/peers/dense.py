"""Peers: dense kernels of torch, oneDNN and cuDNN that hold the line."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...problem.spec import ConvSpec
from ...problem.taps import Taps
from .base import Box, Call, around, pad_images, tap_lines

# ---- dense kernels: ATen, oneDNN and cuDNN ------------------------------------------------------


def _dense(spec: ConvSpec, box: Box, dilation: tuple[int, int] = (1, 1)) -> Call:
    """Returns PyTorch's depthwise convolution with a kernel (C, 1, kh, kw) that covers the box, or its gradient that spec.op names.

    conv and conv_dx take the first operand and the kernel; conv_dw takes x and dy and gives the kernel's gradient.
    """
    if spec.op == "conv_dx" and spec.stride == (1, 1):
        mirrored = _dense(dataclasses.replace(spec, op="conv"), (-box[1], -box[0], -box[3], -box[2]), dilation)
        return lambda dy, kernel: mirrored(dy, kernel.flip((2, 3)))
    in_call = spec.padding_mode == "zeros" and (box[0], box[2]) == (-box[1], -box[3])  # F.conv2d pads both sides alike
    padding = (box[1], box[3]) if in_call else (0, 0)
    extent = (box[1] - box[0] + 1, box[3] - box[2] + 1)
    size = ((extent[0] - 1) // dilation[0] + 1, (extent[1] - 1) // dilation[1] + 1)
    padded = (spec.height, spec.width) if in_call else (spec.height + extent[0] - 1, spec.width + extent[1] - 1)
    quiet = _without_onednn if extent[0] > spec.height or extent[1] > spec.width else contextlib.nullcontext

    def backward(dy: Tensor, x: Tensor, kernel: Tensor, mask: list[bool]) -> Tensor:
        with quiet():
            results = torch.ops.aten.convolution_backward(
                dy, x, kernel, None, spec.stride, padding, dilation, False, (0, 0), spec.channels, mask
            )  # fmt: skip
        gradient: Tensor = results[mask.index(True)]
        return gradient

    def conv(x: Tensor, kernel: Tensor) -> Tensor:
        with quiet():
            return F.conv2d(x if in_call else pad_images(x, box, spec), kernel, None, spec.stride, padding, dilation, spec.channels)

    def conv_dx(dy: Tensor, kernel: Tensor) -> Tensor:
        dx = backward(dy, dy.new_empty(dy.shape[0], spec.channels, *padded), kernel, [True, False, False])
        return dx if in_call else F.pad(dx, [-p for p in around(box)])

    def conv_dw(x: Tensor, dy: Tensor) -> Tensor:
        return backward(dy, x if in_call else pad_images(x, box, spec), x.new_empty(spec.channels, 1, *size), [False, True, False])

    return {"conv": conv, "conv_dx": conv_dx, "conv_dw": conv_dw}[spec.op]


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    # oneDNN crashes in the backward of a depthwise kernel that is larger than the plane (torch 2.14, AVX512)
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def dense_applies(spec: ConvSpec) -> str | None:
    if spec.op == "conv_dx" and spec.stride != (1, 1) and spec.padding_mode == "circular":
        return "with a stride, conv_dx under circular padding is no convolution call of PyTorch"
    return None


def make_raster(spec: ConvSpec, device: torch.device | str) -> Call:
    lines, box = tap_lines(spec)
    height, width = box[1] - box[0] + 1, box[3] - box[2] + 1
    cell = np.full((spec.channels, spec.kernel_size), height * width)  # a spare cell for taps that never reach the plane
    for lo, hi, places in lines:
        for (dh, dw), colliding in places:
            cell[lo:hi, list(colliding)] = (dh - box[0]) * width + dw - box[2]
    spare = int(cell.max() == height * width)
    index, call = torch.from_numpy(cell).to(device), _dense(spec, box)

    def weighted(source: Tensor, w: Tensor) -> Tensor:
        kernel = w.new_zeros(spec.channels, height * width + spare).scatter_add_(1, index, w)  # add: taps collide
        return call(source, kernel[:, : height * width].reshape(spec.channels, 1, height, width))

    def correlated(x: Tensor, dy: Tensor) -> Tensor:
        gradient = call(x, dy).reshape(spec.channels, height * width)
        return (F.pad(gradient, (0, 1)) if spare else gradient).gather(1, index)

    return correlated if spec.op == "conv_dw" else weighted


def grouped_applies(spec: ConvSpec) -> str | None:
    return "all channels have the same taps: this is the single raster" if len(spec.parts()) == 1 else dense_applies(spec)


def make_grouped(spec: ConvSpec, device: torch.device | str) -> Call:
    parts = [(lo, hi, make_raster(dataclasses.replace(part, channels=hi - lo), device)) for lo, hi, part in spec.parts()]
    if spec.op == "conv_dw":
        return lambda x, dy: torch.cat([call(x[:, lo:hi], dy[:, lo:hi]) for lo, hi, call in parts], 0)
    return lambda source, w: torch.cat([call(source[:, lo:hi], w[lo:hi]) for lo, hi, call in parts], 1)


def _horizontal_step(taps: Taps) -> int | None:
    """Returns the dilation of a centred horizontal line that all groups share; None where the taps are something else."""
    size, half = taps.kernel_size, taps.kernel_size // 2
    step = taps.table[0][half + 1][1] if half + 1 < size else 1
    line = tuple((0, step * (s - half)) for s in range(size))
    return step if size % 2 == 1 and step >= 1 and all(table == line for table in taps.table) else None


def native_applies(spec: ConvSpec) -> str | None:
    step = _horizontal_step(spec.taps)
    if step is None:
        return "a native (1, K) convolution is another function unless every tap line is horizontal (theta = 0)"
    if spec.padding_mode == "circular" and step * (spec.kernel_size // 2) > spec.width:
        return "PyTorch's circular padding reaches one plane width at most"
    return dense_applies(spec)


def make_native(spec: ConvSpec, device: torch.device | str, memory_format: torch.memory_format) -> Call:
    step = _horizontal_step(spec.taps) or 1
    reach = step * (spec.kernel_size // 2)
    call = _dense(spec, (0, 0, -reach, reach), (1, step))
    if spec.op == "conv_dw":
        return lambda x, dy: call(x.contiguous(memory_format=memory_format), dy.contiguous(memory_format=memory_format)).reshape(spec.channels, -1)
    return lambda source, w: call(source.contiguous(memory_format=memory_format), w.view(spec.channels, 1, 1, -1))


def cudnn_applies(spec: ConvSpec) -> str | None:
    if not torch.backends.cudnn.is_available():
        return "this build of torch has no cuDNN"
    if spec.op == "conv_dw" or (spec.op == "conv_dx" and spec.stride != (1, 1)):
        return "PyTorch calls cuDNN by name for a convolution only, not for its gradients"
    return native_applies(spec)


def make_cudnn(spec: ConvSpec, device: torch.device | str) -> Call:
    """Returns the function forced to cuDNN: on NCHW PyTorch would take its own kernel."""
    step, back = _horizontal_step(spec.taps) or 1, spec.op == "conv_dx"
    reach = step * (spec.kernel_size // 2)
    box, inside = (0, 0, -reach, reach), spec.padding_mode == "zeros"

    def call(source: Tensor, w: Tensor) -> Tensor:
        kernel = (w.flip(1) if back else w).view(spec.channels, 1, 1, -1)
        padded, padding = (source, (0, reach)) if inside else (pad_images(source, box, spec), (0, 0))
        result: Tensor = torch.ops.aten.cudnn_convolution(padded, kernel, padding, spec.stride, (1, step), spec.channels, True, False, False)
        return result

    return call
