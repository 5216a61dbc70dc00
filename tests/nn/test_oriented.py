"""OrientedConv2d: what it holds, what survives casting, copying and loading, and that it trains."""

from __future__ import annotations

import copy
import io
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import tvm_orient as to
from tvm_orient.nn import DepthwiseOrientedConv1d, OrientedConv2d
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.taps import Taps


def image() -> Tensor:
    return torch.randn(2, 6, 8, 9)


def test_parameters_and_buffers() -> None:
    module = OrientedConv2d(6, 5)
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {"weight": (6, 5), "bias": (6,)}
    assert list(module.state_dict()) == ["weight", "bias", "theta"]
    assert module.theta.dtype == torch.float32
    assert not module.theta.requires_grad
    assert OrientedConv2d(6, 5, bias=False).bias is None


@pytest.mark.parametrize("count", [1, 3, 6])
def test_a_count_spreads_directions_over_180_degrees(count: int) -> None:
    module = OrientedConv2d(6, 5, directions=count)
    assert module.theta.tolist() == angles_between(count).tolist()
    assert module.taps.for_channels(6) == Taps.oriented(angles_between(count), 5).for_channels(6)


def test_an_angle_is_not_a_count() -> None:
    assert OrientedConv2d(6, 5, theta=1.0).theta.tolist() == [1.0]
    assert OrientedConv2d(6, 5, directions=1).theta.tolist() == [0.0]
    assert OrientedConv2d(6, 5, theta=0).theta.tolist() == [0.0]


@pytest.mark.parametrize(
    "theta", [[0.3, 1.2], (0.3, 1.2), torch.tensor([0.3, 1.2]), [0.3] * 3 + [1.2] * 3, torch.tensor([0.3] * 3 + [1.2] * 3)[:, None]], ids=str
)
def test_theta(theta: Any) -> None:
    module = OrientedConv2d(6, 5, theta=theta)
    x = image()
    assert torch.equal(module(x), to.oriented_conv2d(x, module.weight, [0.3, 1.2], module.bias))


@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": (2, 1)}, {"dilation": 2}, {"padding_mode": "circular"}, {"anchor": "start"}], ids=str)
def test_options(options: dict[str, Any]) -> None:
    module = OrientedConv2d(6, 5, directions=3, **options)
    x = image()
    assert torch.equal(module(x), to.oriented_conv2d(x, module.weight, angles_between(3).tolist(), module.bias, **options))


def test_casting_moves_weights_and_no_tap() -> None:
    for cast in (lambda m: m.half(), lambda m: m.to(torch.bfloat16), lambda m: m.double(), lambda m: m.to("cpu", torch.float64)):
        module = OrientedConv2d(6, 31, theta=8 / 3)
        before, taps = module.theta.clone(), module.taps
        cast(module)
        assert module.theta.dtype == torch.float32
        assert torch.equal(module.theta, before)
        assert module.taps == taps
        assert module.weight.dtype != torch.float32


def test_float64_runs() -> None:
    module = OrientedConv2d(6, 5, directions=3).double()
    assert module(image().double()).dtype == torch.float64


def test_built_in_a_low_precision_the_angles_are_exact() -> None:
    assert torch.equal(OrientedConv2d(6, 31, directions=6, dtype=torch.float16).theta, OrientedConv2d(6, 31, directions=6).theta)


def test_loading_moves_the_taps() -> None:
    source, module = OrientedConv2d(6, 5, theta=[0.3, 1.2]), OrientedConv2d(6, 5, theta=[2.0, 2.5])
    module.load_state_dict(source.state_dict())
    assert module.taps == source.taps
    assert torch.equal(module(image()[:1] * 0 + 1), source(image()[:1] * 0 + 1))


def test_loading_into_a_parent_moves_the_taps() -> None:
    source, module = (torch.nn.Sequential(torch.nn.ReLU(), OrientedConv2d(6, 5, theta=theta)) for theta in ([0.3], [2.0]))
    module.load_state_dict(source.state_dict())
    x = image()
    assert torch.equal(module(x), source(x))


