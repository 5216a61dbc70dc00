"""What the operators compute on a CPU: values against the oracle, and every way to give operands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tvm_orient as to
from tests.support.helpers import EIGHT, OPS, assert_close, line, operands, spec_of
from tests.support.operators import THREE, arguments, smooth
from tests.support.sampling import sampled
from tvm_orient import ops
from tvm_orient.problem.taps import Taps

STEPS = [((1, 1), "zeros"), ((2, 1), "zeros"), ((2, 2), "circular")]


@pytest.mark.parametrize(
    ("op", "stride", "padding", "dtype"),
    sampled(
        [(op, *step, dtype) for op in OPS for step in STEPS for dtype in ("float32", "float64")],
        pairs=lambda op, stride, padding, dtype: (op, dtype),
        once=lambda op, stride, padding, dtype: (stride,),
    ),
)
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
