"""A tuner that does not believe noise: clocks and measurements are made up, nothing is timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tvm_orient.errors import InvalidArgument, TuningFailed
from tvm_orient.evaluate.machine import others_busy
from tvm_orient.kernels import resolve
from tvm_orient.problem.device import Device, arch_device, cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.records import store
from tvm_orient.records.plausible import doubtful, impossible
from tvm_orient.records.record import Record
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice
from tvm_orient.tuning import journal, quiet, tune
from tvm_orient.tuning.contest import contest, noise
from tvm_orient.tuning.quiet import Busy, Patience
from tvm_orient.tuning.result import Interrupted, Outcome, Progress, TooBusy
from tvm_orient.tuning.runner import Timing

SPEC = ConvSpec("conv", 64, 28, 28, Taps.oriented([0.0, 0.4], 7))
PART = SPEC.parts()[0][2]
BATCH = 8
MOVED = PART.bytes_moved(BATCH)
COPY = MOVED / 20e9  # seconds at 20 GB/s
STEADY = {"copy": [COPY], "default": [3 * COPY], "other": [2 * COPY]}


class Worker:
    """Answers from lists that repeat: of copies, of the default, of every other choice."""

    def __init__(self, times: dict[str, list[float]]) -> None:
        self.series = {name: itertools.cycle(values) for name, values in times.items()}

    def time(self, spec: ConvSpec, batch: int, kernel: Path, workspace: Any) -> Timing:
        return Timing(next(self.series[kernel.name]), 0.0)

    def copy_seconds(self, size: int) -> float:
        return next(self.series["copy"])

    def verify(self, *_: Any) -> tuple[float | None, str]:
        return 1e-7, ""


class Shop:
    """Builds nothing: a library's name says whether it is the default."""

    jobs = 1

    def __init__(self, times: dict[str, list[float]]) -> None:
        self.worker = Worker(times)

    def prepare(self, *_: Any) -> None:
        pass

    def clear(self) -> None:
        pass

    def built(self, part: ConvSpec, choice: Choice) -> tuple[Path, None]:
        return Path("default" if choice == Choice.of(*registry.default(part, cpu_device())) else "other"), None


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[float]]:
    """Makes up what others use of the machine, look by look (the last goes on); returns the seconds that were slept."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # the lock of the device

    def make(*shares: float | None) -> list[float]:
        clock, slept = [0.0], []
        looks: Iterator[float | None] = itertools.chain(shares[:-1], itertools.repeat(shares[-1]))
        monkeypatch.setattr("tvm_orient.evaluate.machine.others_busy", lambda: next(looks))
        monkeypatch.setattr(quiet.time, "monotonic", lambda: clock[0])

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            clock[0] += seconds

        monkeypatch.setattr(quiet.time, "sleep", sleep)
        return slept

    return make


def tuned(tmp_path: Path, times: dict[str, list[float]], spec: ConvSpec = PART, **how: Any) -> list[Outcome]:
    return tune.tune(spec, cpu_device(), trials=how.pop("trials", 3), batch=BATCH, directory=tmp_path, shop=Shop(times), **how)  # type: ignore[arg-type]


# ---- waiting ------------------------------------------------------------------------------------


def test_a_quiet_machine_is_not_waited_for(machine: Callable[..., list[float]]) -> None:
    for share in (0.0, 0.14, None):
        slept = machine(share)
        Patience(cpu_device(), 10).wait()
        assert slept == []


def test_other_work_is_waited_for(machine: Callable[..., list[float]], caplog: pytest.LogCaptureFixture) -> None:
    slept = machine(0.5, 0.4, 0.05)
    told: list[tuple[float, float]] = []
    patience = Patience(cpu_device(), 10)
    patience.wait(lambda *seen: told.append(seen))
    assert told == [(0.5, 10), (0.4, 8)]
    assert sum(slept) == 4
    assert patience.left == 6
    assert not caplog.records
    machine(0.5, 0.4, 0.05)
    Patience(cpu_device(), 10).wait()
    assert [record.getMessage() for record in caplog.records] == ["other work uses 50 % of the cores: waiting for it to end, 10 s at most"]


def test_the_wait_ends(machine: Callable[..., list[float]]) -> None:
    slept = machine(0.55)
    patience = Patience(cpu_device(), 5)
    with pytest.raises(Busy, match=r"other work uses 55% of the cores .* after 5 s of waiting.*--wait SECONDS"):
        patience.wait()
    assert sum(slept) == 5
    with pytest.raises(Busy):
        patience.wait()
    assert sum(slept) == 5, "the time is for all waits together"


def test_a_gpu_is_not_waited_for(machine: Callable[..., list[float]]) -> None:
    machine(1.0)
    Patience(arch_device("sm_90a"), 0).wait()


def test_the_share_is_of_the_cores_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Core 1 is busy, core 0 is not."""
    texts = iter([f"cpu {n} 0 0 {n} 0 0 0 0 0 0\ncpu0 0 0 0 {n} 0 0 0 0 0 0\ncpu1 {n} 0 0 0 0 0 0 0 0 0\nintr 1\n" for n in (10, 20, 10, 20, 10, 20)])
    monkeypatch.setattr(Path, "read_text", lambda _: next(texts))
    found = []
    for cores in ({0}, {1}, {0, 1}):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores)
        found.append(others_busy(0.0))
    assert found == [0.0, 1.0, 0.5]


