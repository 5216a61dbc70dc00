"""Which kernels are made unasked, and after how many calls."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import tvm_orient as to
from tests.support.helpers import EIGHT, OPS, line, operands, spec_of
from tests.support.serving import CPU, spec_at
from tvm_orient.kernels import build, compile_cost
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import kernel, makings, payback, provisional, serving

LAYER = spec_of("conv", 64, 28, 28, Taps.oriented(EIGHT, 15))
FORESEEN = compile_cost.seconds(LAYER, CPU)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("height", "width", "made"), [(512, 512, True), (724, 724, False), (2000, 3000, False)])
def test_planes_that_a_kernel_of_their_own_does_not_make_faster(op: str, height: int, width: int, made: bool) -> None:
    spec = spec_of(op, 3, height, width, line(22.5, k=31))
    why = payback.against(spec, CPU)
    assert (why is None) == made
    if why is not None:
        assert f"a plane of {4 * height * width} bytes" in why
    assert payback.against(spec, CPU, tuned=True) is None, "somebody has measured it"
    assert payback.against(dataclasses.replace(spec, layout="nhwc"), CPU) is None, "the generic kernel would have to lay it out anew"
    assert payback.against(spec, arch_device("sm_90a")) is None


def test_a_step_of_training_has_its_kernel_soon_and_a_photograph_none() -> None:
    """The share of what making costs that calls must have spent is reached at the same time, however long each of them takes."""
    for each in (0.0001, 0.005, 0.5):
        left = payback.calls_left(LAYER, CPU, 2, 2 * each)
        assert (2 + left - 1) * each < payback._SHARE * FORESEEN or left == 0
        assert (2 + left) * each >= payback._SHARE * FORESEEN * 0.999
    assert payback.calls_left(LAYER, CPU, 2, 2.0) == 0
    assert payback.calls_left(LAYER, CPU, 2, 0.0) == 2, "a clock that stands still"
    assert payback.calls_left(LAYER, arch_device("sm_90a"), 2, 0.0) == 0, "the time of a launch says nothing"


class Clock:
    """A clock that each call of the generic kernel moves on."""

    def __init__(self, each: float) -> None:
        self.now, self.each = 0.0, each

    def perf_counter(self) -> float:
        self.now += self.each / 2
        return self.now


@pytest.fixture
def usual(second: None, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """No variable is set; the makings that calls begin."""
    begun: list[Any] = []
    monkeypatch.delenv("TVM_ORIENT_BUILD")
    monkeypatch.setattr(serving, "begin", lambda spec, *_, **__: begun.append(spec))
    return begun


@pytest.mark.parametrize(("each", "begun_at"), [(10.0, 3), (0.0, None)])
def test_the_third_call_has_it_begun_where_it_pays(usual: list[Any], monkeypatch: pytest.MonkeyPatch, each: float, begun_at: int | None) -> None:
    monkeypatch.setattr(provisional, "time", Clock(each))
    spec = spec_at(42 + (begun_at is None))
    given = operands(spec, 1)
    seen = [(to.tap_conv2d(*given, spec.taps), len(usual))[1] for _ in range(10)]
    assert seen == [int(begun_at is not None and call >= begun_at) for call in range(1, 11)]


def test_the_number_of_a_call_that_was_set_decides_alone(usual: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provisional, "time", Clock(0.0))
    monkeypatch.setenv("TVM_ORIENT_BUILD", "4")
    spec = spec_at(44)
    given = operands(spec, 1)
    seen = [(to.tap_conv2d(*given, spec.taps), len(usual))[1] for _ in range(6)]
    assert seen == [0, 0, 0, 1, 1, 1]


@pytest.mark.usefixtures("second")
def test_a_large_photograph_stays_on_the_generic_kernel_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_of("conv", 1, 520, 521, line(45, k=5))
    x, weight = torch.randn(1, 1, 520, 521), torch.randn(1, 5)
    wanted, real = [], build.compiled
    monkeypatch.setattr(build, "compiled", lambda one, *given, **options: (wanted.append(one), real(one, *given, **options))[1])
    with caplog.at_level("INFO", logger="tvm_orient"):
        for _ in range(4):
            to.tap_conv2d(x, weight, spec.taps)
            assert makings.current().wait(timeout=60)
    assert spec not in wanted
    assert sum("would be no faster" in message for message in caplog.messages) == 1
    to.warmup(spec)
    assert spec in wanted
    assert isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel)
