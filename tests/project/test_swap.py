"""The loop of docs/deployment.md that swaps the convolutions of a model, on a network like ConvNeXt and on timm's own where that is installed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_orient as to

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"


@pytest.fixture
def swap(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("TVM_ORIENT_BUILD", "8")  # the generic kernel is enough
    found = re.search(r"<!-- swap -->\n\n```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert found
    names: dict[str, Any] = {}
    exec(compile(found[1], str(PAGE), "exec"), names)
    return names["swap"]  # type: ignore[no-any-return]


class Block(torch.nn.Module):
    """As in ConvNeXt."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = torch.nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = torch.nn.LayerNorm(channels)
        self.mlp = torch.nn.Sequential(torch.nn.Linear(channels, 4 * channels), torch.nn.GELU(), torch.nn.Linear(4 * channels, channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def network() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 12, 4, stride=4),
        Block(12),
        torch.nn.Conv2d(12, 12, 3, stride=2, padding=1, groups=12, bias=False),  # makes planes smaller
        Block(12),
        torch.nn.Conv2d(12, 12, 3, padding="same", groups=12),
        torch.nn.Conv2d(12, 12, 1, groups=12),
        torch.nn.Conv2d(12, 12, 3, padding=2, dilation=2, groups=12),
        torch.nn.Conv2d(12, 12, 3, groups=12),
        torch.nn.Conv2d(12, 12, 3, padding=1, groups=4),
    )


def test_a_network_like_convnext_trains_with_lines_in_it(swap: Callable[..., int]) -> None:
    model, x = network(), torch.randn(2, 3, 32, 28)
    shape = model(x).shape
    assert swap(model, kernel_size=9) == 4
    kinds = [type(model[index]).__name__ for index in range(9)]
    assert kinds == ["Conv2d", "Block", "OrientedConv2d", "Block", "OrientedConv2d", *["Conv2d"] * 4]
    assert [(model[i].stride, model[i].bias is None, model[i].taps.groups) for i in (2, 4)] == [((2, 2), True, 8), ((1, 1), False, 8)]
    assert isinstance(model[1].conv_dw, to.nn.OrientedConv2d)
    y = model(x)
    assert y.shape == shape
    y.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
    assert swap(model) == 0, "nothing is left to swap"


def test_few_channels_have_few_directions_and_dtypes_stay(swap: Callable[..., int]) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1, groups=3, dtype=torch.float64))
    assert swap(model, kernel_size=9) == 1
    assert (model[0].taps.groups, model[0].weight.dtype) == (3, torch.float64)


def test_timm(swap: Callable[..., int]) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed; the network above stands for it")
    model = timm.create_model("convnext_atto", pretrained=False, num_classes=5)
    blocks = sum(name.endswith("conv_dw") for name, _ in model.named_modules())
    assert swap(model, kernel_size=9) == blocks > 0
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 5)
