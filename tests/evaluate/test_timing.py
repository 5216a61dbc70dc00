"""One meaning of cold and one clock, for tuning and for the bench; and one verdict on results."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.helpers import line, operands, spec_of
from tvm_orient.bench import bench, cell
from tvm_orient.evaluate import reference, timing, tolerance
from tvm_orient.evaluate.timing import COLD_CACHES, MAX_BYTES, MAX_SETS, measured, sets_in_turn, timed
from tvm_orient.evaluate.verified import Expected
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.schedules import choices
from tvm_orient.tuning import builder, runner

CPU = cpu_device()
WHERE = torch.device("cpu")


@pytest.fixture
def cache_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda size: monkeypatch.setattr(timing, "last_level_cache", lambda _: size)


# ---- cold ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [1 << 20, 32 << 20, 256 << 20])
@pytest.mark.parametrize("size", [1 << 12, 1 << 16, 3 << 20, 100 << 20])
def test_what_was_used_since_fills_the_cache_twice(cache: int, size: int, cache_of: Any) -> None:
    cache_of(cache)
    count = sets_in_turn(size, CPU)
    since = (count - 1) * size  # bytes that the others have moved before a set comes again
    assert since >= COLD_CACHES * cache or count == MAX_SETS or (count + 1) * size > MAX_BYTES["cpu"]
    assert count * size <= MAX_BYTES["cpu"]


def test_memory_bounds_the_sets_and_two_are_always_there(cache_of: Any) -> None:
    cache_of(1 << 40)
    assert sets_in_turn(10**8, CPU) == MAX_BYTES["cpu"] // 10**8
    assert sets_in_turn(10**8, arch_device("sm_90a")) == MAX_BYTES["cuda"] // 10**8
    assert sets_in_turn(10**12, CPU) == 2
    assert sets_in_turn(1, CPU) == sets_in_turn(0, CPU) == MAX_SETS


def test_tuning_and_bench_take_as_many_sets_of_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the one function, for the one number of bytes, on the one device: neither has a notion of cold of its own."""
    asked: list[tuple[int, Any]] = []

    def counted(size: int, device: Any) -> int:
        asked.append((size, device))
        return 2

    spec = spec_of("conv", 2, 6, 8, line(0, k=3))
    monkeypatch.setattr(runner, "sets_in_turn", counted)
    monkeypatch.setattr(cell, "sets_in_turn", counted)
    (choice,) = choices.default_choices(spec, CPU)
    builder.build(spec, CPU, choice, tmp_path / "kernel.so")
    request = {"spec": spec.key, "batch": 3, "kernel": str(tmp_path / "kernel.so"), "workspace": None, "device": dataclasses.asdict(CPU)}
    assert runner.timed(request, runner.Kept())["median"] > 0
    bench.bench([spec], CPU, batch=3, peers=False, repeats=1)
    assert asked == [(spec.bytes_moved(3), CPU)] * 2


def test_turns_go_on_where_the_kernel_before_stopped() -> None:
    """Else the first sets would be warm for each kernel but the first."""
    kept = runner.Kept()
    made: list[int] = []

    def make() -> list[list[torch.Tensor]]:
        made.append(1)
        return [[torch.tensor(float(i))] for i in range(3)]

    first = [float(next(kept.turns("kernel", "a", make))[0]) for _ in range(4)]
    kept.turns("copy", 8, make)
    assert [*first, float(next(kept.turns("kernel", "a", make))[0])] == [0, 1, 2, 0, 1]
    assert len(made) == 2
    assert float(next(kept.turns("kernel", "b", make))[0]) == 0
    assert len(made) == 3


# ---- the clock ----------------------------------------------------------------------------------


def test_a_call_is_timed_and_its_result_is_given() -> None:
    seconds, result = timed(WHERE, lambda a, b: time.sleep(0.02) or a + b, (1, 2))
    assert result == 3
    assert 0.02 <= seconds < 1


def test_the_median_and_the_spread_are_of_calls_on_sets_in_turn() -> None:
    seen: list[int] = []
    pauses = itertools.cycle((0.001, 0.003))

    def call(number: int) -> None:
        seen.append(number)
        time.sleep(next(pauses))

    median, spread = measured(WHERE, call, ((number,) for number in itertools.count()))
    assert seen == list(range(len(seen))), "no set comes twice"
    assert 0.001 <= median < 0.1
    assert spread >= 0.0005
    assert len(seen) >= 5


# ---- the verdict --------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["conv", "conv_dx", "conv_dw"])
def test_a_result_is_right_within_what_rounding_may_do(op: str) -> None:
    spec = spec_of(op, 3, 6, 7, line(30, k=5))
    given = operands(spec, 2)
    expected = Expected(spec, *given)
    right = reference.run(spec, *given).float()
    verdict = expected.verdict(right)
    assert verdict.wrong == ""
    assert verdict.bound == tolerance.tolerance(spec, 2, *given)
    assert verdict.relative == verdict.difference / float(expected.result.abs().max())
    off = right.clone()
    off.view(-1)[0] += 1
    assert expected.verdict(off).wrong.startswith("off by 1, where rounding allows ")
    off.view(-1)[0] = math.nan
    assert expected.verdict(off).wrong.startswith("off by nan, where rounding allows ")
    assert expected.verdict(right[..., :-1]).wrong == f"of shape {tuple(right[..., :-1].shape)} instead of {tuple(right.shape)}"


def test_an_empty_result_is_right() -> None:
    spec = spec_of("conv", 3, 6, 7, line(30, k=5))
    given = operands(spec, 0)
    assert Expected(spec, *given).verdict(torch.empty(0, 3, 6, 7)).wrong == ""
