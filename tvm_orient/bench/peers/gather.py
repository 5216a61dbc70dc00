"""A peer: one indexed read of all taps."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...problem.spec import ConvSpec
from .base import Call, compiled_peer

# ---- compiled gather: angles are data -----------------------------------------------------------


def make_gather(spec: ConvSpec, device: torch.device | str) -> Call:
    counts = [hi - lo for lo, hi in spec.taps.channel_ranges(spec.channels)]
    table = torch.from_numpy(np.repeat(spec.taps.offsets, counts, axis=0)).to(device)  # (C, K, 2)
    channel = torch.arange(spec.channels, device=device).view(-1, 1, 1)

    def taken(source: Tensor, s: int) -> Tensor:
        h, h_there = _sources(table[:, s, 0].view(-1, 1, 1), spec, 0)
        v, v_there = _sources(table[:, s, 1].view(-1, 1, 1), spec, 1)
        return torch.where(h_there & v_there, source[:, channel, h, v], 0)

    def weighted(source: Tensor, w: Tensor) -> Tensor:
        total = taken(source, 0) * w[:, 0].view(-1, 1, 1)
        for s in range(1, spec.kernel_size):
            total = total + taken(source, s) * w[:, s].view(-1, 1, 1)
        return total

    def correlated(x: Tensor, dy: Tensor) -> Tensor:
        return torch.stack([(taken(x, s) * dy).sum((2, 3)) for s in range(spec.kernel_size)], 2).sum(0)

    return compiled_peer(correlated if spec.op == "conv_dw" else weighted)


def _sources(offset: Tensor, spec: ConvSpec, axis: int) -> tuple[Tensor, Tensor]:
    """Returns along one axis (0 rows, 1 columns) the pixel that each output reads, and whether there is one."""
    size, step, back = (spec.height, spec.width)[axis], spec.stride[axis], spec.op == "conv_dx"
    shape = (1, -1, 1) if axis == 0 else (1, 1, -1)
    count = size if back else -(-size // step)
    place = torch.arange(count, device=offset.device, dtype=torch.int32).view(shape)
    pixel = place - offset if back else place * step + offset
    if spec.padding_mode == "circular":
        pixel = pixel.remainder(size)
    there = (pixel >= 0) & (pixel < size)
    pixel = pixel.clamp(0, size - 1)
    return (pixel // step, there & (pixel % step == 0)) if back else (pixel, there)
