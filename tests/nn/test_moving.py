"""A training run goes on where one with published modules stopped: as if nothing had been moved."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import tvm_orient as to
from tvm_orient.nn.moving import optimizer_state

ANGLES = torch.tensor([0.1, 0.1, 0.5, 0.5])


class Published(torch.nn.Module):
    """What the published module registers: theta is a parameter, before the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 1, 1, 5))
        self.theta = torch.nn.Parameter(ANGLES.clone(), requires_grad=False)
        self.bias = torch.nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return to.oriented_conv2d(x, self.weight, self.theta, self.bias)


def network(oriented: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1), oriented, torch.nn.BatchNorm2d(4), torch.nn.Conv2d(4, 2, 1))


def groups(model: torch.nn.Module, several: bool) -> list[dict[str, Any]]:
    """One group of parameters, or two with options of their own: biases have no decay."""
    named = list(model.named_parameters())
    if not several:
        return [{"params": [one for _, one in named]}]
    biases = [one for name, one in named if name.endswith("bias")]
    return [{"params": [one for name, one in named if not name.endswith("bias")], "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]


def names(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Of the optimizer's parameters, in its order."""
    name_of = {id(one): name for name, one in model.named_parameters()}
    return [name_of[id(one)] for group in optimizer.param_groups for one in group["params"]]


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("several", [False, True])
def test_training_goes_on(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_BUILD", "100000")
    x = torch.randn(2, 4, 6, 7)
    theirs = network(Published())
    before = torch.optim.AdamW(groups(theirs, several), lr=0.01)
    for _ in range(3):
        step(theirs, before, x)
    ours = network(to.nn.DepthwiseOrientedConv1d(4, 4, 5))
    ours.load_state_dict(theirs.state_dict())
    after = torch.optim.AdamW(groups(ours, several), lr=0.5)
    with pytest.raises(ValueError, match="parameter group"):
        after.load_state_dict(before.state_dict())
    kept = copy.deepcopy(before.state_dict())  # as from a file: the state's tensors are the optimizer's own
    after.load_state_dict(optimizer_state(kept, names(theirs, before), names(ours, after)))
    assert [group["weight_decay"] for group in after.param_groups] == [group["weight_decay"] for group in before.param_groups]
    for _ in range(2):
        step(theirs, before, x)
        step(ours, after, x)
    wanted = dict(theirs.named_parameters())
    for name, one in ours.named_parameters():
        assert torch.equal(one, wanted[name]), name


def test_names_that_do_not_fit_are_refused() -> None:
    state = torch.optim.SGD(Published().parameters(), lr=0.1, momentum=0.9).state_dict()
    with pytest.raises(to.InvalidArgument, match="it has 3, got 2 names; take them from named_parameters"):
        optimizer_state(state, ["weight", "bias"], ["weight", "bias"])
    with pytest.raises(to.InvalidArgument, match="got 'scale', which is not"):
        optimizer_state(state, ["weight", "theta", "bias"], ["weight", "scale"])
