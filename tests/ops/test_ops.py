"""The torch operators on a CPU: their registration, their gradients, compiling and exporting them, and every way to give operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tvm_orient as to
from tests.support.helpers import EIGHT, OPS, assert_close, counted, line, operands, spec_of
from tvm_orient import ops
from tvm_orient.problem.taps import Taps

THREE = (0.3, 1.2, 2.7)
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def arguments(
    op: str, taps: Taps, stride: tuple[int, int] = (1, 1), padding: str = "zeros", size: tuple[int, int] = (9, 10), grad: bool = True
) -> tuple[Any, ...]:
    """Arguments of torch.ops.tvm_orient.<op> for six channels."""
    spec = spec_of(op, 6, *size, taps, stride, padding)
    first, second = (t.requires_grad_(grad) for t in operands(spec, 2))
    plane = size if op == "conv_dx" else ()
    return (first, second, taps.key, *plane, list(stride), padding)


def smooth(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, requires_grad=True)


# ---- registration -------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no grad"])
@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str, grad: bool) -> None:
    given = arguments(op, line(0, 67.5, 135, k=7), (2, 1), "zeros", (8, 10), grad)
    assert torch.library.opcheck(getattr(ops, op), given, test_utils=UTILITIES) == dict.fromkeys(UTILITIES, "SUCCESS")


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2)])
def test_meta_has_the_shape_and_strides_of_the_result(op: str, stride: tuple[int, int]) -> None:
    given = arguments(op, line(45, k=7), stride, grad=False)
    real = getattr(ops, op)(*given)
    meta = getattr(ops, op)(*(a.to("meta") if isinstance(a, Tensor) else a for a in given))
    assert (meta.shape, meta.stride(), meta.dtype) == (real.shape, real.stride(), real.dtype)


def test_the_geometry_is_part_of_the_schema() -> None:
    assert str(ops.conv._schema) == "tvm_orient::conv(Tensor x, Tensor weight, str taps, int[2] stride, str padding_mode) -> Tensor"
    assert ops.conv_dx._schema.arguments[3].name == "height"


# ---- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("stride", "padding"), [((1, 1), "zeros"), ((2, 1), "zeros"), ((2, 2), "circular")])
@pytest.mark.parametrize("op", OPS)
def test_values(op: str, stride: tuple[int, int], padding: str, dtype: str) -> None:
    taps = line(0, 67.5, 135, k=7)
    spec = spec_of(op, 6, 8, 10, taps, stride, padding, dtype)
    for batch in (1, 3):
        given = operands(spec, batch)
        plane = (8, 10) if op == "conv_dx" else ()
        assert_close(getattr(ops, op)(*given, taps.key, *plane, stride, padding), spec, given)


@pytest.mark.parametrize("stride", [1, 2])
def test_axes_are_conv2d(stride: int) -> None:
    x, w, b = torch.randn(2, 4, 11, 14), torch.randn(4, 7), torch.randn(4)
    torch.testing.assert_close(to.oriented_conv2d(x, w, 0.0, b, stride=stride), F.conv2d(x, w[:, None, None], b, stride, (0, 3), groups=4))
    torch.testing.assert_close(to.oriented_conv2d(x, w, math.radians(-90), b, stride=stride), F.conv2d(x, w[:, None, :, None], b, stride, (3, 0), groups=4))


def test_gradients_are_those_of_conv2d() -> None:
    x, w, b = smooth(2, 4, 11, 14, dtype=torch.float32), smooth(4, 7, dtype=torch.float32), smooth(4, dtype=torch.float32)
    dy = torch.randn(2, 4, 11, 14)
    ours = torch.autograd.grad(to.oriented_conv2d(x, w, 0.0, b), (x, w, b), dy)
    theirs = torch.autograd.grad(F.conv2d(x, w[:, None, None], b, padding=(0, 3), groups=4), (x, w, b), dy)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


# the same kernel serves the whole file: six channels, K=5, three angles
def test_theta_may_be_given_in_many_ways() -> None:
    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5)
    each = [a for a in THREE for _ in range(2)]
    expected = to.oriented_conv2d(x, w, list(THREE))
    for theta in (THREE, torch.tensor(THREE), torch.tensor(THREE, dtype=torch.float64), each, torch.tensor(each), torch.tensor(each)[:, None]):
        assert torch.equal(to.oriented_conv2d(x, w, theta), expected), theta
    one = to.oriented_conv2d(x, w, 0.3)
    for theta in ([0.3], torch.tensor(0.3), torch.tensor([0.3]), torch.full((6, 1), 0.3), [0.3] * 6):
        assert torch.equal(to.oriented_conv2d(x, w, theta), one), theta
    assert not torch.equal(one, expected)


def test_weight_may_be_that_of_a_conv2d() -> None:
    x, w = torch.randn(2, 6, 8, 9), smooth(6, 1, 1, 5, dtype=torch.float32)
    y = to.oriented_conv2d(x, w, THREE)
    assert torch.equal(y, to.oriented_conv2d(x, w.flatten(1), THREE))
    (dw,) = torch.autograd.grad(y.sum(), w)
    assert dw.shape == (6, 1, 1, 5)


def test_taps_and_angles_are_one_operator() -> None:
    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5)
    assert torch.equal(to.tap_conv2d(x, w, Taps.oriented(THREE, 5)), to.oriented_conv2d(x, w, THREE))
    cross = Taps.from_offsets([[[0, 0], [0, 1], [1, 0], [0, -1], [-1, 0]]])
    spec = spec_of("conv", 6, 8, 9, cross)
    assert_close(to.tap_conv2d(x, w, cross), spec, (x, w))


@pytest.mark.parametrize(
    ("options", "make"), [({"dilation": 2}, {"dilation": 2}), ({"anchor": "start"}, {"anchor": "start"}), ({"padding_mode": "circular"}, {})], ids=str
)
def test_options_reach_the_kernel(options: dict[str, Any], make: dict[str, Any]) -> None:
    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5)
    spec = spec_of("conv", 6, 8, 9, Taps.oriented(THREE, 5, **make), padding=options.get("padding_mode", "zeros"))
    assert_close(to.oriented_conv2d(x, w, THREE, **options), spec, (x, w))


def unaligned(x: Tensor) -> Tensor:
    """A contiguous copy that begins one element after the start of its storage."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "a view of columns": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "every other row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "unaligned": unaligned,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_layout(layout: str) -> None:
    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5)
    dy, other = torch.randn(2, 6, 8, 9), LAYOUTS[layout]
    assert torch.equal(other(x), x)
    expected, want = to.oriented_conv2d(x, w, THREE), Taps.oriented(THREE, 5).key
    assert torch.equal(to.oriented_conv2d(other(x), w, THREE), expected)
    assert torch.equal(to.oriented_conv2d(x, w.t().contiguous().t(), THREE), expected)
    assert torch.equal(to.oriented_conv2d(unaligned(x), unaligned(w), THREE), expected)
    assert torch.equal(ops.conv_dx(other(dy), w, want, 8, 9, [1, 1], "zeros"), ops.conv_dx(dy, w, want, 8, 9, [1, 1], "zeros"))
    assert torch.equal(ops.conv_dw(other(x), other(dy), want, [1, 1], "zeros"), ops.conv_dw(x, dy, want, [1, 1], "zeros"))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("ended", [False, True])
