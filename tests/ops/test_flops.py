"""torch's FlopCounterMode counts the operators as it counts a depthwise Conv2d with as many taps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tvm_orient as to

N, C, H, W, K = 2, 6, 8, 10, 5
TAPS_OF_THE_RESULT = N * C * H // 2 * W // 2 * K


@pytest.fixture(autouse=True)
def _generic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_BUILD", "100000")  # a kernel that every size shares


def counts(function: Callable[[torch.Tensor], torch.Tensor], *, backward: bool) -> dict[str, int]:
    """Operations by operator, forward or forward and backward."""
    x = torch.randn(N, C, H, W, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        y = function(x)
        if backward:
            y.sum().backward()
    return {str(operator): count for operator, count in counter.get_flop_counts()["Global"].items()}


@pytest.mark.parametrize("options", [{"bias": False}, {"activation": "gelu"}], ids=str)
def test_forward_is_that_of_conv2d(options: dict[str, Any]) -> None:
    ours = counts(to.nn.OrientedConv2d(C, K, directions=3, stride=2, **options), backward=False)
    theirs = counts(torch.nn.Conv2d(C, C, (1, K), stride=2, padding=(0, K // 2), groups=C), backward=False)
    assert list(ours.values()) == list(theirs.values()) == [2 * TAPS_OF_THE_RESULT]


def test_a_gradient_costs_as_much_again() -> None:
    """Of weight and of x alike. What torch counts for the weight of a depthwise Conv2d is C times too much."""
    ours = counts(to.nn.OrientedConv2d(C, K, directions=3, stride=2, bias=False), backward=True)
    assert ours == {f"tvm_orient.{op}": 2 * TAPS_OF_THE_RESULT for op in ("conv", "conv_dx", "conv_dw")}
    weight = torch.randn(C, 1, 1, K)
    theirs = counts(lambda x: torch.nn.functional.conv2d(x, weight, stride=2, padding=(0, K // 2), groups=C), backward=True)
    assert theirs["aten.convolution_backward"] == ours["tvm_orient.conv_dx"]
