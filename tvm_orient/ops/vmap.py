"""The vmap rules of the operators: mapped images are folded into N; where weights are mapped too, or the op sums over N, each member is a call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .library import conv_epilogue


def _moved(tensors: Sequence[torch.Tensor], dims: Sequence[int | None], size: int) -> list[torch.Tensor]:
    """Returns tensors with the mapped dimension first; one that is not mapped is expanded."""
    return [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]


def mapped(op: Any, foldable: bool) -> Any:
    """Returns the vmap rule of an op.

    Args:
        op: called with two tensors and options.
        foldable: its first operand is a batch of images, and so is its result.
    """

    def rule(info: Any, in_dims: tuple[Any, ...], first: torch.Tensor, second: torch.Tensor, *options: Any) -> tuple[torch.Tensor, int]:
        firsts, seconds = _moved((first, second), in_dims[:2], info.batch_size)
        if foldable and in_dims[1] is None:
            return op(firsts.flatten(0, 1), second, *options).unflatten(0, firsts.shape[:2]), 0
        return torch.stack([op(a, b, *options) for a, b in zip(firsts.unbind(), seconds.unbind(), strict=True)]), 0

    return rule


def mapped_epilogue(info: Any, in_dims: tuple[Any, ...], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *options: Any) -> Any:
    """Computes conv_epilogue for each member of a mapped call; returns the stacked results and the dimension that they are stacked along."""
    biases = [None] * info.batch_size if bias is None else _moved((bias,), in_dims[2:3], info.batch_size)[0].unbind()
    xs, weights = _moved((x, weight), in_dims[:2], info.batch_size)
    return torch.stack([conv_epilogue(*each, *options) for each in zip(xs.unbind(), weights.unbind(), biases, strict=True)]), 0
