"""Other ways to the operators than a batch in eager mode: one image without a batch, graphs of torch.fx, torch.jit.script, borders padded by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tvm_orient as to
from tests.support.helpers import line
from tvm_orient.nn import DepthwiseOrientedConv1d, OrientedConv2d
from tvm_orient.problem.spec import ACTIVATIONS

TWO = [0.0, 0.785]
TAPS = line(0, 45, k=5)


@pytest.fixture(autouse=True)
def _generic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_BUILD", "100000")  # a kernel that every size shares


def operands() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 7, 8), torch.randn(4, 5)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "oriented_conv2d": lambda x, w: to.oriented_conv2d(x, w, TWO, stride=2),
    "numpy's angles": lambda x, w: to.oriented_conv2d(x, w, to.angles_between(2), w[:, 0]),
    "a list of numpy's": lambda x, w: to.oriented_conv2d(x, w, list(to.angles_between(2)), w[:, 0]),
    "with a residual": lambda x, w: to.oriented_conv2d(x, w, TWO, residual=True, stride=(2, 1)),
    "tap_conv2d": lambda x, w: to.tap_conv2d(x, w, TAPS, w[:, 0], activation="relu", padding_mode="circular"),
}
MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "module": lambda: OrientedConv2d(4, 5, theta=TWO, activation="silu", stride=2),
    "without a bias": lambda: OrientedConv2d(4, 5, theta=TWO, bias=False, padding_mode="circular", dilation=2),
    "with a residual": lambda: OrientedConv2d(4, 4, theta=TWO, residual=True, anchor="start", activation="relu"),
    "residual in half": lambda: OrientedConv2d(4, 5, theta=TWO, residual=True, stride=2, activation="gelu", dtype=torch.bfloat16),
    "published": lambda: DepthwiseOrientedConv1d(4, 4, 5, angle=0.4, resid=True),
    "published, nhwc": lambda: DepthwiseOrientedConv1d(4, 4, 5, angle=[0.1, 0.1, 0.5, 0.5], nhwc=True, stride=2),
}


def image_of(module: torch.nn.Module) -> Tensor:
    x = operands()[0].to(next(module.parameters()).dtype)
    return x.permute(0, 2, 3, 1) if getattr(module, "nhwc", False) else x


# ---- no batch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_image_without_a_batch(name: str) -> None:
    """As Conv2d takes it: (C, H, W), in every way that a batch can go."""
    f = FUNCTIONS[name]
    x, w = operands()
    want = f(x, w)
    assert torch.equal(f(x[1], w), want[1])
    assert torch.equal(f(x.contiguous(memory_format=torch.channels_last)[1], w), want[1])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(f(x[1], w), f(x, w)[1])
    assert torch.equal(torch.vmap(lambda one: f(one, w))(x), want)
    leaf, whole = x[1].clone().requires_grad_(), x[1:].clone().requires_grad_()
    (ours,), (theirs,) = torch.autograd.grad(f(leaf, w).sin().sum(), leaf), torch.autograd.grad(f(whole, w).sin().sum(), whole)
    torch.testing.assert_close(ours, theirs[0])
    torch.testing.assert_close(torch.func.grad(lambda one: f(one, w).sin().sum())(x[1]), theirs[0])
    torch._dynamo.reset()
    if "numpy" not in name:
        torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=True)(x[1], w), want[1])


@pytest.mark.parametrize("name", MODULES)
def test_a_module_takes_an_image_without_a_batch(name: str) -> None:
    module = MODULES[name]()
    x = image_of(module)
    assert torch.equal(module(x[1]), module(x)[1])


# ---- torch.fx -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_in_a_graph_of_fx(name: str) -> None:
    f = FUNCTIONS[name]
    x, w = operands()
    graph = torch.fx.symbolic_trace(lambda x, w: f(x * 2, w) + 1)
    assert torch.equal(graph(x, w), f(x * 2, w) + 1)
    fixed = torch.fx.symbolic_trace(lambda w: f(x, w))  # only one operand stands in
    assert torch.equal(fixed(w), f(x, w))


@pytest.mark.parametrize("name", MODULES)
def test_a_module_in_a_graph_of_fx(name: str) -> None:
    """It reads the parameters where they are, can be copied, and has gradients."""
    module = MODULES[name]()
    x = image_of(module)
    graph = copy.deepcopy(torch.fx.symbolic_trace(torch.nn.Sequential(module, torch.nn.ReLU())))
    assert torch.equal(graph(x), module(x).relu())
    graph(x).float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in graph.parameters())


def test_a_tensor_of_angles_in_a_graph_of_fx() -> None:
    x, w = operands()
    graph = torch.fx.symbolic_trace(lambda x, w, theta: to.oriented_conv2d(x, w, theta))
    for theta in (torch.tensor(TWO), torch.tensor([0.3, 1.1])):
        assert torch.equal(graph(x, w, theta), to.oriented_conv2d(x, w, theta))


# ---- torch.jit.script ---------------------------------------------------------------------------

script_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@script_warns
@pytest.mark.parametrize("name", MODULES)
def test_a_scripted_module(name: str, tmp_path: Path) -> None:
    """Alone and inside others, saved and loaded; with the parameters, and so the state dict, of the module."""
    module: Any = MODULES[name]()
    x = image_of(module)
    scripted: Any = torch.jit.script(torch.nn.Sequential(module, torch.nn.ReLU()))
    torch.jit.save(scripted, tmp_path / "net.pt")
    for one in (scripted, torch.jit.load(tmp_path / "net.pt")):  # type: ignore[no-untyped-call]
        assert torch.equal(one(x), module(x).relu())
        assert torch.equal(one(x[1]), module(x)[1].relu())
    assert list(scripted[0].state_dict()) == list(module.state_dict())
    scripted(x).float().square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@script_warns
@pytest.mark.parametrize("activation", ACTIVATIONS[1:])
def test_a_scripted_residual_has_every_activation(activation: str) -> None:
    """In half precision the activation follows the residual, outside the kernel; every one is called by name there."""
    module = OrientedConv2d(4, 5, theta=TWO, residual=True, activation=activation, dtype=torch.bfloat16)
    x = image_of(module)
    assert torch.equal(torch.jit.script(module)(x), module(x))


@script_warns
def test_scripting_a_function_is_refused() -> None:
    """torch.jit.script knows no keyword arguments with defaults, nor Taps: a module is the way."""
    with pytest.raises(Exception, match="keyword-only arguments with defaults"):
        torch.jit.script(to.oriented_conv2d)


# ---- borders ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("mode", ["reflect", "replicate"])
def test_other_borders_by_hand(mode: str, stride: int) -> None:
    """What the message about padding_mode says to do gives what Conv2d gives with that mode."""
    x, w = torch.randn(2, 4, 9, 10), torch.randn(4, 5)
    with pytest.raises(to.InvalidArgument, match=f"mode='{mode}'.*multiple of the stride and at least the reach"):
        to.oriented_conv2d(x, w, 0.0, padding_mode=mode)
    r = 2 if stride == 1 else 4
    whole = to.oriented_conv2d(F.pad(x, (r, r, r, r), mode=mode), w, 0.0, stride=stride)
    cut = r // stride
    theirs = F.conv2d(F.pad(x, (2, 2, 0, 0), mode=mode), w[:, None, None], stride=stride, groups=4)
    torch.testing.assert_close(whole[:, :, cut:-cut, cut:-cut], theirs)