def test_loading_by_assignment_moves_the_taps() -> None:
    source = OrientedConv2d(6, 5, theta=[0.3, 1.2])
    module = OrientedConv2d(6, 5, theta=[2.0, 2.5])
    module.load_state_dict(source.state_dict(), assign=True)
    x = image()
    assert torch.equal(module(x), source(x))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies(duplicate: Any) -> None:
    module = OrientedConv2d(6, 5, theta=[0.3, 1.2])
    twin = duplicate(module)
    x = image()
    assert torch.equal(twin(x), module(x))
    twin.load_state_dict(OrientedConv2d(6, 5, theta=[2.0, 2.5]).state_dict())
    assert twin.taps == Taps.oriented([2.0, 2.5], 5), "the copy follows its own state dict"
    assert module.taps == Taps.oriented([0.3, 1.2], 5), "and leaves the original alone"


def test_saved_and_loaded() -> None:
    module = OrientedConv2d(6, 5, theta=[0.3, 1.2])
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    twin = OrientedConv2d(6, 5, directions=2)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert twin.taps == module.taps


def test_initial_weights_are_those_of_a_conv2d() -> None:
    module = OrientedConv2d(1000, 9)
    assert module.weight.abs().max() <= 1 / 3
    assert module.weight.abs().max() > 0.9 / 3
    assert module.weight.std().item() == pytest.approx(1 / 3 / math.sqrt(3), rel=0.05)
    assert module.bias is not None
    assert module.bias.abs().max() <= 1 / 3


def test_training_finds_the_kernel_that_made_the_picture() -> None:
    x, target = torch.randn(4, 6, 8, 9), OrientedConv2d(6, 5, theta=[0.3, 1.2])
    wanted = target(x).detach()
    module = OrientedConv2d(6, 5, theta=[0.3, 1.2])
    optimizer = torch.optim.Adam(module.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = (module(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4


def test_it_prints_what_it_is() -> None:
    text = str(OrientedConv2d(6, 5, theta=[0.0, math.pi / 4], stride=2, padding_mode="circular"))
    assert text == "OrientedConv2d(6, kernel_size=5, degrees=[0, 45], taps=k5a0_45, stride=(2, 2), padding_mode='circular', bias=True, residual=False)"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"channels": 0}, "channels must be a whole number >= 1, got 0"),
        ({"channels": 2.5}, "got 2.5"),
        ({"kernel_size": 4}, "kernel_size must be odd.* got 4"),
        ({"kernel_size": -1}, "kernel_size must be a whole number >= 1, got -1"),
        ({"directions": 0}, "number of angles must be a whole number >= 1, got 0"),
        ({"directions": 2.5}, "number of angles must be a whole number >= 1, got 2.5"),
        ({"directions": 7}, "every direction needs a channel, got directions=7 for 6 channels"),
        ({"directions": 2, "theta": 0.3}, r"got both \(0.3 and 2\): drop one"),
        ({"theta": 8}, r"got the whole number 8: directions=8 .*from_degrees\(8\) for degrees, or 8.0 for radians"),
        ({"theta": [0.0] * 7}, r"1 <= G <= C = 6.*got shape \(7,\)"),
        ({"theta": [math.nan]}, "theta must be finite.*nan"),
        ({"theta": "up"}, "theta must be a number or a sequence of numbers in radians, got 'up'"),
        ({"stride": 0}, "stride must be .*got 0"),
        ({"dilation": 0}, "dilation must be a whole number >= 1, got 0"),
        ({"padding_mode": "reflect"}, "padding_mode must be one of zeros, circular, got 'reflect'"),
        ({"anchor": "end"}, "anchor must be .*got 'end'"),
    ],
    ids=str,
)
def test_what_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(to.InvalidArgument, match=said):
        OrientedConv2d(**{"channels": 6, "kernel_size": 5, **given})


def test_the_default_works_with_few_channels() -> None:
    module = OrientedConv2d(3, 5)
    x = image()[:, :3]
    assert torch.equal(module(x), to.tap_conv2d(x, module.weight, Taps.oriented(angles_between(3), 5), module.bias))


def test_on_the_meta_device() -> None:
    module = OrientedConv2d(6, 5, directions=3, device="meta")
    assert module(torch.empty(2, 6, 8, 9, device="meta")).shape == (2, 6, 8, 9)
    real = OrientedConv2d(6, 5, directions=3)
    module.load_state_dict(real.state_dict(), assign=True)
    x = image()
    assert torch.equal(module(x), real(x))


def test_meta_to_empty() -> None:
    module = OrientedConv2d(6, 5, directions=3, device="meta").to_empty(device="cpu")
    real = OrientedConv2d(6, 5, directions=3)
    module.load_state_dict(real.state_dict())
    assert module.taps == real.taps


# ---- the residual option and the published module -----------------------------------------------


