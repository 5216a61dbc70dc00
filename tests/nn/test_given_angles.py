"""Angles cannot be misread: radians, degrees and numbers of directions are told apart, in the functions and in the modules."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import tvm_orient as to
from tvm_orient.nn import DepthwiseOrientedConv1d, OrientedConv2d
from tvm_orient.problem.line_offsets import angles_between, from_degrees
from tvm_orient.problem.taps import Taps

X, W = torch.randn(1, 4, 6, 7), torch.randn(4, 5)


def function(theta: Any) -> Taps:
    """The taps that the function takes, by what it computes."""
    y = to.oriented_conv2d(X, W, theta)
    for taps in (Taps.oriented([0.0], 5), Taps.oriented(from_degrees([0, 45, 90, 135]), 5), Taps.oriented(math.fmod(45.0, 2 * math.pi), 5)):
        if torch.equal(y, to.tap_conv2d(X, W, taps)):
            return taps
    raise AssertionError("other taps")


MAKERS: dict[str, Callable[[Any], Taps]] = {
    "function": function,
    "module": lambda theta: OrientedConv2d(4, 5, theta=theta).taps,
    "Taps": lambda theta: Taps.oriented(theta, 5),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("theta", "number"),
    [
        (45, 45),
        (-1, -1),
        ([0, 45, 90, 135], 45),
        ([0.0, 45], 45),
        (np.int64(45), 45),
        (np.array([0, 3]), 3),
        (torch.tensor([0, 3]), 3),
        (True, 1),
        ([0.0, True], 1),
    ],
    ids=str,
)
def test_whole_numbers_are_refused(theta: Any, number: int, make: Callable[[Any], Taps]) -> None:
    said = rf"radians and takes floats, got the whole number .*directions={number} .*tvm_orient.from_degrees\({number}\) for degrees, or {number}.0 for radians"
    with pytest.raises(to.InvalidArgument, match=said):
        make(theta)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("theta", [0, [0], [0, 0.0], np.zeros(1, int), torch.zeros(1, dtype=torch.int32)], ids=str)
def test_zero_is_zero_in_every_unit(theta: Any, make: Callable[[Any], Taps]) -> None:
    assert make(theta).group(0) == Taps.oriented(0.0, 5)


@pytest.mark.parametrize("make", [lambda theta: to.oriented_conv2d(X, W, theta), MAKERS["module"], MAKERS["Taps"]], ids=MAKERS)
@pytest.mark.parametrize("theta", [45.0, [0.0, 45.0], np.array([45.0]), torch.tensor([45.0]), -6.4], ids=str)
def test_beyond_a_turn_there_is_a_warning_at_the_line_of_the_user(theta: Any, make: Callable[[Any], Any]) -> None:
    with pytest.warns(UserWarning, match=r"radians, and (45|-6.4) is more than a whole turn .* theta=tvm_orient.from_degrees\((45|-6.4)\)") as said:
        make(theta)
    assert {one.filename for one in said} == {__file__}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_within_a_turn_there_is_none(make: Callable[[Any], Taps]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for theta in (0.0, np.float32(2 * math.pi).item(), -2 * math.pi):
            assert make(theta).kernel_size == 5
        assert Taps.from_key("k5a719").kernel_size == 5, "a key is in degrees"


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_degrees(make: Callable[[Any], Taps]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make(to.from_degrees([0, 45, 90, 135])) == Taps.oriented(angles_between(4), 5)
        assert make(to.from_degrees(360)) == Taps.oriented(0.0, 5)


def test_from_degrees() -> None:
    assert to.from_degrees(90) == math.pi / 2
    assert to.from_degrees([0, 22.5, -90]) == [0.0, math.pi / 8, -math.pi / 2]
    assert to.from_degrees(405) == to.from_degrees(45.0)
    assert type(to.from_degrees(np.float32(45))) is float
    assert to.from_degrees(np.arange(2) * 90) == [0.0, math.pi / 2]
    for count in (4, 8, 12, 36):
        assert np.array_equal(np.float32(to.from_degrees([180 * g / count for g in range(count)])), angles_between(count))


@pytest.mark.parametrize("degrees", ["up", None, math.inf, [0.0, math.nan], [[1.0]], [1j], {}], ids=str)
def test_what_are_no_degrees(degrees: Any) -> None:
    with pytest.raises(to.InvalidArgument, match=r"degrees must be a .*such as 45 or \[0, 45, 90, 135\]"):
        to.from_degrees(degrees)


@pytest.mark.parametrize("theta", [torch.nn.Parameter(torch.tensor([0.3])), torch.tensor(0.3, requires_grad=True)], ids=["parameter", "tensor"])
def test_an_angle_that_asks_for_a_gradient_is_refused(theta: torch.Tensor) -> None:
    for make in (MAKERS["function"], MAKERS["module"], lambda angle: DepthwiseOrientedConv1d(4, 4, 5, angle=angle)):
        with pytest.raises(to.InvalidArgument, match=r"theta has no gradient.*requires_grad=True: give theta.detach\(\)"):
            make(theta)
    assert OrientedConv2d(4, 5, theta=theta.detach()).taps == OrientedConv2d(4, 5, theta=[0.3]).taps


# ---- the habits of Conv2d -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named", "said"),
    [
        ((15, 15, 7), {}, r"channels once.*got OrientedConv2d\(15, 15, 7\): write \(channels, kernel_size\).*directions=8.*theta="),
        ((96, 96, 31, 1, 15), {}, r"got OrientedConv2d\(96, 96, 31, 1, 15\)"),
        ((8, 7), {"padding": 3}, "no argument 'padding', got 3: there is none"),
        ((8, 7), {"groups": 8}, "no argument 'groups', got 8: .*leave it out"),
        ((), {"in_channels": 8, "out_channels": 8, "kernel_size": 7}, "no argument 'in_channels'.*give channels"),
        ((8, 7), {"out_channels": 8}, "no argument 'out_channels'.*give channels once"),
        ((8, 7), {"angle": 0.3}, "no argument 'angle'.*theta="),
        ((8, 7), {"resid": True}, "no argument 'resid'.*residual="),
        ((8, 7, 8), {}, "directions=8"),
    ],
    ids=str,
)
def test_arguments_of_a_conv2d(given: tuple[Any, ...], named: dict[str, Any], said: str) -> None:
    with pytest.raises(to.InvalidArgument, match=said):
        OrientedConv2d(*given, **named)


@pytest.mark.parametrize("count", [1, 8])
def test_the_old_spelling_of_directions_works_and_says_the_new_one(count: int) -> None:
    with pytest.warns(UserWarning, match=rf"taken as {count} directions.*directions={count}, or theta=tvm_orient.from_degrees\({count}\)") as said:
        module = OrientedConv2d(8, 7, theta=count)  # type: ignore[arg-type]
    assert module.taps == OrientedConv2d(8, 7, directions=count).taps
    assert {one.filename for one in said} == {__file__}


def test_other_names_are_a_type_error_as_everywhere() -> None:
    with pytest.raises(TypeError, match="strides"):
        OrientedConv2d(8, 7, strides=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="kernel_size"):
        OrientedConv2d(8)  # type: ignore[call-arg]


def test_the_published_module_takes_angles_as_it_did() -> None:
    assert DepthwiseOrientedConv1d(4, 4, 5, angle=1).taps == Taps.oriented(1.0, 5)
    with pytest.warns(UserWarning, match="45 is more than a whole turn"):
        DepthwiseOrientedConv1d(4, 4, 5, angle=45)
