"""Tuning: the search finds a planted optimum; winners are verified, recorded, resumed; interrupts keep what was found."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tvm_orient.errors import BuildFailed, InvalidArgument
from tvm_orient.evaluate import machine, reference, tolerance
from tvm_orient.kernels import resolve
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.records.record import Record
from tvm_orient.runtime import serving
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, default_choices
from tvm_orient.toolchain import openmp
from tvm_orient.toolchain.tvm import target
from tvm_orient.tuning import builder, result, search, tune, winner
from tvm_orient.tuning.builder import BuilderPool
from tvm_orient.tuning.contest import contest
from tvm_orient.tuning.runner import Runner, Timing

SPEC = ConvSpec("conv", 8, 14, 14, Taps.oriented([0.0, 0.4], 7))


def _search(measure, trials: int, seed: int = 0) -> None:
    knobs = {"a": (1, 2, 4, 8, 16, 32), "b": (1, 2, 4, 8, 16), "c": (0, 1, 2, 3, 4, 5)}

    def features(d: dict[str, int]) -> list[float]:
        return [math.log2(d["a"]), math.log2(d["b"]), float(d["c"])]

    space = search.Space(knobs, lambda d: d["a"] * d["b"] <= 128, features)
    search.search(space, measure, target=target(cpu_device()), trials=trials, round_size=8, seed=seed)


@pytest.fixture(autouse=True)
def _machine_under_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machinery is under test here, on a machine that other tests use: whatever is measured is believed (tests/test_quiet.py has the rest)."""
    monkeypatch.setattr(machine, "others_busy", lambda: 0.0)
    monkeypatch.setattr(winner, "contest", lambda *arguments: dataclasses.replace(contest(*arguments), doubt=""))  # type: ignore[type-var]
    monkeypatch.setattr(winner, "noise", lambda *_: "")


def test_search_beats_chance_and_respects_validity() -> None:
    seen: list[tuple[float, dict[str, int]]] = []

    def measure(d: dict[str, int]) -> float | None:
        seconds = 1e-3 * (1 + abs(math.log2(d["a"] / 8)) + abs(math.log2(d["b"] / 2)) + 0.1 * d["c"])
        seen.append((seconds, d))
        return None if d["c"] == 5 else seconds

    _search(measure, 40)
    assert len(seen) == 40
    assert len({str(d) for _, d in seen}) == 40, "a candidate was proposed twice"
    assert all(d["a"] * d["b"] <= 128 for _, d in seen)
    # 1.3 ms or less is the best 4 % of the space: 16 random draws miss it half the time, a search of 40 must not
    assert min(s for s, _ in seen) <= 1.3e-3


def test_search_stops_when_told() -> None:
    calls = []

    def measure(d: dict[str, int]) -> float | None:
        calls.append(d)
        if len(calls) == 5:
            raise search.Stopped
        return 1e-3

    with pytest.raises(search.Stopped):
        _search(measure, 40)
    assert len(calls) == 5


def test_distinct_parts_take_one_of_each_mirrored_pair() -> None:
    spec = ConvSpec("conv", 64, 14, 14, Taps.oriented([math.pi * i / 8 for i in range(8)], 7))
    assert [part.taps.key for part in tune.distinct_parts(spec)] == ["k7a0", "k7a22.5", "k7a45", "k7a67.5", "k7a90"]


@pytest.mark.long
@pytest.mark.parametrize("op", ["conv", "conv_dw"])
def test_tune_records_resumes_and_is_used(op: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path))
    monkeypatch.setattr(winner, "MARGIN", -10.0)  # any verified candidate may win: the machinery is under test, not the speed
    spec = ConvSpec(op, 8, 14, 14, Taps.oriented([0.4], 7))
    progress: list[result.Progress] = []
    (first,) = tune.tune(spec, cpu_device(), trials=6, batch=2, report=progress.append)
    assert first.trials == 6
    assert first.resumed == 0
    assert first.failed == 0
    assert progress[-1].trial == 6
    assert progress[-1].best_us is not None
    assert progress[-1].default_us is not None
    assert set(first.stages) == {"build", "measure", "verify", "search"}
    (second,) = tune.tune(spec, cpu_device(), trials=6, batch=2)
    assert second.resumed == 6, "the second run measured again what the journal holds"
    if first.record is None:
        pytest.skip(f"the default was the best of 6: {first.note}")
    assert first.record.error < 1e-5
    assert first.record.floor_us > 0
    here = cpu_device()
    assert [first.record.provenance[name] for name in ("cc", "units", "model")] == [here.arch, here.units, here.model]
    (answer,) = resolve.explain(spec, cpu_device())
    assert answer.choice.step == "user"
    assert dict(answer.choice.decisions) == (second.record or first.record).decisions, "of two runs the later one is asked"
    serving.forget()
    x, w, dy = torch.randn(2, 8, 14, 14), torch.randn(8, 7), torch.randn(2, 8, 14, 14)
    operands = (x, w) if op == "conv" else (x, dy)
    out = serving.kernel(spec, cpu_device())(*operands)
    assert float((out.double() - reference.run(spec, *operands)).abs().max()) <= tolerance.tolerance(spec, 2, *operands)


