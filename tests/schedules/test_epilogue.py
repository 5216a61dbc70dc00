"""Bias and activation inside the kernel: values, gradients, every template, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tvm_orient as to
from tests.support.cases import EPILOGUES, ended
from tests.support.helpers import EIGHT, assert_close, check_blocks, check_cpu, check_serial, line, operands, spec_of
from tests.support.sampling import sampled
from tvm_orient import ops
from tvm_orient.errors import InvalidArgument
from tvm_orient.kernels import resolve
from tvm_orient.ops import autograd
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.problem.spec import ACTIVATIONS, LAYOUTS
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules.choices import default_choices

NAMES = [name for name in ACTIVATIONS if name != "none"]


def sweep(*formats: tuple[str, Any]) -> list[pytest.ParameterSet]:
    """Bias, activation, layout, dtype and stride: a sample of all epilogues in these dtypes with their strides."""
    rows = [(*epilogue, layout, *form) for epilogue in EPILOGUES for layout in LAYOUTS for form in formats]
    return sampled(rows, pairs=lambda bias, activation, layout, dtype, stride: (bias, activation, layout, dtype))


@pytest.mark.parametrize(("bias", "activation", "layout", "dtype", "stride"), sweep(("float32", 1), ("bfloat16", (2, 1)), ("float64", 1)))
def test_on_a_cpu(bias: bool, activation: str, layout: str, dtype: str, stride: Any) -> None:
    check_cpu(ended(bias, activation, layout, dtype, stride), batches=(2,))


@pytest.mark.parametrize(("bias", "activation", "layout", "dtype", "stride"), sweep(("float32", 1), ("float16", 2), ("bfloat16", 2)))
def test_for_cuda(bias: bool, activation: str, layout: str, dtype: str, stride: Any) -> None:
    check_serial(ended(bias, activation, layout, dtype, stride), batches=(2,))


@pytest.mark.parametrize(
    ("activation", "layout"), sampled(itertools.product(NAMES, LAYOUTS), pairs=lambda *_: (), once=lambda activation, layout: (activation, layout))
)
def test_blocks(activation: str, layout: str) -> None:
    spec = ended(True, activation, layout)
    check_blocks(spec, default_choices(spec, arch_device("sm_90a")))


@pytest.mark.parametrize("activation", NAMES)
def test_far_from_zero(activation: str) -> None:
    """Where an exponential would overflow, and where a polynomial of it would be lost."""
    z = torch.cat([torch.linspace(-200, 200, 4001), torch.tensor([-3e38, 3e38, -1e-30, 1e-30, 0.0])]).view(-1, 1, 1, 1)
    y = to.tap_conv2d(z, torch.ones(1, 1), Taps.from_offsets([[[0, 0]]]), activation=activation)
    expected = getattr(F, activation)(z.double())
    assert y.isfinite().all()
    assert ((y.double() - expected).abs() <= 2e-7 * (1 + z.double().abs())).all()


def test_nan_and_infinity_pass() -> None:
    z = torch.tensor([float("nan"), float("inf"), 1.0]).view(3, 1, 1, 1)
    for activation in NAMES:
        y = to.tap_conv2d(z, torch.ones(1, 1), Taps.from_offsets([[[0, 0]]]), activation=activation).flatten()
        assert y[0].isnan(), activation
        assert y[1] == float("inf"), activation


@pytest.mark.parametrize("activation", [None, *NAMES])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients(activation: str | None, stride: int) -> None:
    x = torch.randn(2, 6, 7, 8, dtype=torch.float64, requires_grad=True)
    w, b = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.randn(6, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return to.oriented_conv2d(x, w, [0.3, 1.2], b, stride=stride, activation=activation)

    assert torch.autograd.gradcheck(function, (x, w, b), fast_mode=True)
    if activation != "relu":  # not smooth
        assert torch.autograd.gradgradcheck(function, (x, w, b), fast_mode=True)


def test_only_the_gradients_that_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name in ("conv_dx", "conv_dw"):
        op = getattr(autograd, name)
        monkeypatch.setattr(autograd, name, lambda *args, op=op, name=name: called.append(name) or op(*args))
    x, w, b = torch.randn(2, 6, 7, 8), torch.randn(6, 5), torch.randn(6, requires_grad=True)
    to.oriented_conv2d(x, w, 0.3, b, activation="gelu").sum().backward()
    assert called == []
    to.oriented_conv2d(x, w.requires_grad_(), 0.3, b, activation="gelu").sum().backward()
    assert called == ["conv_dw"]


@pytest.mark.parametrize(
    ("bias", "dtype"),
    sampled(itertools.product((True, False), ("float32", "float16", "bfloat16", "float64")), pairs=lambda *_: (), once=lambda bias, dtype: (str(bias), dtype)),
)
def test_opcheck(bias: bool, dtype: str) -> None:
    given = [t.requires_grad_() for t in operands(ended(True, "none", dtype=dtype), 2)]
    for activation in ACTIVATIONS if dtype == "float32" else ("gelu",):
        torch.library.opcheck(ops.conv_epilogue, (*given[:2], given[2] if bias else None, activation, line(0, 67.5, k=7).key, (1, 1), "zeros"))


def test_compiled_and_mapped() -> None:
    x, w, b = torch.randn(2, 6, 7, 8), torch.randn(6, 5), torch.randn(6)

    def layer(x: Tensor, w: Tensor = w, b: Tensor = b) -> Tensor:
        return to.oriented_conv2d(x, w, [0.3, 1.2], b, activation="silu")

    expected = layer(x)
    assert torch.equal(torch.compile(layer, fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.vmap(layer)(x[:, None]).flatten(0, 1), expected)
    weights, biases = torch.randn(3, 6, 5), torch.randn(3, 6)
    stacked = torch.vmap(lambda w, b: layer(x, w, b))(weights, biases)
    torch.testing.assert_close(stacked, torch.stack([layer(x, *one) for one in zip(weights, biases, strict=True)]))
    (mine,) = torch.func.grad(lambda w: layer(x, w).sum())(w)[None]
    leaf = w.clone().requires_grad_()
    torch.testing.assert_close(mine, torch.autograd.grad(layer(x, leaf).sum(), leaf)[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_residual_comes_before_the_activation(dtype: torch.dtype) -> None:
    x, w, b = torch.randn(2, 6, 8, 9).to(dtype), torch.randn(6, 5).to(dtype), torch.randn(6).to(dtype)
    for stride in (1, 2):
        expected = F.gelu(to.oriented_conv2d(x, w, 0.7, b, stride=stride) + x[:, :, ::stride, ::stride])
        result = to.oriented_conv2d(x, w, 0.7, b, stride=stride, residual=True, activation="gelu")
        torch.testing.assert_close(result, expected, atol=2e-5 if dtype is torch.float32 else 0.06, rtol=0.02)


def test_modules() -> None:
    module = to.nn.OrientedConv2d(8, 5, directions=4, activation="relu")
    plain = to.nn.OrientedConv2d(8, 5, directions=4)
    plain.load_state_dict(module.state_dict())
    x = torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(module(x), plain(x).relu())
    assert "activation='relu'" in repr(module)
    with pytest.raises(InvalidArgument, match=r"activation must be None or one of relu, silu, gelu, got 'tanh'"):
        to.nn.OrientedConv2d(8, 5, activation="tanh")
    with pytest.raises(InvalidArgument, match="got 'tanh'"):
        to.oriented_conv2d(x, torch.randn(8, 5), 0.0, activation="tanh")


def test_records_of_the_plain_problem_serve() -> None:
    """An epilogue changes no decision, so none is tuned of its own."""
    spec = ended(True, "gelu")
    for one, other in zip(resolve.explain(spec, cpu_device()), resolve.explain(spec.plain, cpu_device()), strict=True):
        assert (one.choice, one.record) == (other.choice, other.record)


def test_the_generic_kernel_too() -> None:
    taps = Taps.oriented(EIGHT, 301)
    spec = dataclasses.replace(spec_of("conv", 9, 7, 8, taps), bias=True, activation="silu")
    given = operands(spec, 2)
    assert_close(to.tap_conv2d(*given[:2], taps, given[2], activation="silu"), spec, given)
