"""The modules where a Conv2d was: networks written for the published module, and tools that look for convolutions."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import tvm_orient as to
from tvm_orient.nn import DepthwiseOrientedConv1d, OrientedConv2d

Made = Callable[[], Any]
BOTH: list[Made] = [
    lambda: OrientedConv2d(6, 5, theta=[0.3, 1.2]),
    lambda: DepthwiseOrientedConv1d(6, 6, 5, groups=6, angle=[0.3, 0.3, 0.3, 1.2, 1.2, 1.2]),
]
both = pytest.mark.parametrize("make", BOTH, ids=["ours", "published"])


def initialise(module: nn.Module) -> None:
    """As networks of that kind start their convolutions."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def test_what_starts_every_conv2d_starts_the_published_module() -> None:
    layer = DepthwiseOrientedConv1d(64, 64, 31, groups=64, angle=0.3).apply(initialise)
    assert layer.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert layer.bias is not None
    assert not layer.bias.any()


def test_it_starts_as_a_conv2d_does() -> None:
    torch.manual_seed(3)
    conv = nn.Conv2d(6, 6, (1, 5), groups=6)
    torch.manual_seed(3)
    layer = DepthwiseOrientedConv1d(6, 6, 5, groups=6, angle=0.3)
    assert torch.equal(layer.weight, conv.weight)
    assert torch.equal(layer.bias, conv.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "padding"),
    [({}, (0, 1)), ({"padding": 15, "stride": 2}, (0, 15)), ({"stride": (2, 1), "bias": False}, (0, 1)), ({"padding": (3, 4)}, (3, 4))],
    ids=str,
)
def test_attributes_are_those_of_the_published_module(options: dict[str, Any], padding: tuple[int, int]) -> None:
    layer = DepthwiseOrientedConv1d(6, 6, groups=6, **options)
    assert isinstance(layer, nn.Conv2d)
    stride = options.get("stride", 1)
    assert (layer.in_channels, layer.out_channels, layer.groups) == (6, 6, 6)
    assert (layer.kernel_size, layer.padding, layer.dilation) == ((1, 3), padding, (1, 1))
    assert layer.stride == (stride if isinstance(stride, tuple) else (stride, stride))
    assert (layer.padding_mode, layer.transposed, layer.output_padding) == ("zeros", False, (0, 0))
    assert (layer.nhwc, layer.resid) == (False, None)
    assert (layer.bias is None) == (options.get("bias") is False)
    assert list(layer.state_dict()) == (["weight", "theta"] if layer.bias is None else ["weight", "bias", "theta"])
    assert layer.theta.tolist() == [[0.0]] * 6


def test_the_residual_is_the_published_tensor() -> None:
    layer, x = DepthwiseOrientedConv1d(6, 6, 5, angle=0.3, resid=True), torch.randn(1, 6, 8, 9)
    assert layer.resid is not None
    assert layer.resid.shape == layer.weight.shape
    assert layer.resid.sum((1, 2, 3)).tolist() == [1.0] * 6
    torch.testing.assert_close(layer(x), to.oriented_conv2d(x, layer.weight + layer.resid, 0.3, layer.bias))
    assert layer.double().resid.dtype == torch.float64  # type: ignore[union-attr]
    assert "resid" not in str(list(layer.state_dict()))


def test_padding_is_ignored() -> None:
    one, other = (DepthwiseOrientedConv1d(6, 6, 5, groups=6, padding=padding, angle=0.3) for padding in (0, 7))
    other.load_state_dict(one.state_dict())
    x = torch.randn(1, 6, 8, 9)
    assert torch.equal(one(x), other(x))
    assert one(x).shape == x.shape


def swap(net: nn.Module) -> None:
    """Puts a layer of ours in the place of each depthwise (1, K) convolution."""
    for name, conv in list(net.named_modules()):
        if type(conv) is nn.Conv2d and conv.groups == conv.in_channels > 1:
            net.set_submodule(
                name, DepthwiseOrientedConv1d(conv.in_channels, conv.out_channels, conv.kernel_size[1], groups=conv.groups, padding=conv.padding[1])
            )


