"""torch.compile and torch.export of functions and modules: one graph, the same results and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tvm_orient as to
from tests.support.operators import THREE
from tests.support.sampling import sampled
from tvm_orient import ops
from tvm_orient.problem.taps import Taps


def step(f: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result of f with both gradients."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = f(x, w)
    return (y, *torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).cos()).sum(), (x, w)))


@pytest.mark.parametrize(
    ("function", "backend"),
    sampled(
        itertools.product(["oriented_conv2d", "tap_conv2d"], ["aot_eager", "inductor"]),
        pairs=lambda *_: (),
        once=lambda function, backend: (function, backend),
    ),
)
def test_compiled_whole(function: str, backend: str) -> None:
    taps, bias = Taps.oriented(THREE, 5), torch.randn(6)

    def f(x: Tensor, w: Tensor) -> Tensor:
        if function == "tap_conv2d":
            return to.tap_conv2d(x.relu(), w, taps, bias).tanh()
        return to.oriented_conv2d(x.relu(), w, THREE, bias).tanh()

    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5)
    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True, backend=backend)
    for one, other in zip(step(compiled, x, w), step(f, x, w), strict=True):
        torch.testing.assert_close(one, other)


def test_compiled_module() -> None:
    module = to.nn.OrientedConv2d(6, 5, directions=3)
    x = torch.randn(2, 6, 8, 9)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = module(x)
    torch.testing.assert_close(compiled(x), expected)
    expected.square().sum().backward()
    want = [p.grad.clone() for p in module.parameters()]
    module.zero_grad()
    compiled(x).square().sum().backward()
    for parameter, gradient in zip(module.parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_one_graph_for_every_batch() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    w = torch.randn(6, 5)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: to.oriented_conv2d(x, w, THREE), fullgraph=True, backend=count)
    for batch in (2, 3, 5, 8):
        x = torch.randn(batch, 6, 8, 9)
        torch._dynamo.mark_dynamic(x, 0)
        torch.testing.assert_close(compiled(x), to.oriented_conv2d(x, w, THREE))
    assert len(graphs) == 1


def test_export(tmp_path: Any) -> None:
    module = to.nn.OrientedConv2d(6, 5, directions=3, stride=2).eval()
    x = torch.randn(2, 6, 8, 9)
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(module, (x,), dynamic_shapes=({0: batch},)), tmp_path / "layer.pt2")
    loaded = torch.export.load(tmp_path / "layer.pt2")
    nodes = [node.target for node in loaded.graph.nodes if node.op == "call_function"]
    assert ops.conv_epilogue in nodes
    for n in (1, 2, 4):
        x = torch.randn(n, 6, 8, 9)
        assert torch.equal(loaded.module()(x), module(x))


@pytest.mark.parametrize("axis", [2, 3])
def test_one_graph_for_every_size(axis: int) -> None:
    """Sizes are symbols in the graph and plain numbers in the kernel, in the backward pass too."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: to.oriented_conv2d(x, w, (0.3,), stride=2), fullgraph=True, backend="aot_eager")
    w = torch.randn(2, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for size in (7, 8, 9):
            shape = [2, 2, 6, 6]
            shape[axis] = size
            x = torch.randn(shape, requires_grad=True)
            torch._dynamo.mark_dynamic(x, axis)
            y = compiled(x, w)
            expected = to.oriented_conv2d(x, w, (0.3,), stride=2)
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(*(torch.autograd.grad(out.sin().sum(), x)[0] for out in (y, expected)))