@pytest.mark.parametrize("layout", [pytest.param("nchw", marks=pytest.mark.long), "nhwc"])
def test_a_candidate_brings_the_workspace_of_its_layout(layout: str, tmp_path: Path) -> None:
    """Channels lie last in one and second in the other, and the bands of partial sums beside them."""
    spec, device = ConvSpec("conv_dw", 8, 40, 12, Taps.oriented([0.4], 7), layout=layout), cpu_device()
    (choice,) = default_choices(spec, device)
    workspace = builder.build(spec, device, choice, tmp_path / "kernel.so")
    assert workspace is not None
    with Runner(device) as worker:
        relative, wrong = worker.verify(spec, tmp_path / "kernel.so", workspace)
    assert wrong == ""
    assert relative is not None


def test_a_wrong_winner_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(winner, "MARGIN", -10.0)
    monkeypatch.setattr(Runner, "verify", lambda *_: (None, "off by 1, where rounding allows 0.1"))
    (outcome,) = tune.tune(ConvSpec("conv", 8, 14, 14, Taps.oriented(0.4, 7)), cpu_device(), trials=3, batch=1, directory=tmp_path)
    assert outcome.record is None
    assert outcome.note.startswith("wrong") or "default" in outcome.note
    assert not list(tmp_path.rglob("conv.jsonl"))


