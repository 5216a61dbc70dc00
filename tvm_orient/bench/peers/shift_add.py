"""A peer: shifted copies added up."""

from __future__ import annotations

import torch
from torch import Tensor

from ...problem.line_offsets import Offset
from ...problem.spec import ConvSpec
from .base import Call, as_conv, compiled_peer, joined_lines, pad_images, tap_lines

# ---- compiled shift-add: angles are constants ---------------------------------------------------


def shift_applies(spec: ConvSpec) -> str | None:
    if spec.op == "conv_dx" and spec.stride != (1, 1):
        return "with a stride, a tap of conv_dx reaches only some rows and columns, so it is no shift of dy"
    return None


def make_shift(spec: ConvSpec, device: torch.device | str, padding_inside: bool) -> Call:
    spec = as_conv(spec)
    lines, box = tap_lines(spec)
    (step_h, step_w), (rows, columns) = spec.stride, (spec.out_height, spec.out_width)
    taps = spec.kernel_size

    def shifted(padded: Tensor, lo: int, hi: int, offset: Offset) -> Tensor:
        top, left = offset[0] - box[0], offset[1] - box[2]
        return padded[:, lo:hi, top : top + (rows - 1) * step_h + 1 : step_h, left : left + (columns - 1) * step_w + 1 : step_w]

    def weighted(padded: Tensor, w: Tensor) -> Tensor:
        parts = []
        for lo, hi, places in lines:
            total = padded.new_zeros(padded.shape[0], hi - lo, rows, columns)
            for offset, colliding in places:
                weight = sum([w[lo:hi, s] for s in colliding[1:]], w[lo:hi, colliding[0]])
                total = total + shifted(padded, lo, hi, offset) * weight.view(-1, 1, 1)
            parts.append(total)
        return joined_lines(parts, 1)

    def correlated(padded: Tensor, dy: Tensor) -> Tensor:
        parts = []
        for lo, hi, places in lines:
            sums = [dy.new_zeros(dy.shape[0], hi - lo)] * taps
            for offset, colliding in places:
                value = (shifted(padded, lo, hi, offset) * dy[:, lo:hi]).sum((2, 3))
                for s in colliding:
                    sums[s] = value
            parts.append(torch.stack(sums, 2).sum(0))
        return joined_lines(parts, 0)

    inner = correlated if spec.op == "conv_dw" else weighted
    if padding_inside:
        return compiled_peer(lambda source, other: inner(pad_images(source, box, spec), other))
    compiled = compiled_peer(inner)
    return lambda source, other: compiled(pad_images(source, box, spec), other)
