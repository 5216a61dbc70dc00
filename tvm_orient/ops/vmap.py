"""vmap rules of the operators: images fold into N; weights of their own, and sums over N, are one call each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .library import conv_epilogue

# ---- vmap: images fold into N; weights of their own, and sums over N, are one call each -----------


def _moved(tensors: Sequence[torch.Tensor], dims: Sequence[int | None], size: int) -> list[torch.Tensor]:
    """Both operands with the mapped dimension first, expanded where an operand is not mapped."""
    return [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]


def mapped(op: Any, foldable: bool) -> Any:
    """The vmap rule of an op (a callable). foldable: its first operand is a batch of images, and so is its result."""

    def rule(info: Any, in_dims: tuple[Any, ...], first: torch.Tensor, second: torch.Tensor, *options: Any) -> tuple[torch.Tensor, int]:
        firsts, seconds = _moved((first, second), in_dims[:2], info.batch_size)
        if foldable and in_dims[1] is None:
            return op(firsts.flatten(0, 1), second, *options).unflatten(0, firsts.shape[:2]), 0
        return torch.stack([op(a, b, *options) for a, b in zip(firsts.unbind(), seconds.unbind(), strict=True)]), 0

    return rule


def mapped_epilogue(info: Any, in_dims: tuple[Any, ...], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *options: Any) -> Any:
    biases = [None] * info.batch_size if bias is None else _moved((bias,), in_dims[2:3], info.batch_size)[0].unbind()
    xs, weights = _moved((x, weight), in_dims[:2], info.batch_size)
    return torch.stack([conv_epilogue(*each, *options) for each in zip(xs.unbind(), weights.unbind(), biases, strict=True)]), 0
