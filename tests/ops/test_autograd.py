"""Gradients of the operators, to second order, and which kernels they run."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tvm_orient as to
from tests.support.helpers import OPS, assert_close, counted, line, operands, spec_of
from tests.support.operators import THREE, smooth
from tvm_orient import ops
from tvm_orient.problem.taps import Taps


def test_gradients_are_those_of_conv2d() -> None:
    x, w, b = smooth(2, 4, 11, 14, dtype=torch.float32), smooth(4, 7, dtype=torch.float32), smooth(4, dtype=torch.float32)
    dy = torch.randn(2, 4, 11, 14)
    ours = torch.autograd.grad(to.oriented_conv2d(x, w, 0.0, b), (x, w, b), dy)
    theirs = torch.autograd.grad(F.conv2d(x, w[:, None, None], b, padding=(0, 3), groups=4), (x, w, b), dy)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_an_expanded_gradient() -> None:
    """What y.sum().backward() gives: a gradient of stride 0."""
    x, w = smooth(2, 6, 8, 9, dtype=torch.float32), smooth(6, 5, dtype=torch.float32)
    dx, dw = torch.autograd.grad(to.oriented_conv2d(x, w, THREE).sum(), (x, w))
    spec = spec_of("conv_dx", 6, 8, 9, Taps.oriented(THREE, 5))
    assert_close(dx, spec, (torch.ones(2, 6, 8, 9), w.detach()))
    assert dw.isfinite().all()


@pytest.mark.parametrize(
    ("channels", "size", "theta", "options"),
    [
        (4, (5, 6), THREE, {"stride": (2, 1)}),
        (3, (4, 5), (0.0, math.pi / 4), {"padding_mode": "circular"}),
        (2, (5, 3), (1.0,), {"stride": (3, 2), "padding_mode": "circular", "dilation": 2}),
    ],
    ids=["strided", "circular", "ragged"],
)
def test_gradients_to_second_order(channels: int, size: tuple[int, int], theta: tuple[float, ...], options: dict[str, Any]) -> None:
    def f(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return to.oriented_conv2d(x, w, theta, b, **options)

    given = (smooth(2, channels, *size), smooth(channels, 5), smooth(channels))
    assert torch.autograd.gradcheck(f, given, fast_mode=False)
    assert torch.autograd.gradgradcheck(f, given, fast_mode=True)


@pytest.mark.parametrize("op", OPS)
def test_gradients_of_each_op(op: str) -> None:
    taps = line(22.5, 135, k=5)
    spec = spec_of(op, 2, 5, 4, taps, (2, 1), dtype="float64")
    given = tuple(t.requires_grad_() for t in operands(spec, 2))
    plane = (5, 4) if op == "conv_dx" else ()

    def f(first: Tensor, second: Tensor) -> Tensor:
        return getattr(ops, op)(first, second, taps.key, *plane, (2, 1), "zeros")

    assert torch.autograd.gradcheck(f, given)
    assert torch.autograd.gradgradcheck(f, given)


def test_only_the_gradients_that_are_needed_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    called = counted(monkeypatch, lambda spec, given: spec.op)
    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5)

    def ops_for(x_grad: bool, w_grad: bool) -> list[str]:
        called.clear()
        y = to.oriented_conv2d(x.clone().requires_grad_(x_grad), w.clone().requires_grad_(w_grad), THREE)
        if y.requires_grad:
            y.sum().backward()
        return list(called)

    assert ops_for(False, False) == ["conv"]
    assert ops_for(True, False) == ["conv", "conv_dx"]
    assert ops_for(False, True) == ["conv", "conv_dw"]
    assert sorted(ops_for(True, True)) == ["conv", "conv_dw", "conv_dx"]