def test_weights_unlike_the_one_before(grad: bool, last: bool, ended: bool) -> None:
    """A call like the one before leaves it to the kernel to look at its weight and bias: what it refuses is checked, and said, as in a first call."""
    key, form = Taps.oriented(THREE, 5).key, torch.channels_last if last else torch.contiguous_format
    x, w, b = (t.requires_grad_(grad) for t in (torch.randn(2, 6, 8, 9).contiguous(memory_format=form), torch.randn(6, 5), torch.randn(6)))

    def run(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.conv_epilogue(x, w, b, "relu", key, [1, 1], "zeros") if ended else ops.conv(x, w, key, [1, 1], "zeros")

    for n in (2, 0):
        want = [run(x[:n], w, b) for _ in range(3)][-1]
        assert want.requires_grad == grad
        assert not run(x[:n].detach(), w.detach(), b.detach()).requires_grad
        for spread in (w.t().contiguous().t(), torch.stack([w, w], 2)[..., 0], unaligned(w), torch._neg_view(-w)):
            assert torch.equal(run(x[:n], spread, b), want)
        assert torch.equal(run(torch._neg_view(-x[:n]), w, b), want)
        for wrong in (w.double(), w[:, :3], w[:5], w[:, :1].expand(6, 4)):
            with pytest.raises(to.InvalidArgument):
                run(x[:n], wrong, b)
        for wrong in (b.double(), b[:5], b[:, None]) if ended else ():
            with pytest.raises(to.InvalidArgument):
                run(x[:n], w, wrong)
        assert torch.equal(run(x[:n], w, b), want)


def test_modes_see_calls_like_the_one_before() -> None:
    x, w, key = torch.randn(2, 6, 8, 9), torch.randn(6, 5), Taps.oriented(THREE, 5).key
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    for _ in range(3):
        ops.conv(x, w, key, [1, 1], "zeros")
    with Watch():
        ops.conv(x, w, key, [1, 1], "zeros")
    assert seen == [ops.conv]


def test_an_expanded_gradient() -> None:
    """What y.sum().backward() gives: a gradient of stride 0."""
    x, w = smooth(2, 6, 8, 9, dtype=torch.float32), smooth(6, 5, dtype=torch.float32)
    dx, dw = torch.autograd.grad(to.oriented_conv2d(x, w, THREE).sum(), (x, w))
    spec = spec_of("conv_dx", 6, 8, 9, Taps.oriented(THREE, 5))
    assert_close(dx, spec, (torch.ones(2, 6, 8, 9), w.detach()))
    assert dw.isfinite().all()


def test_empty_batch() -> None:
    x, w, b = smooth(0, 6, 8, 9, dtype=torch.float32), smooth(6, 5, dtype=torch.float32), smooth(6, dtype=torch.float32)
    y = to.oriented_conv2d(x, w, THREE, b)
    assert y.shape == (0, 6, 8, 9)
    dx, dw, db = torch.autograd.grad(y.sum(), (x, w, b))
    assert dx.shape == x.shape
    assert torch.equal(dw, torch.zeros_like(dw))
    assert torch.equal(db, torch.zeros_like(db))


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_every_time(op: str) -> None:
    given = arguments(op, line(0, 67.5, 135, k=7), grad=False)
    first = getattr(ops, op)(*given)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert all(torch.equal(getattr(ops, op)(*given), first) for _ in range(20))


@pytest.mark.parametrize("op", OPS)
def test_nothing_leaks_between_images(op: str) -> None:
    """A NaN image in a batch leaves the others as they were; conv_dw sums over all of them."""
    first, second, *rest = arguments(op, line(0, 67.5, 135, k=7), grad=False)
    clean = getattr(ops, op)(first, second, *rest)
    spoiled = first.clone()
    spoiled[1] = math.nan
    result = getattr(ops, op)(spoiled, second, *rest)
    if op == "conv_dw":
        assert result.isnan().all()
    else:
        assert torch.equal(result[0], clean[0])
        assert result[1].isnan().all()


# ---- gradients ----------------------------------------------------------------------------------


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


@pytest.mark.parametrize("grad", [True, False])
def test_modes_see_the_operators(grad: bool) -> None:
    """Where something else listens below autograd, an op is dispatched to it, not run past it."""
    seen = []

    class Listener(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    for op in OPS:
        given = arguments(op, line(0, 45, k=5), grad=grad)
        want = getattr(ops, op)(*given)
        with Listener():
            got = getattr(ops, op)(*given)
        assert seen.count(getattr(ops, op)) == 1
        assert got.requires_grad is grad
        assert torch.equal(got, want)


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


# ---- torch.compile and torch.export -------------------------------------------------------------


def step(f: Callable[..., Tensor], x: Tensor, w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The result of f with both gradients."""
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = f(x, w)
    return (y, *torch.autograd.grad((y * torch.arange(y.numel()).view(y.shape).cos()).sum(), (x, w)))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("function", ["oriented_conv2d", "tap_conv2d"])
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


def test_no_grad_mode_and_inference_mode() -> None:
    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5, requires_grad=True)
    with torch.no_grad():
        assert not to.oriented_conv2d(x, w, THREE).requires_grad
    with torch.inference_mode():
        assert to.oriented_conv2d(x, w, THREE).is_inference()


def test_channels_fewer_than_angles_and_more() -> None:
    for channels in (1, 3, 9):
        spec = spec_of("conv", channels, 6, 7, Taps.oriented(EIGHT, 3))
        x, w = operands(spec, 2)
        if channels >= 8:
            assert_close(to.oriented_conv2d(x, w, EIGHT), spec, (x, w))
        else:
            with pytest.raises(to.InvalidArgument, match=f"1 <= G <= C = {channels}"):
                to.oriented_conv2d(x, w, EIGHT)
