"""torch.func and what composes with it: vmap, grad, checkpointing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import tvm_orient as to
from tests.support.helpers import counted, line
from tvm_orient import ops

TAPS = line(0, 45, 90, k=5)


def operands() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 2, 6, 7, 8, dtype=torch.float64), torch.randn(3, 6, 5, dtype=torch.float64)


def conv(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return to.tap_conv2d(x, w, TAPS, stride=2)


@pytest.mark.parametrize("dims", [(0, None), (None, 0), (0, 0), (1, None), (4, 1)])
def test_vmap_is_a_loop(dims: tuple[Any, Any]) -> None:
    x, w = operands()
    x = x.movedim(0, dims[0]) if dims[0] is not None else x[0]
    w = w.movedim(0, dims[1]) if dims[1] is not None else w[0]
    got = torch.vmap(conv, in_dims=dims)(x, w)
    pick = lambda t, d, i: t if d is None else t.select(d, i)  # noqa: E731
    want = torch.stack([conv(pick(x, dims[0], i), pick(w, dims[1], i)) for i in range(3)])
    assert torch.allclose(got, want, rtol=0, atol=1e-12)


def test_vmap_of_images_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch, lambda spec, given: tuple(given[0].shape))
    x, w = operands()
    torch.vmap(conv, in_dims=(0, None))(x, w[0])
    assert calls == [(6, 6, 7, 8)]


def test_the_operator_itself_refuses_transforms() -> None:
    """Until PyTorch lets registered gradients pass through torch.func: an error, not a gradient that is missing."""
    x, w = operands()
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda weight: ops.conv(x[0], weight, TAPS.key, (1, 1), "zeros").sum())(w[0])


def test_per_sample_gradients() -> None:
    x, w = torch.randn(4, 6, 7, 8, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)

    def loss(weight: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return (to.tap_conv2d(image[None], weight, TAPS) ** 2).sum()

    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(w, x)
    want = torch.stack([torch.func.grad(loss)(w, image) for image in x])
    assert torch.allclose(each, want)


def test_func_grad_and_hessian_vector_product() -> None:
    x, w = torch.randn(2, 6, 7, 8, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return (to.tap_conv2d(x, weight, TAPS) ** 3).sum()

    v = torch.randn_like(w)
    product = torch.func.grad(lambda weight: (torch.func.grad(loss)(weight) * v).sum())(w)
    step = 1e-5
    want = (torch.func.grad(loss)(w + step * v) - torch.func.grad(loss)(w - step * v)) / (2 * step)
    assert torch.allclose(product, want, rtol=1e-4, atol=1e-4)


def test_checkpointing() -> None:
    module = to.nn.OrientedConv2d(6, 5, dtype=torch.float64)
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    module(x).square().sum().backward()
    want, x.grad = x.grad, None
    checkpoint(module, x, use_reentrant=False).square().sum().backward()
    assert torch.equal(x.grad, want)  # type: ignore[arg-type]