@pytest.mark.parametrize("stride", [1, 2, (3, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("anchor", ["center", "start"])
def test_residual_adds_the_image(stride: Any, dtype: torch.dtype, anchor: Any) -> None:
    plain = OrientedConv2d(6, 5, directions=3, stride=stride, anchor=anchor, dtype=dtype)
    module = OrientedConv2d(6, 5, directions=3, stride=stride, anchor=anchor, dtype=dtype, residual=True)
    module.load_state_dict(plain.state_dict())
    x = image().to(dtype)
    down, across = module.stride
    want = plain(x).double() + x[:, :, ::down, ::across].double()
    assert float((module(x).double() - want).detach().abs().max()) <= 4 * torch.finfo(dtype).eps * float(want.detach().abs().max())
    assert torch.equal(to.oriented_conv2d(x, module.weight, module.theta, module.bias, stride=stride, anchor=anchor, residual=True), module(x))


def test_residual_gradients_are_those_of_the_sum() -> None:
    module, x = OrientedConv2d(6, 5, directions=3, stride=2, dtype=torch.float64, residual=True), image().double().requires_grad_()
    dy = torch.randn(2, 6, 4, 5, dtype=torch.float64)
    dx, dw = torch.autograd.grad(module(x), (x, module.weight), dy)
    module.residual = False
    plain_dx, plain_dw = torch.autograd.grad(module(x), (x, module.weight), dy)
    plain_dx[:, :, ::2, ::2] += dy
    torch.testing.assert_close(dx, plain_dx)
    torch.testing.assert_close(dw, plain_dw)


@pytest.mark.parametrize("angle", [0.7, [0.1, 0.1, 0.5, 0.5, 2.0, 3.0]], ids=["one angle", "six angles"])
@pytest.mark.parametrize(
    "options", [{}, {"stride": 2}, {"resid": True}, {"nhwc": True, "resid": True}, {"bias": False, "padding": 3, "arbitrary_size": True}], ids=str
)
def test_the_published_module(angle: Any, options: dict[str, Any]) -> None:
    module = DepthwiseOrientedConv1d(6, 6, 5, groups=6, angle=angle, **options)
    assert module.weight.shape == (6, 1, 1, 5)
    x = image()
    y = module(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if options.get("nhwc") else module(x)
    angles = [angle] * 6 if isinstance(angle, float) else angle
    want = to.oriented_conv2d(x, module.weight, angles, module.bias, stride=options.get("stride", 1), residual=options.get("resid", False))
    torch.testing.assert_close(y, want)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
@pytest.mark.parametrize("angle", [0.0, [0.0] * 6])
def test_published_state_dicts_load(shape: tuple[int, ...], angle: Any) -> None:
    """theta came as (C, 1) from one angle and as (C,) from a list; the taps follow what is loaded."""
    theirs = {"weight": torch.randn(6, 1, 1, 5), "bias": torch.randn(6), "theta": torch.linspace(0, 2, 6).reshape(shape)}
    module = DepthwiseOrientedConv1d(6, 6, 5, groups=6, angle=angle)
    own = module.theta.shape
    module.load_state_dict(theirs)
    assert module.theta.shape == own
    assert module.taps == Taps.oriented(theirs["theta"].flatten().tolist(), 5)
    x = image()
    assert torch.equal(module(x), to.oriented_conv2d(x, theirs["weight"], theirs["theta"].flatten(), theirs["bias"]))


def test_one_angle_is_one_group() -> None:
    assert DepthwiseOrientedConv1d(6, 6, 5, angle=0.7).taps == Taps.oriented(0.7, 5)
    assert DepthwiseOrientedConv1d(6, 6, 5, angle=0.7).theta.shape == (6, 1)
    assert DepthwiseOrientedConv1d(6, 6, 5, angle=0).theta.tolist() == [[0.0]] * 6


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ((6, 8, 5), "in_channels = out_channels = groups, got 6, 8 and None"),
        ((6, 6, 4), "odd"),
        ((6, 6, 5, [0.1, 0.2]), "one for each of 6 channels, got 2"),
    ],
)
def test_what_the_published_module_refuses(given: tuple[Any, ...], rule: str) -> None:
    with pytest.raises(to.InvalidArgument, match=rule):
        DepthwiseOrientedConv1d(*given[:3], angle=given[3] if len(given) > 3 else 0.0)
    with pytest.raises(to.InvalidArgument, match="and 3"):
        DepthwiseOrientedConv1d(6, 6, 5, groups=3)
