"""What the benchmarks of compiling measure, and the tables that are made of it."""

from __future__ import annotations

import pytest

from benchmarks.report import compile_tables
from benchmarks.speed import cold_network, cold_start, compile_time, stopwatch
from tests.support.serving import CPU
from tvm_orient.bench import grids


def test_stages_inside_others_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    watch = stopwatch.Stopwatch()
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: now[0])
    with watch.stage("whole"):
        now[0] += 1
        with watch.stage("inner"):
            now[0] += 2
            with watch.stage("whole"):
                now[0] += 4
        now[0] += 8
        watch.timed("inner", lambda: now.append(now.pop() + 16))()
    assert watch.seconds == {"whole": 13.0, "inner": 18.0}


@pytest.mark.parametrize("how", ["apart", "merged"])
def test_the_stages_of_a_problem_add_up_to_its_time(how: str) -> None:
    seconds, instructions = compile_time.compiled(grids.spec("conv_dw", (8, 7, 7), 3, (0.0, 45.0)), CPU, how)
    total = seconds[compile_time.TOTAL]
    assert sum(seconds.values()) - total == pytest.approx(total, rel=0.2)  # counting instructions comes after
    assert {stopwatch.CHOOSE, stopwatch.TE, stopwatch.OUR_TIR, stopwatch.GENERATE["cpu"], stopwatch.LINK} <= seconds.keys()
    assert sum(stage.startswith(stopwatch.PASS) for stage in seconds) > compile_time.NAMED
    assert instructions > 100


def row(angles: str, how: str, stage: str, seconds: float) -> dict[str, str]:
    problem = {"op": "conv", "height": "14", "kernel_size": "7", "angles": angles, "how": how}
    return {**problem, "stage": stage, "seconds": str(seconds), "instructions": "10" if stage == "total" else ""}


def test_the_tables_of_compiling() -> None:
    rows = [row("22.5", "apart", "total", 1), row("67.5", "apart", "total", 2), row("22.5", "apart", "LLVM", 0.5)]
    rows += [row("0 45", how, stage, seconds) for how, stage, seconds in (("apart", "total", 4), ("merged", "total", 6))]
    rows += [row("0 45", "apart", "pass tirx.Far", 1), row("0 45", "merged", "pass tirx.Far", 4), row("0 45", "merged", "rest", 0.001)]
    lines = list(compile_tables.stage_times(rows))[2:]
    assert lines == ["| total | 1.500 | 4.000 | 100 % | 6.000 | 1.50 |", "| `tirx.Far` |  | 1.000 | 25 % | 4.000 | 4.00 |"]
    assert list(compile_tables.problem_times(rows))[2:] == ["| `conv`, K=7, 14x14 | 1.50 | 4.00 | 6.00 | 1.50 | 10 | 10 |"]
    cold = [{"network": "a", "what": "first step", "seconds": "1.234"}, {"network": "b", "what": "other", "seconds": "20"}]
    assert list(compile_tables.cold_table(cold))[2:] == ["| first step | 1.23 |  |", "| other |  | 20 |"]


def test_every_problem_of_a_network_is_known() -> None:
    for network in cold_network.NETWORKS:
        case = cold_network.Case.of(network)
        assert len(cold_network.specs(case)) == 3 * len(cold_network.layers(case.net))
        assert {spec.dtype for spec in cold_network.specs(case)} == {case.dtype}


def test_a_network_whose_angles_are_turned_needs_no_other_parts() -> None:
    first, turned = (cold_network.Case.of("convnext-t", turned) for turned in (False, True))
    assert cold_network.specs(first) != cold_network.specs(turned)
    assert cold_network.needed(first, CPU) == cold_network.needed(turned, CPU)


def test_goals_have_a_kind_and_are_said_to_be_missed() -> None:
    found = {"one layer, 384x56x56": 9.0, "all kernels loaded, which another process made": 1.0, cold_start.LONGEST: 3.0, cold_start.GENERIC: 1.0}
    cells = list(cold_start.table("cpu", found).columns[2].cells)
    assert cells == ["8  MISSED", "2", "", "", "2 times  MISSED"]
    assert cold_start.goal("cuda", "all kernels") == 120.0
    assert cold_start.goal("cuda", "first step") is None
