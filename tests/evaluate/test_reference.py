"""The oracle against F.conv2d, against plain loops, and against its own laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tvm_orient.errors import InvalidArgument
from tvm_orient.evaluate import reference, tolerance
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps

SIZES = [(1, 1), (1, 9), (8, 1), (5, 5), (14, 10), (7, 16), (13, 3)]
STRIDES = [(1, 1), (2, 2), (2, 1), (3, 2)]
EIGHT = Taps.oriented(angles_between(8), 31)
FREE = Taps.from_offsets([[[0, 1], [0, 1], [-2, 0], [17, -3]], [[-1, -1], [3, -7], [0, 0], [18, 20]]])


def image(channels: int, size: tuple[int, int], batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *size, dtype=torch.float64)


def raster(w: Tensor, taps: Taps) -> Tensor:
    """The taps drawn into dense kernels (C, 1, 2R+1, 2R+1); colliding weights add up."""
    channels, reach = len(w), int(abs(taps.offsets).max())
    offsets = torch.from_numpy(taps.for_channels(channels).offsets).long() + reach
    offsets = offsets[[(len(offsets) * (c + 1) - 1) // channels for c in range(channels)]]
    kernel = w.new_zeros(channels, 2 * reach + 1, 2 * reach + 1)
    kernel.index_put_((torch.arange(channels)[:, None].expand_as(w), offsets[..., 0], offsets[..., 1]), w, accumulate=True)
    return kernel[:, None]


def by_hand(x: Tensor, w: Tensor, taps: Taps, stride: tuple[int, int], padding_mode: str) -> Tensor:
    """The definition, one number at a time."""
    batch, channels, height, width = x.shape
    y = torch.zeros(batch, channels, -(-height // stride[0]), -(-width // stride[1]), dtype=torch.float64)
    for n, c, p, q in itertools.product(*map(range, y.shape)):
        for s, (dh, dw) in enumerate(taps.table[(taps.groups * (c + 1) - 1) // channels]):
            h, v = p * stride[0] + dh, q * stride[1] + dw
            if padding_mode == "circular":
                h, v = h % height, v % width
            if 0 <= h < height and 0 <= v < width:
                y[n, c, p, q] += w[c, s] * x[n, c, h, v]
    return y


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("kernel_size", [1, 3, 31])
def test_axes_are_conv2d(size: tuple[int, int], stride: tuple[int, int], kernel_size: int) -> None:
    x, w, half = image(3, size), torch.randn(3, kernel_size, dtype=torch.float64), kernel_size // 2
    horizontal = F.conv2d(x, w[:, None, None], stride=stride, padding=(0, half), groups=3)
    vertical = F.conv2d(x, w[:, None, :, None], stride=stride, padding=(half, 0), groups=3)
    torch.testing.assert_close(reference.conv(x, w, Taps.oriented(0.0, kernel_size), stride), horizontal)
    torch.testing.assert_close(reference.conv(x, w, Taps.oriented(math.radians(-90), kernel_size), stride), vertical)
    torch.testing.assert_close(reference.conv(x, w.flip(1), Taps.oriented(math.radians(90), kernel_size), stride), vertical)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("taps", [EIGHT, Taps.oriented(angles_between(3), 7), Taps.oriented(math.pi / 6, 5, dilation=3), FREE], ids=str)
def test_raster(size: tuple[int, int], stride: tuple[int, int], taps: Taps) -> None:
    x, w = image(5, size), torch.randn(5, taps.kernel_size, dtype=torch.float64)
    kernel = raster(w, taps)
    expected = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=5)
    torch.testing.assert_close(reference.conv(x, w, taps, stride), expected)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", [(1, 1), (1, 4), (3, 2), (4, 5)])
@pytest.mark.parametrize("taps", [FREE, Taps.oriented(math.pi / 4, 5), Taps.oriented(0.3, 3, anchor="start")], ids=str)
def test_definition(padding_mode: str, stride: tuple[int, int], size: tuple[int, int], taps: Taps) -> None:
    x, w = image(3, size, batch=1), torch.randn(3, taps.kernel_size, dtype=torch.float64)
    torch.testing.assert_close(reference.conv(x, w, taps, stride, padding_mode), by_hand(x, w, taps, stride, padding_mode))


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("size", SIZES[1::2])
@pytest.mark.parametrize("taps", [EIGHT, FREE], ids=["eight", "free"])
def test_adjoint(padding_mode: str, stride: tuple[int, int], size: tuple[int, int], taps: Taps) -> None:
    x, w = image(9, size), torch.randn(9, taps.kernel_size, dtype=torch.float64)
    y = reference.conv(x, w, taps, stride, padding_mode)
    dy = torch.randn_like(y)
    whole = (y * dy).sum()
    torch.testing.assert_close((x * reference.conv_dx(dy, w, taps, *size, stride, padding_mode)).sum(), whole)
    torch.testing.assert_close((w * reference.conv_dw(x, dy, taps, stride, padding_mode)).sum(), whole)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_gradients_are_autograd_s(padding_mode: str) -> None:
    taps, stride = Taps.oriented(angles_between(4), 9), (2, 3)
    x, w = image(6, (7, 8)).requires_grad_(), torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    y = reference.conv(x, w, taps, stride, padding_mode)
    dy = torch.randn_like(y)
    dx, dw = torch.autograd.grad(y, (x, w), dy)
    torch.testing.assert_close(reference.conv_dx(dy, w.detach(), taps, 7, 8, stride, padding_mode), dx)
    torch.testing.assert_close(reference.conv_dw(x.detach(), dy, taps, stride, padding_mode), dw)


@pytest.mark.parametrize("degrees", [0, 22.5, 45, 67.5, 78, 90, 112.5, 135, 157.5])
@pytest.mark.parametrize("kernel_size", [7, 31])
def test_mirrors(degrees: float, kernel_size: int) -> None:
    x, w = image(2, (12, 17)), torch.randn(2, kernel_size, dtype=torch.float64)

    def at(angle: float, x: Tensor = x, w: Tensor = w) -> Tensor:
        return reference.conv(x, w, Taps.oriented(math.radians(angle), kernel_size))

    torch.testing.assert_close(at(degrees + 180), at(degrees, w=w.flip(1)))
    torch.testing.assert_close(at(-degrees), at(degrees, x=x.flip(2)).flip(2))
    torch.testing.assert_close(at(180 - degrees), at(degrees, x=x.flip(3)).flip(3))


def test_conv_dx_is_conv_of_the_negated_taps() -> None:
    dy, w = image(8, (9, 6)), torch.randn(8, 31, dtype=torch.float64)
    for padding_mode in ("zeros", "circular"):
        torch.testing.assert_close(reference.conv_dx(dy, w, EIGHT, 9, 6, (1, 1), padding_mode), reference.conv(dy, w, EIGHT.negated, (1, 1), padding_mode))


def test_colliding_taps_share_a_gradient() -> None:
    dw = reference.conv_dw(image(1, (9, 9)), image(1, (9, 9)), Taps.oriented(math.pi / 4, 7))
    assert dw[0, 2] == dw[0, 3] == dw[0, 4]
    assert dw[0, 1] != dw[0, 2]


def test_out_of_reach_gives_nothing() -> None:
    taps = Taps.from_offsets([[[9, 0], [0, -9], [2000, 2000]]])
    x, w = image(2, (9, 9)), torch.ones(2, 3)
    assert reference.conv(x, w, taps).abs().max() == 0
    assert reference.conv_dw(x, x, taps).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_any_float_becomes_float64(dtype: torch.dtype) -> None:
    x, w, taps = image(2, (5, 6)).to(dtype), torch.randn(2, 3).to(dtype), Taps.oriented(0.0, 3)
    y = reference.conv(x, w, taps)
    assert y.dtype == torch.float64
    assert torch.equal(y, reference.conv(x.double(), w.double(), taps))
    assert reference.conv_dx(x, w, taps, 5, 6).dtype == reference.conv_dw(x, x, taps).dtype == torch.float64


def operands(spec: ConvSpec, batch: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, spec.channels, spec.height, spec.width, dtype=dtype)
    dy = torch.randn(batch, spec.channels, spec.out_height, spec.out_width, dtype=dtype)
    w = torch.randn(spec.channels, spec.kernel_size, dtype=dtype)
    return {"conv": (x, w), "conv_dx": (dy, w), "conv_dw": (x, dy)}[spec.op]


@pytest.mark.parametrize("op", ["conv", "conv_dx", "conv_dw"])
@pytest.mark.parametrize("batch", [0, 3])
def test_run(op: str, batch: int) -> None:
    spec = ConvSpec(op, 8, 9, 6, EIGHT, stride=2, padding_mode="circular")
    result = reference.run(spec, *operands(spec, batch))
    assert result.shape == {"conv": (batch, 8, 5, 3), "conv_dx": (batch, 8, 9, 6), "conv_dw": (8, 31)}[op]
    assert batch or not result.numel() or result.abs().max() == 0
    assert tolerance.tolerance(spec, batch, *operands(spec, batch)) >= 0


@pytest.mark.parametrize("op", ["conv", "conv_dx", "conv_dw"])
@pytest.mark.parametrize("size", [(5, 5), (40, 56)])
def test_tolerance_holds_float32_and_catches_a_fault(op: str, size: tuple[int, int]) -> None:
    spec = ConvSpec(op, 8, *size, EIGHT)
    first, second = operands(spec, 4)
    exact, bound = reference.run(spec, first, second), tolerance.tolerance(spec, 4, first, second)
    single = torch.zeros_like(exact, dtype=torch.float32)  # the same sums in float32, one tap at a time
    for lo, hi, s, out, into in reference._walk(EIGHT, 8, *size, (1, 1), "zeros"):
        if op == "conv":
            single[:, lo:hi, *out] += first[:, lo:hi, *into] * second[lo:hi, s, None, None]
        elif op == "conv_dx":
            single[:, lo:hi, *into] += first[:, lo:hi, *out] * second[lo:hi, s, None, None]
        else:
            single[lo:hi, s] = (first[:, lo:hi, *into] * second[:, lo:hi, *out]).flatten(2).transpose(1, 2).flatten(0, 1).cumsum(0)[-1]
    assert 0 < (single - exact).abs().max() <= bound
    first[0, :, size[0] // 2, size[1] // 2] += 1.0  # one pixel of one image
    assert (reference.run(spec, first, second) - exact).abs().max() > 3 * bound


def test_tolerance_formula() -> None:
    u, taps = 2.0**-24, Taps.oriented(0.0, 3)
    x, w = torch.ones(1, 1, 4, 4), torch.full((1, 3), -2.0)
    worst = tolerance.tolerance(ConvSpec("conv", 1, 4, 4, taps), 1, x, w)
    assert worst == pytest.approx(6 * 3 * u / (1 - 3 * u), rel=1e-6)  # three products of magnitude 2
    assert tolerance.tolerance(ConvSpec("conv", 1, 4, 4, taps, dtype="float64"), 1, x, w) == pytest.approx(2 * 6 * 3 * 2.0**-53)
    deep = torch.ones(16, 1, 25, 25)  # ten thousand products of 1: 6 * 100 * u each
    assert tolerance.tolerance(ConvSpec("conv_dw", 1, 25, 25, taps), 16, deep, deep) == pytest.approx(1e4 * 600 * u, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: reference.conv(torch.zeros(1, 2, 3), torch.zeros(2, 31), EIGHT), "x must have four dimensions"),
        (lambda: reference.conv(torch.zeros(1, 2, 3, 0), torch.zeros(2, 31), EIGHT), "x must have four dimensions"),
        (lambda: reference.conv(torch.zeros(1, 2, 3, 3), torch.zeros(1, 31), EIGHT), r"w must have shape \(2, 31\)"),
        (lambda: reference.conv(torch.zeros(1, 2, 3, 3), torch.zeros(2, 31), EIGHT, 0), "stride"),
        (lambda: reference.conv(torch.zeros(1, 2, 3, 3), torch.zeros(2, 31), EIGHT, 1, "reflect"), "padding_mode"),
        (lambda: reference.conv_dx(torch.zeros(1, 2, 3, 3), torch.zeros(2, 31), EIGHT, 3, 3, 2), "dy must have shape"),
        (lambda: reference.conv_dw(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 2), EIGHT), "dy must have shape"),
        (lambda: reference.run(ConvSpec("conv", 2, 3, 3, EIGHT), torch.zeros(1, 2, 4, 3), torch.zeros(2, 31)), "x must have shape"),
        (lambda: reference.run(ConvSpec("conv", 2, 3, 3, EIGHT), torch.zeros(1, 2, 3, 3)), "two operands"),
    ],
)
def test_misfits_are_refused(call: Callable[[], Tensor], rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        call()
