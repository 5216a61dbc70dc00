"""Dynamic sizes and arguments under torch.compile: one graph where sizes change, another where the geometry does, and no graph break."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tvm_orient as to
from tests.support.helpers import line
from tests.support.sampling import sampled

TWO = [0.0, 0.785]
TAPS = line(0, 45, k=5)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A compiler that has seen nothing; and the generic kernel, which every size shares, so that no test waits for kernels."""
    monkeypatch.setenv("TVM_ORIENT_BUILD", "100000")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def operands(channels: int = 4, size: int = 5, plane: tuple[int, int] = (7, 8), batch: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, channels, *plane), torch.randn(channels, size)


def same(function: Callable[..., Tensor], calls: list[tuple[Any, ...]], marked: Sequence[int] = (), **options: Any) -> None:
    """Compiled whole, the function and its gradients are as they were, for each of the calls.

    marked: the axes of the first operand that are marked as dynamic.
    """
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, **options)
    for call in calls:
        leaves = [one.detach().clone(memory_format=torch.preserve_format).requires_grad_() for one in call if isinstance(one, Tensor)]
        for axis in marked:
            torch._dynamo.mark_dynamic(leaves[0], axis)
        results = []
        for run in (compiled, function):
            given = iter(leaves)
            y = run(*(next(given) if isinstance(one, Tensor) else one for one in call))
            results.append((y, *torch.autograd.grad(y.sin().sum(), leaves)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
        assert results[0][0].stride() == results[1][0].stride()


# ---- sizes --------------------------------------------------------------------------------------

MODULES: dict[str, Callable[[], torch.nn.Module]] = {
    "module": lambda: to.nn.OrientedConv2d(4, 5, theta=TWO, activation="gelu"),
    "module with a residual": lambda: to.nn.OrientedConv2d(4, 5, theta=TWO, stride=2, residual=True),
    "published": lambda: to.nn.DepthwiseOrientedConv1d(4, 4, 5, angle=0.4, nhwc=True),
}
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "oriented_conv2d": lambda x, w: to.oriented_conv2d(x, w, TWO, stride=2),
    "with a residual": lambda x, w: to.oriented_conv2d(x, w, TWO, residual=True, activation="silu"),
    "circular": lambda x, w: to.oriented_conv2d(x, w, 0.3, padding_mode="circular"),
    "tap_conv2d": lambda x, w: to.tap_conv2d(x, w, TAPS, w[:, 0], activation="relu"),
    "tap_conv2d of a Conv2d's weight": lambda x, w: to.tap_conv2d(x, w[:, None, None], TAPS),
}


@pytest.mark.parametrize(
    ("name", "dynamic"), sampled(itertools.product([*FUNCTIONS, *MODULES], (None, True)), pairs=lambda *_: (), once=lambda name, dynamic: (name, dynamic))
)
def test_one_graph_for_every_size(name: str, dynamic: bool | None) -> None:
    """N, H and W change, all three at once; forward and backward: contiguous with axes that are marked, and in channels_last with all of it dynamic."""
    last = dynamic is True
    module = MODULES[name]() if name in MODULES else None
    function: Any = FUNCTIONS[name] if module is None else lambda x, w: module(x) * w[0, 0]
    calls = []
    for batch, plane in ((2, (7, 8)), (3, (9, 6))):
        x, w = operands(plane=plane, batch=batch)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        calls.append((x.permute(0, 2, 3, 1) if name == "published" else x, w))
    axes = (0, 1, 2) if name == "published" else (0, 2, 3)
    with torch._dynamo.config.patch(error_on_recompile=True):
        same(function, calls, () if dynamic else axes, dynamic=dynamic)


# ---- the geometry -------------------------------------------------------------------------------

GEOMETRY: dict[str, tuple[Callable[..., Tensor], list[tuple[Any, ...]]]] = {
    "widths": (lambda x, w: to.oriented_conv2d(x, w, TWO), [operands(4), operands(6), operands(3)]),
    "kernel sizes": (lambda x, w: to.oriented_conv2d(x, w, TWO), [operands(size=5), operands(size=7)]),
    "an angle": (lambda x, w, t: to.oriented_conv2d(x, w, t), [(*operands(), t) for t in (0.3, 0.7, 1.4)]),
    "an angle that is a whole zero": (lambda x, w, t: to.oriented_conv2d(x, w, t), [(*operands(), t) for t in (0, 1.0)]),
    "a list of angles": (lambda x, w, t: to.oriented_conv2d(x, w, t), [(*operands(), [t, 0.1]) for t in (0.3, 0.7)]),
    "dilation": (lambda x, w, d: to.oriented_conv2d(x, w, 0.3, dilation=d), [(*operands(), d) for d in (1, 2)]),
    "taps": (lambda x, w, t: to.tap_conv2d(x, w, t), [(*operands(), t) for t in (TAPS, line(90, k=5))]),
    "stride": (lambda x, w, s: to.oriented_conv2d(x, w, TWO, stride=s), [(*operands(), s) for s in (1, 2)]),
    "a pair of strides": (lambda x, w, s: to.tap_conv2d(x, w, TAPS, stride=s), [(*operands(), (s, 1)) for s in (1, 2)]),
    "stride with a residual": (lambda x, w, s: to.oriented_conv2d(x, w, TWO, stride=s, residual=True), [(*operands(), s) for s in (1, 2)]),
    "padding": (lambda x, w, p: to.tap_conv2d(x, w, TAPS, padding_mode=p), [(*operands(), p) for p in ("zeros", "circular")]),
}


@pytest.mark.parametrize("changing", GEOMETRY)
def test_a_graph_for_each_geometry(changing: str) -> None:
    """What chooses kernels may change from call to call, as an argument: each value has a graph, and is computed right."""
    function, calls = GEOMETRY[changing]
    same(function, calls)
    with torch._dynamo.config.patch(error_on_recompile=True):
        same(function, calls[:1])


@pytest.mark.parametrize("changing", ["widths", "an angle", "stride with a residual"])
def test_a_geometry_that_is_dynamic_from_the_first_call(changing: str) -> None:
    function, calls = GEOMETRY[changing]
    same(function, calls, dynamic=True)


# ---- theta that is no number --------------------------------------------------------------------

NO_NUMBERS: dict[str, Callable[[float], Any]] = {
    "tensor": lambda t: torch.tensor([0.1, t]),
    "list of tensors": lambda t: [torch.tensor(0.1), torch.tensor(t)],
    "array": lambda t: np.array([0.1, t]),
    "list of numpy's numbers": lambda t: [np.float64(0.1), np.float64(t)],
}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_theta_whose_values_nothing_guards_says_what_to_do(kind: str) -> None:
    """Whole, it is refused with the remedy; else it runs between two graphs, by the values that came."""

    def function(x: Tensor, w: Tensor, theta: Any) -> Tensor:
        return to.oriented_conv2d(x.relu(), w, theta) + 1

    x, w = operands()
    with pytest.raises(Exception, match=r"reason: theta must be numbers, not a tensor or an array.*call theta\.tolist\(\) outside"):
        torch.compile(function, backend="eager", fullgraph=True)(x, w, NO_NUMBERS[kind](0.3))
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager")
    for t in (0.3, 0.9):
        assert torch.equal(compiled(x, w, NO_NUMBERS[kind](t)), function(x, w, [0.1, t]))


@pytest.mark.parametrize("strict", [False, True])
def test_theta_as_a_tensor_under_export_says_what_to_do(strict: bool) -> None:
    class Net(torch.nn.Module):
        def forward(self, x: Tensor, w: Tensor, theta: Tensor) -> Tensor:
            return to.oriented_conv2d(x, w, theta)

    with pytest.raises(Exception, match="theta must be numbers, not a tensor or an array"):
        torch.export.export(Net(), (*operands(), torch.tensor([0.1, 0.3])), strict=strict)