# ---- the last comparison ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "doubt"),
    [
        (STEADY, ""),
        ({**STEADY, "default": [3 * COPY, 3 * COPY, 9 * COPY, 3 * COPY, 3 * COPY]}, ""),  # one round of five may be disturbed
        ({**STEADY, "copy": [MOVED / 0.2e9]}, "slower than any machine that has nothing else to do"),
        ({**STEADY, "copy": [MOVED / 1e14]}, "more than any memory gives"),
        ({**STEADY, "copy": [9 * COPY]}, "less than half its floor"),
        ({**STEADY, "copy": [COPY, 1.5 * COPY, 2 * COPY, 2.5 * COPY, 3 * COPY]}, "the copy took"),
        ({**STEADY, "default": [3 * COPY, 30 * COPY]}, "the default took"),
        ({**STEADY, "other": [2 * COPY, 40 * COPY, 2 * COPY]}, "the winner took"),
        ({**STEADY, "default": [2.7 * COPY, 3.3 * COPY], "other": [2.3 * COPY, 1.7 * COPY]}, "times as fast as the default in 5 turns"),
    ],
)
def test_what_contradicts_itself_is_doubted(times: dict[str, list[float]], doubt: str) -> None:
    result = contest(PART, BATCH, Worker(times), (Path("default"), None), (Path("other"), None))  # type: ignore[arg-type]
    assert result is not None
    assert (doubt in result.doubt) if doubt else result.doubt == ""


def test_who_wins() -> None:
    def gain(*others: float) -> bool:
        times = {**STEADY, "default": [COPY], "other": [COPY / value for value in others]}
        result = contest(PART, BATCH, Worker(times), (Path("default"), None), (Path("other"), None))  # type: ignore[arg-type]
        assert result is not None
        return result.won(0.02)

    assert gain(1.1, 1.1, 1.1, 1.1, 1.1)
    assert not gain(1.01, 1.01, 1.01, 1.01, 1.01), "less than the margin"
    assert gain(0.9, 1.1, 1.1, 1.1, 1.1)
    assert not gain(0.9, 0.9, 1.1, 1.1, 1.1), "slower in two turns of five"


def test_small_times_may_differ_by_a_tick() -> None:
    times = {"copy": [2e-6, 3e-6, 3.5e-6], "default": [1e-6, 2e-6], "other": [1e-6, 1.5e-6]}
    result = contest(PART, 1, Worker(times), (Path("default"), None), (Path("other"), None))  # type: ignore[arg-type]
    assert result is not None
    assert "took" not in result.doubt


def test_noise_of_the_search() -> None:
    assert noise("the default", 8e-3, 0.2e-3).startswith("the default took 8000 us in the search and 200 us in the last comparison")
    assert noise("the default", 0.2e-3, 0.25e-3) == ""
    assert noise("the default", None, 0.25e-3) == ""


# ---- whole runs ---------------------------------------------------------------------------------


