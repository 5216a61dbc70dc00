"""Bench: rows are checked and complete, a wrong method gets no time, tables and files keep what they are given."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import platform
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tvm_orient import ConvSpec, Taps, angles_between
from tvm_orient.bench import methods, turns
from tvm_orient.bench.bench import bench
from tvm_orient.bench.cell import Cell
from tvm_orient.bench.peers import registry
from tvm_orient.bench.peers.base import Peer
from tvm_orient.bench.rows import DEFAULT, TUNED, Row, losses, read_csv, write_csv
from tvm_orient.bench.tables import markdown, table
from tvm_orient.errors import EnvironmentProblem, InvalidArgument
from tvm_orient.evaluate import reference, timing
from tvm_orient.evaluate.machine import keep_freed_memory, last_level_cache, others_busy
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.records import store
from tvm_orient.records.record import Record
from tvm_orient.runtime import serving
from tvm_orient.schedules import choices

TINY = ConvSpec("conv", 4, 6, 8, Taps.oriented(angles_between(2), 5))
OTHER = dataclasses.replace(TINY, channels=5)
CPU = cpu_device()


def never(spec: ConvSpec) -> str | None:
    return "made for a test"


def right(spec: ConvSpec, device: Any) -> Any:
    return lambda *operands: reference.run(spec, *operands).float()


def slightly_wrong(spec: ConvSpec, device: Any) -> Any:
    return lambda *operands: reference.run(spec, *operands).float() * 1.001


def broken(spec: ConvSpec, device: Any) -> Any:
    def call(*operands: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("first line\n\nno compiler here\n")

    return call


def flaky(spec: ConvSpec, device: Any) -> Any:
    calls = itertools.count()
    return lambda *operands: reference.run(spec, *operands).float() + (next(calls) > 3)


def idle(spec: ConvSpec, device: Any) -> Any:
    return lambda x, w: torch.empty(x.shape)


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made = [("right", right), ("slightly_wrong", slightly_wrong), ("broken", broken), ("flaky", flaky), ("idle", idle)]
    found = [Peer(name, name, lambda spec: None, make) for name, make in made] + [Peer("elsewhere", "elsewhere", never, right)]
    monkeypatch.setattr(registry, "PEERS", tuple(found))
    monkeypatch.setattr(turns, "_SETTLE_S", 0.0)
    yield
    serving.forget()


def by_method(rows: list[Row], method: str) -> list[Row]:
    return [row for row in rows if row.method == method]


@pytest.mark.parametrize("op", ["conv", "conv_dx", "conv_dw"])
def test_rows_are_checked_and_complete(op: str, pool: None) -> None:
    spec, said = dataclasses.replace(TINY, op=op), []
    rows = bench([spec], CPU, batch=2, peers=["right"], repeats=5, report=said.append)
    ours = by_method(rows, DEFAULT)
    assert [row.cache for row in ours] == ["cold", "warm"]
    for row in [*ours, *by_method(rows, "right")]:
        assert row.checked
        assert row.error is not None
        assert row.error < 1e-5
        assert row.median_ms is not None
        assert row.p20_ms is not None
        assert row.p80_ms is not None
        assert 0 < row.p20_ms <= row.median_ms <= row.p80_ms
        assert row.gbps == pytest.approx(spec.bytes_moved(2) / row.median_ms / 1e6)
    for state in ("cold", "warm"):
        timed = {row.method: row.median_ms for row in rows if row.cache == state}
        floor = "dot" if op == "conv_dw" else "copy"
        assert set(timed) == {DEFAULT, floor, "right"}
        peer = next(row for row in by_method(rows, "right") if row.cache == state)
        assert peer.vs_ours == pytest.approx(timed["right"] / timed[DEFAULT])
        assert peer.floor_ratio == pytest.approx(timed[floor] / timed["right"])
    tuned = by_method(rows, TUNED)
    assert len(tuned) == 1
    assert tuned[0].median_ms is None
    assert not tuned[0].checked
    assert "no record" in tuned[0].note
    row = ours[0]
    assert (row.spec, row.op, row.channels, row.height, row.width, row.kernel_size) == (spec.key, op, 4, 6, 8, 5)
    assert (row.angles, row.stride, row.dtype, row.batch, row.device) == ("0 90", "1", "float32", 2, CPU.slug)
    assert row.threads == torch.get_num_threads()
    assert all(getattr(row, name) for name in ("hardware", "torch", "tvm", "version", "date"))
    assert any("checking" in text for text in said)


def test_what_is_wrong_gets_no_time(pool: None) -> None:
    rows = bench([TINY], CPU, batch=2, repeats=5)
    for method, note in (
        ("slightly_wrong", "wrong: off by"),
        ("broken", "failed: RuntimeError: no compiler here"),
        ("flaky", "wrong: off by 1"),
        ("idle", "wrong: off by"),  # by nan, unless the allocator gives memory of another thread
        ("elsewhere", "does not apply: made for a test"),
    ):
        found = by_method(rows, method)
        assert len(found) == 1, method
        assert note in found[0].note
        assert not found[0].checked
        assert all(getattr(found[0], name) is None for name in ("median_ms", "p20_ms", "p80_ms", "gbps", "floor_ratio", "vs_ours"))
    assert len(by_method(rows, "right")) == 2


def test_a_wrong_kernel_of_ours_gets_no_time(pool: None, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = methods.public_op
    monkeypatch.setattr("tvm_orient.bench.cell.public_op", lambda spec: lambda *operands: honest(spec)(*operands) * 1.01)
    rows = bench([TINY], CPU, batch=1, peers=["right"], repeats=5)
    assert [row.note[:5] for row in by_method(rows, DEFAULT)] == ["wrong"]
    assert all(row.vs_ours is None for row in rows)
    assert losses(rows) == []


def test_tuned_and_default_are_both_timed(pool: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path))
    spec = dataclasses.replace(TINY, taps=Taps.oriented([0.0], 5))
    choice = choices.default_choices(spec, CPU)[0]
    facts = {"gpu": CPU.name, "cc": CPU.arch, "units": CPU.units, "date": "2026-01-01"}
    times: dict[str, Any] = {"median_us": 1.0, "spread_us": 0.1, "default_us": 2.0, "floor_us": 0.5, "error": 0.0}
    decisions = dict(choice.decisions)
    record = Record(spec=spec.key, template=choice.template, template_version=choice.version, decisions=decisions, device=CPU.slug, provenance=facts, **times)
    store.append(record, tmp_path)
    rows = bench([spec], CPU, batch=1, peers=False, repeats=5, states=["warm"])
    assert [(row.method, row.cache, row.checked) for row in rows] == [(TUNED, "warm", True), (DEFAULT, "warm", True), ("copy", "warm", False)]
    assert {row.vs_ours for row in rows if row.ours} >= {1.0}


def test_cold_sets_exceed_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(cache: int) -> int:
        monkeypatch.setattr(timing, "last_level_cache", lambda device: cache)
        return Cell(TINY, CPU, 1, print, "").sets.count

    held = TINY.bytes_moved(1)
    assert count(100 * held) == 201
    assert count(1) == 2
    assert count(2**40) == timing.MAX_SETS
    monkeypatch.setitem(timing.MAX_BYTES, "cpu", 10 * held)
    assert count(100 * held) == 10


def test_calls_rotate_over_sets(pool: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def watching(spec: ConvSpec, device: Any) -> Any:
        def call(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            seen.append(x.data_ptr())
            return reference.run(spec, x, w).float()

        return call

    monkeypatch.setattr(registry, "PEERS", (Peer("watching", "", lambda spec: None, watching),))
    monkeypatch.setattr(timing, "last_level_cache", lambda device: 2**12)
    bench([TINY], CPU, batch=1, repeats=5, states=["warm"])
    assert len(set(seen)) == 1
    seen.clear()
    bench([TINY], CPU, batch=1, repeats=5, states=["cold"])
    assert len(set(seen)) > 2


@pytest.mark.parametrize(
    ("given", "rule"),
    [({"batch": 0}, "batch"), ({"repeats": True}, "repeats"), ({"peers": ["nobody"]}, "peers must be among"), ({"states": ["hot"]}, "states must be among")],
)
def test_misfits_are_refused(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(InvalidArgument, match=rule):
        bench([TINY], CPU, **{"batch": 1, **given})


def test_a_device_that_is_elsewhere() -> None:
    with pytest.raises(EnvironmentProblem, match="sm-90a is not in this machine"):
        bench([TINY], arch_device("sm_90a"), batch=1)


def test_a_spec_that_only_the_generic_kernel_serves() -> None:
    spec = dataclasses.replace(TINY, taps=Taps.oriented([0.0], 301))
    rows = [row for row in bench([spec], CPU, batch=1, peers=False, repeats=5, states=["warm"]) if row.ours]
    assert rows[0].note.startswith("not tuned")
    assert rows[1].checked
    assert rows[1].median_ms


def test_untuned_kernels_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_LOOKUP", "strict")
    rows = [row for row in bench([TINY], CPU, batch=1, peers=False, repeats=5, states=["warm"]) if row.ours]
    assert rows[0].note.startswith("failed:")


# ---- rows as data -------------------------------------------------------------------------------


def row(method: str, ms: float | None, cache: str = "cold", **more: Any) -> Row:
    fields: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(Row)), "text")
    fields |= dict.fromkeys(("channels", "height", "width", "kernel_size", "batch", "threads"), 3)
    fields |= {
        "spec": TINY.key,
        "method": method,
        "cache": cache,
        "median_ms": ms,
        "p20_ms": ms,
        "p80_ms": ms,
        "gbps": ms,
        "floor_ratio": 0.5,
        "vs_ours": ms,
        "note": "",
    }
    return Row(**{**fields, "error": 1e-7, "checked": True, "busy": None, "angles": "0 45 90", **more})


ROWS = [
    row(TUNED, 1.0),
    row(DEFAULT, 1 / 3),
    row("copy", 0.25, error=None, checked=False, note="floor: moves bytes"),
    row("native", 0.8, note='a "quoted", strange\nnote with [brackets]'),
    row("raster", None, cache="", checked=False, note="wrong: off by 3"),
    row(TUNED, 2.0, spec=OTHER.key),
    row("native", 3.0, spec=OTHER.key),
]


def test_csv_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "speeds.csv"
    write_csv(ROWS, path)
    assert read_csv(path) == ROWS
    assert os.listdir(tmp_path) == ["speeds.csv"]
    write_csv([], path)
    assert read_csv(path) == []


def test_csv_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "speeds.csv"
    write_csv(ROWS, path)
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_csv(ROWS[:1], path)
    assert read_csv(path) == ROWS
    assert os.listdir(tmp_path) == ["speeds.csv"]


def test_bad_csv_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "speeds.csv"
    with pytest.raises(InvalidArgument, match="cannot read"):
        read_csv(path)
    with pytest.raises(InvalidArgument, match="folder of a table must exist"):
        write_csv(ROWS, tmp_path / "missing" / "speeds.csv")
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidArgument, match=r"line 2: its columns are not"):
        read_csv(path)
    write_csv(ROWS[:1], path)
    path.write_text(path.read_text().replace("True", "perhaps"))
    with pytest.raises(InvalidArgument, match="must be True or False"):
        read_csv(path)


def test_tables_show_every_method() -> None:
    console = Console(width=120, record=True, markup=False, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(table(ROWS))
    text = console.export_text()
    assert text.count("cold ms") == 2
    for word in (TUNED, DEFAULT, "native", "wrong: off by 3", "[brackets]", "of copy", "3 angles"):
        assert word in text
    lines = markdown(ROWS).splitlines()
    assert len(lines) == 4
    assert "| **0.800x** |" in lines[2]
    assert len({line.count("|") for line in lines}) == 1


def test_losses_are_the_cells_where_a_peer_wins() -> None:
    assert [(found.method, found.vs_ours) for found in losses(ROWS)] == [("native", 0.8)]


def test_machine_facts() -> None:
    assert last_level_cache(CPU) >= 2**18
    share = others_busy(0.05)
    assert share is None or 0 <= share <= 1
    assert math.isfinite(last_level_cache(CPU))


def test_channels_last_is_timed_in_its_own_format() -> None:
    spec = ConvSpec("conv", 4, 5, 6, Taps.oriented([0.5], 3), layout="nhwc")
    rows = bench([spec], cpu_device(), batch=2, peers=False, repeats=2, states=("warm",))
    ours = [row for row in rows if row.ours and row.median_ms]
    assert ours
    assert {row.spec for row in ours} == {spec.key}
    assert "channels_last" in ours[0].problem
    assert {kernel.spec.layout for kernel in serving._kernels.values() if kernel.spec.channels == 4 and kernel.spec.height == 5} == {"nhwc"}


def test_an_epilogue_is_refused() -> None:
    spec = ConvSpec("conv", 4, 5, 6, Taps.oriented([0.5], 3), bias=True)
    with pytest.raises(InvalidArgument, match=r"without an epilogue.*got conv\+bias-c4h5w6"):
        bench([spec], cpu_device(), batch=1)


def test_calls_that_a_method_gets() -> None:
    """Few where they are long, or where a peer is over three times as slow as we are."""
    timer = turns.Turns(CPU, turns.OperandSets(methods.sample(TINY, 1, torch.device("cpu")), 2), print)
    runs = [
        methods.Method("ours", ours=True),
        methods.Method("near"),
        methods.Method("far"),
        methods.Method("copy", floor=True),
        methods.Method("slow", ours=True),
    ]
    for run, seconds in zip(runs, (0.01, 0.02, 0.04, 0.05, 2.0), strict=True):
        run.seconds = seconds
    assert [timer.share(run, runs, 30) for run in runs] == [30, 30, 5, 29, 5]
    assert timer.share(runs[0], runs, 4) == 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_memory_that_is_kept_has_no_page_faults() -> None:
    keep_freed_memory()
    faults = []
    for _ in range(8):  # the first few find room that is a little too small
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(16 * 2**20).fill_(1)  # 64 MiB, beyond what glibc keeps of itself
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert faults[-1] < 1000, faults  # of 16384 pages
