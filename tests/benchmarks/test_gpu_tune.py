"""The tuning script's budget: what is skipped, what a cut run reports, and the order of problems."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import tune as tune_gpu
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.tuning.result import Interrupted, Outcome, TooBusy

JOBS = [(ConvSpec("conv", 4, 6, 7, Taps.oriented([0.0, 0.7], size)), 1) for size in (3, 5, 7)]


def outcome(spec: ConvSpec) -> Outcome:
    return Outcome(spec.parts()[0][2], None, 10.0, 10.0, 8, 0, 0, 2.0, {"build": 1.0, "measure": 1.0, "verify": 0.0, "search": 0.0}, "")


def test_a_cut_run_reports_and_the_next_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ConvSpec] = []

    def tune(spec: ConvSpec, *_: Any, **how: Any) -> list[Outcome]:
        asked.append(spec)
        if len(asked) == 2:
            raise Interrupted([outcome(spec)])
        return [outcome(spec), outcome(spec)]

    monkeypatch.setattr(tune_gpu, "tune", tune)
    found, reason = tune_gpu.spend(JOBS, cpu_device(), 8, tmp_path, time.monotonic() + 60, None)  # type: ignore[arg-type]
    assert len(found) == 3
    assert reason == "interrupted in problem 2 of 3, of which the best so far is recorded"
    assert tune_gpu.report(found).row_count == 2  # by op and K
    found, reason = tune_gpu.spend(JOBS, cpu_device(), 8, tmp_path, time.monotonic() + 60, None)  # type: ignore[arg-type]
    assert reason == tune_gpu.DONE
    assert asked == [JOBS[0][0], JOBS[1][0], JOBS[1][0], JOBS[2][0]]  # the first was not asked for again
    tune_gpu.spend(JOBS[:1], cpu_device(), 16, tmp_path, time.monotonic() + 60, None)  # type: ignore[arg-type]
    assert asked[-1] == JOBS[0][0]  # more trials are another run
    assert tune_gpu.spend(JOBS, cpu_device(), 4, tmp_path, time.monotonic() - 1, None)[1] == "time is over with 3 problems left"  # type: ignore[arg-type]


def test_noise_is_no_result_and_a_busy_machine_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[ConvSpec] = []

    def tune(spec: ConvSpec, *_: Any, **how: Any) -> list[Outcome]:
        asked.append(spec)
        if spec == JOBS[1][0]:
            raise TooBusy("other work uses 50% of the cores", [outcome(spec)])
        return [dataclasses.replace(outcome(spec), doubt="the copy took 1 to 9 us" if len(asked) == 1 else "")]

    monkeypatch.setattr(tune_gpu, "tune", tune)
    for _ in range(3):
        found, reason = tune_gpu.spend(JOBS, cpu_device(), 8, tmp_path, time.monotonic() + 60, None)  # type: ignore[arg-type]
        assert reason == "other work uses 50% of the cores"
        assert found[-1].part == outcome(JOBS[1][0]).part
    assert [spec.kernel_size for spec in asked] == [3, 5, 3, 5, 5]


def test_the_most_valuable_come_first() -> None:
    jobs = tune_gpu.worth("cuda", False)
    specs = [spec for spec, _ in jobs]
    assert all(len(spec.parts()) == 8 for spec in specs)
    assert [spec.dtype for spec in specs[:36]] == ["float32"] * 18 + ["bfloat16"] * 18
    assert {spec.stride for spec in specs[36:48]} == {(2, 2)}
    assert {spec.dtype for spec in specs[-18:]} == {"float16"}
    assert {batch for _, batch in jobs} == {64}
