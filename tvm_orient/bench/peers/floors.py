"""Floors: what no kernel can be faster than, because it moves the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...problem.spec import ConvSpec
from .base import Call, Peer

# ---- floors: moving the bytes -------------------------------------------------------------------


def _make_copy(spec: ConvSpec, device: torch.device | str) -> Call:
    """Copies half of what x and y hold together, which reads and writes as many bytes as conv or conv_dx must."""
    held: dict[int, tuple[Tensor, Tensor]] = {}

    def copy(source: Tensor, w: Tensor) -> Tensor:
        count = _elements(spec, source.shape[0]) // 2
        if count not in held:
            held[count] = source.new_zeros(count), source.new_zeros(count)
        spare, target = held[count]
        return target.copy_(source.reshape(-1)[:count] if source.numel() >= count else spare)

    return copy


def _make_dot(spec: ConvSpec, device: torch.device | str) -> Call:
    """Returns a function that computes one dot product, which reads as many elements as x and dy hold together."""
    held: dict[int, Tensor] = {}

    def dot(x: Tensor, dy: Tensor) -> Tensor:
        count = _elements(spec, x.shape[0]) // 2
        if dy.numel() == count:
            return torch.dot(x.reshape(-1), dy.reshape(-1))
        return torch.dot(x.reshape(-1)[:count], held.setdefault(count, x.new_zeros(count)))

    return dot


def _elements(spec: ConvSpec, batch: int) -> int:
    return batch * spec.channels * (spec.height * spec.width + spec.out_height * spec.out_width)


def _only(ops: Sequence[str]) -> Callable[[ConvSpec], str | None]:
    return lambda spec: None if spec.op in ops else f"the floor of {' and '.join(ops)}"


def binding(make: Callable[..., Call], *more: Any) -> Callable[[ConvSpec, torch.device | str], Call]:
    return lambda spec, device: make(spec, device, *more)


FLOORS: tuple[Peer, ...] = (
    Peer("copy", "memory copy of as many bytes: y.copy_(x)", _only(("conv", "conv_dx")), _make_copy),
    Peer("dot", "one dot product over as many bytes: torch.dot(x, dy)", _only(("conv_dw",)), _make_dot),
)