@pytest.mark.long
def test_interrupt_keeps_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, count = Runner.time, []

    def time_then_interrupt(self: Runner, *arguments: object) -> Timing:
        count.append(1)
        if len(count) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *arguments)  # type: ignore[arg-type]

    spec = SPEC.parts()[1][2]  # of one angle
    monkeypatch.setattr(Runner, "time", time_then_interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs in the background with Ctrl-C ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            tune.tune(spec, cpu_device(), trials=12, batch=1, directory=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(Runner, "time", real)
    outcomes = tune.tune(spec, cpu_device(), trials=6, batch=1, directory=tmp_path)
    assert outcomes[0].resumed >= 3


def ending_library(folder: Path) -> Path:
    """A library that ends the process which loads it."""
    source, library = folder / "ends.c", folder / "ends.so"
    source.write_text("#include <stdlib.h>\n__attribute__((constructor)) static void end(void) { abort(); }\n")
    subprocess.run([openmp.compiler(), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


@pytest.mark.long
def test_crash_and_silence_of_a_candidate_are_results(tmp_path: Path) -> None:
    with Runner(cpu_device(), timeout=60) as worker:
        missing = worker.time(SPEC.parts()[0][2], 1, tmp_path / "absent.so", None)
        assert missing.median is None
        assert missing.error
        assert worker._process is None, "what another candidate would meet is a fresh process"
        assert worker.copy_seconds(1 << 20) > 0
        crashed = worker.time(SPEC.parts()[0][2], 1, ending_library(tmp_path), None)
        assert crashed.median is None
        assert crashed.error == "the process died of SIGABRT"
        assert worker.verify(SPEC.parts()[0][2], ending_library(tmp_path), None) == (None, "the process died of SIGABRT")
        assert worker.copy_seconds(1 << 20) > 0, "the worker did not come back"
        worker._process.kill()  # type: ignore[union-attr]
        worker._process.wait()  # type: ignore[union-attr]
        assert worker.copy_seconds(1 << 20) > 0, "it ended while nobody asked it anything, which is no fault of the next request"


@pytest.mark.parametrize(("name", "value"), [("trials", 0), ("batch", -1), ("trials", 2.5)])
def test_bad_budget(name: str, value: float) -> None:
    with pytest.raises(InvalidArgument, match=str(value)):
        tune.tune(SPEC, cpu_device(), **{name: value})  # type: ignore[arg-type]


def test_stale_record_is_refused_with_a_reason() -> None:
    part = SPEC.parts()[0][2]
    default = Choice.of(*registry.default(part, cpu_device()))
    record = Record(
        spec=part.key, template=default.template, template_version=default.version + 1, decisions=dict(default.decisions), device=cpu_device().slug,
        median_us=1.0, spread_us=0.0, default_us=2.0, floor_us=0.5, error=0.0, provenance={},
    )  # fmt: skip
    assert "version" in (resolve.accepts(part, cpu_device(), record) or "")


def test_torch_threads_are_adopted_and_right(tmp_path: Path) -> None:
    script = (
        "import torch\nfrom tvm_orient.evaluate import reference\nfrom tvm_orient.runtime import serving\nfrom tvm_orient.toolchain import openmp\n"
        "from tvm_orient.problem.spec import ConvSpec\nfrom tvm_orient.problem.taps import Taps\n"
        "from tvm_orient.problem.device import cpu_device\n"
        "spec = ConvSpec('conv', 16, 14, 14, Taps.oriented([0.0, 0.4, 1.2], 7))\nk = serving.kernel(spec, cpu_device())\n"
        "assert openmp.adopt(k.path)\n"
        "x, w = torch.randn(3, 16, 14, 14), torch.randn(16, 7)\n"
        "for threads in (1, 2, 3):\n    torch.set_num_threads(threads)\n    y = k(x, w)\n"
        "    assert float((y.double() - reference.run(spec, x, w)).abs().max()) < 1e-4\nprint('fine')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=Path(__file__).resolve().parents[2])
    assert done.stdout.strip() == "fine", done.stderr


# ---- compiling several at once ------------------------------------------------------------------


def _candidates(count: int) -> list[Choice]:
    part = SPEC.parts()[0][2]
    template, default = registry.default(part, cpu_device())
    near = ({**default.decisions(), name: value} for name, values in template.knobs(part, cpu_device()).items() for value in values)
    return list(dict.fromkeys(Choice.of(template, template.config(d)) for d in near if template.invalid(part, cpu_device(), d) is None))[:count]


@pytest.mark.long
def test_builders_make_what_this_process_would() -> None:
    part, choices = SPEC.parts()[0][2], _candidates(3)
    bad = Choice("cpu_rows", 1, (("patch_h", 3),))
    with BuilderPool(cpu_device(), jobs=2) as shop:
        shop.prepare(part, [*choices, bad])
        paths = [shop.built(part, choice)[0] for choice in choices]
        assert len(set(paths)) == 3
        assert [shop.worker.verify(part, path, None)[1] for path in paths] == ["", "", ""]
        with pytest.raises(BuildFailed):
            shop.built(part, bad)
        shop._builders[0].close()
        shop._builders[0].command = [sys.executable, "-c", "import os, sys; sys.stdin.readline(); os.abort()"]
        shop.clear()
        assert not any(path.exists() for path in paths)
        shop.prepare(part, choices)
        with pytest.raises(BuildFailed, match="did not compile: the process died of SIGABRT"):
            shop.built(part, choices[0])
        assert shop.built(part, choices[1])[0].exists()
        folder = Path(shop._folder.name)
    assert not folder.exists()


@pytest.mark.long
def test_one_shop_for_several_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[int] = []
    prepare = BuilderPool.prepare
    monkeypatch.setattr(BuilderPool, "prepare", lambda self, part, choices: (rounds.append(len(choices)), prepare(self, part, choices))[1])
    with BuilderPool(cpu_device(), jobs=2) as shop:
        for op in ("conv", "conv_dw"):
            (outcome,) = tune.tune(
                ConvSpec(op, 8, 14, 14, Taps.oriented([0.4], 7)), cpu_device(), trials=4, batch=1, directory=tmp_path, shop=shop
            )  # fmt: skip
            assert (outcome.trials, outcome.failed) == (4, 0)
        worker = shop.worker._process
        assert worker is not None
        assert worker.poll() is None  # the same process measured both
    assert max(rounds) >= 3, "a round is compiled together"
    assert all(len(list(tmp_path.rglob(f"{op}.jsonl"))) == 1 for op in ("conv", "conv_dw"))