def test_a_quiet_run_records(machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(0.0)
    (outcome,) = tuned(tmp_path, STEADY)
    assert outcome.doubt == ""
    assert outcome.record is not None
    assert outcome.record.default_us == pytest.approx(3e6 * COPY)
    assert outcome.written == store.log_path(tmp_path, cpu_device().slug, "conv")
    assert [row.line for row in store.read(outcome.written).records] == [outcome.record.line]
    assert resolve.accepts(PART, cpu_device(), outcome.record) is None


def test_where_the_default_wins_that_is_written(machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(0.0)
    (outcome,) = tuned(tmp_path, {**STEADY, "other": [4 * COPY]})
    assert (outcome.record, outcome.note) == (None, "the default is the best found")
    assert outcome.written is not None
    (row,) = store.read(outcome.written).records
    assert row.median_us == row.default_us


@pytest.mark.parametrize(
    "times",
    [
        {**STEADY, "copy": [MOVED / 0.2e9]},
        {**STEADY, "copy": [COPY, 1.5 * COPY, 2 * COPY, 2.5 * COPY, 3 * COPY]},
        {**STEADY, "default": [84 * COPY, *[3 * COPY] * 100]},  # 28 times as fast in the search, and nowhere else
        {**STEADY, "copy": [COPY, 4 * COPY], "other": [4 * COPY]},  # the default wins, beside a copy that differs
    ],
)
def test_noise_is_not_recorded(times: dict[str, list[float]], machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(0.0)
    (outcome,) = tuned(tmp_path, times)
    assert outcome.doubt
    assert outcome.note == f"not recorded: {outcome.doubt}"
    assert (outcome.record, outcome.written) == (None, None)
    assert not list(tmp_path.glob("*/*.jsonl"))


def test_a_comparison_is_made_again_before_it_is_given_up(machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(0.0)
    (outcome,) = tuned(tmp_path, {**STEADY, "copy": [COPY, 9 * COPY, COPY, 9 * COPY, COPY, *[COPY] * 100]})
    assert outcome.record is not None


def test_no_trial_on_a_busy_machine(machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(0.55)
    waits: list[Progress] = []
    with pytest.raises(TooBusy) as raised:
        tuned(tmp_path, STEADY, report=waits.append, wait=5)
    assert raised.value.outcomes == []
    assert [seen.waiting for seen in waits] == [(0.55, 5), (0.55, 3), (0.55, 1)]
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("looks", [1, 2])
def test_work_that_begins_during_a_run_ends_it(looks: int, machine: Callable[..., list[float]], tmp_path: Path) -> None:
    """After the first look, or after the one before the first round; what was measured stays in the journal, and no record is written."""
    machine(*[0.0] * looks, 0.55)
    with pytest.raises(TooBusy) as raised:
        tuned(tmp_path, STEADY, spec=SPEC, wait=0)
    (outcome,) = raised.value.outcomes  # the second angle does not begin
    assert outcome.doubt
    assert outcome.record is None
    assert outcome.trials == (1 if looks == 1 else 3)
    assert outcome.journal is not None
    assert len(outcome.journal.read_text().splitlines()) == outcome.trials
    assert not list(tmp_path.glob("*/*.jsonl"))


def test_ctrl_c_while_waiting_keeps_what_was_found(machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(*[0.0] * 3, 0.5)  # the first angle's looks: before it, before its round, before its last comparison

    def stop(seen: Progress) -> None:
        if seen.waiting:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as raised:
        tuned(tmp_path, STEADY, spec=SPEC, report=stop)
    (outcome,) = raised.value.outcomes
    assert outcome.record is not None


def test_restart_forgets_these_trials_and_no_others(machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(0.0)
    slow = {name: [30 * value for value in values] for name, values in STEADY.items()}
    other = SPEC.parts()[1][2]
    kept = tuned(tmp_path, slow, spec=other)[0].journal
    assert kept is not None
    before = kept.read_text()
    tuned(tmp_path, slow)
    (resumed,) = tuned(tmp_path, STEADY)
    assert resumed.resumed == 3
    assert "--restart" in resumed.doubt
    assert resumed.written is None
    (again,) = tuned(tmp_path, STEADY, restart=True)
    assert (again.resumed, again.doubt) == (0, "")
    assert again.record is not None
    assert kept.read_text() == before
    assert again.journal is not None
    assert len(again.journal.read_text().splitlines()) == 3


def test_a_busy_restart_forgets_nothing(machine: Callable[..., list[float]], tmp_path: Path) -> None:
    machine(0.0)
    tuned(tmp_path, STEADY)
    machine(0.9)
    with pytest.raises(TooBusy):
        tuned(tmp_path, STEADY, restart=True, wait=0)
    machine(0.0)
    assert tuned(tmp_path, STEADY)[0].resumed == 3


def test_a_journal_that_cannot_be_removed(tmp_path: Path) -> None:
    held = journal.Journal(tmp_path, cpu_device(), PART, BATCH)
    held.forget()  # there is none
    held.path.mkdir(parents=True)
    with pytest.raises(TuningFailed, match="remove it by hand"):
        held.forget()


@pytest.mark.parametrize("wait", [-1.0, float("nan")])
def test_bad_wait(wait: float) -> None:
    with pytest.raises(InvalidArgument, match="wait must be seconds >= 0"):
        tune.tune(SPEC, cpu_device(), wait=wait)


# ---- records that exist -------------------------------------------------------------------------


def record(device: Device, **fields: Any) -> Record:
    choice = Choice.of(*registry.default(PART, device))
    times = {"median_us": 120.0, "spread_us": 1.0, "default_us": 150.0, "floor_us": 1e6 * COPY, "provenance": {"batch": BATCH}}
    made = {"spec": PART.key, "template": choice.template, "template_version": choice.version, "decisions": dict(choice.decisions)}
    return Record(**{**made, "device": device.slug, "error": 0.0, **times, **fields})


def test_a_record_made_of_noise_never_answers() -> None:
    device = cpu_device()
    assert resolve.accepts(PART, device, record(device)) is None
    assert "its floor" in (resolve.accepts(PART, device, record(device, floor_us=7863.0, median_us=281.0, default_us=7980.0)) or "")
    assert "spread" in (resolve.accepts(PART, device, record(device, spread_us=90.0)) or "")


def test_what_does_not_say_its_batch_is_not_judged_by_its_floor() -> None:
    for batch in ({}, {"batch": True}, {"batch": 0}, {"batch": "8"}):
        assert doubtful(PART.key, 40.0, 1.0, 1e9, batch) is None
    assert doubtful("no key", 40.0, 1.0, 1e9, {"batch": 8}) is None
    assert doubtful(PART.key, 40.0, 1.0, 1e9, {"batch": 8}) is not None


def test_every_shipped_record_is_possible() -> None:
    rows = [row for path in (Path(store.__file__).parents[2] / "tuning_logs").rglob("*.jsonl") for row in store.read(path).records]
    assert [doubtful(row.spec, row.median_us, row.spread_us, row.floor_us, row.provenance) for row in rows] == [None] * len(rows)


@pytest.mark.parametrize(
    ("op", "taps", "stride", "needed"),
    [
        ("conv", Taps.oriented([0.0], 3), 1, 1.0),
        ("conv", Taps.oriented([0.0], 3), 4, (1 / 4 + 1 / 16) / (1 + 1 / 16)),  # three rows of four are not read
        ("conv", Taps.oriented([1.5707964], 9), 4, 1.0),
        ("conv", Taps.from_offsets([[[0, 99]]]), 1, 0.5),  # no tap is in the plane: zeros are written
        ("conv_dx", Taps.from_offsets([[[0, 99]]]), 1, 0.5),
        ("conv_dw", Taps.from_offsets([[[0, 99]]]), 1, 0.0),
        ("conv_dw", Taps.oriented([0.0], 3), 1, 1.0),
    ],
)
def test_a_kernel_may_pass_over_what_it_does_not_need(op: str, taps: Taps, stride: int, needed: float) -> None:
    spec = ConvSpec(op, 64, 64, 64, taps, stride=stride)
    floor = spec.bytes_moved(64) / 1e4  # 10 GB/s
    assert impossible(spec, 64, floor * needed * 0.5 + 1, floor) is None
    if needed:
        assert "less than half its floor" in (impossible(spec, 64, floor * needed * 0.49 - 10, floor) or "")


def test_small_problems_are_not_accused() -> None:
    tiny = ConvSpec("conv", 4, 6, 5, Taps.oriented([0.0], 3))
    assert impossible(tiny, 1, 1.0, 20.0) is None  # a call of torch's copy, and a bare kernel