def test_a_network_of_conv2ds_is_swapped_and_loads_what_it_had() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, (1, 5), padding=(0, 2), groups=6), nn.ReLU())
    x, had = torch.randn(1, 3, 8, 9), net.state_dict()
    wanted = net(x)
    swap(net)
    assert type(net[1]) is DepthwiseOrientedConv1d
    net.load_state_dict(had)
    torch.testing.assert_close(net(x), wanted)


# ---- tools --------------------------------------------------------------------------------------


@both
def test_what_fuses_batch_norm(make: Made) -> None:
    layer, norm, x = make().eval(), nn.BatchNorm2d(6).eval(), torch.randn(1, 6, 8, 9)
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
    fused = fuse_conv_bn_eval(layer, norm)
    assert type(fused) is type(layer)
    assert fused.taps == layer.taps
    torch.testing.assert_close(fused(x), norm(layer(x)))


@both
def test_what_fuses_by_type_leaves_it_alone(make: Made) -> None:
    """torch.ao fuses the types it knows; a subclass of Conv2d it refuses to fuse in name, as it did the published one, rather than drop the angles."""
    quantization = pytest.importorskip("torch.ao.quantization")
    with pytest.raises((NotImplementedError, AssertionError), match="fuse"):
        quantization.fuse_modules(nn.Sequential(make(), nn.BatchNorm2d(6)).eval(), [["0", "1"]])


@both
def test_what_quantizes_by_type_leaves_it_alone(make: Made) -> None:
    quantization = pytest.importorskip("torch.ao.quantization")
    net, x = nn.Sequential(make(), nn.Flatten(), nn.Linear(6 * 8 * 9, 2)).eval(), torch.randn(1, 6, 8, 9)
    assert type(quantization.quantize_dynamic(net, {nn.Linear})[0]) is type(net[0])
    assert torch.equal(net[0](x), copy.deepcopy(net)[0](x))


@both
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "copy", "pickle"])
def test_copies(make: Made, duplicate: Callable[[Any], Any]) -> None:
    layer, x = make(), torch.randn(1, 6, 8, 9)
    twin = duplicate(layer)
    assert repr(twin) == repr(layer)
    assert torch.equal(twin(x), layer(x))


@both
def test_channels_last_weights(make: Made) -> None:
    layer, x = make(), torch.randn(1, 6, 8, 9)
    wanted = layer(x)
    last = nn.utils.convert_conv2d_weight_memory_format(layer, torch.channels_last)
    torch.testing.assert_close(last(x), wanted)
    torch.testing.assert_close(layer.to(memory_format=torch.channels_last)(x), wanted)


def test_what_counts_multiply_adds_of_a_conv2d() -> None:
    """Counters multiply kernel_size, channels and pixels, and divide by groups: right for the published module, K for each channel and pixel."""
    layer, counted = DepthwiseOrientedConv1d(6, 6, 5, groups=6, angle=0.3), []

    def count(module: nn.Conv2d, given: tuple[torch.Tensor], y: torch.Tensor) -> None:
        k, across = module.kernel_size
        counted.append(k * across * module.in_channels // module.groups * y.numel())

    layer.register_forward_hook(count)  # type: ignore[arg-type]
    layer(torch.randn(2, 6, 8, 9))
    assert counted == [5 * 2 * 6 * 8 * 9]


def test_they_print_what_they_are() -> None:
    assert str(DepthwiseOrientedConv1d(6, 6, 5, groups=6, angle=0.5, resid=True)) == (
        "DepthwiseOrientedConv1d(6, 6, kernel_size=(1, 5), stride=(1, 1), padding=(0, 1), groups=6, degrees=[28.6479], taps=k5a22.5, resid=True)"
    )
    many = str(OrientedConv2d(40, 5, directions=40))
    assert "degrees=[0, 4.5, 9, 13.5, 18, 22.5, 27, 31.5, 36, 40.5, 45, 49.5, 54, 58.5, 63, 67.5, ... 24 more]" in many
