"""Compiling ahead of a benchmark: in other processes, into caches that this one then reads; what is late or broken is left to its cell."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from benchmarks.speed import compile_ahead as ahead
from benchmarks.speed import run
from tvm_orient.bench.peers import registry
from tvm_orient.kernels.build import build
from tvm_orient.kernels.build_key import build_key
from tvm_orient.kernels.cache import KernelCache
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules.choices import default_choices

CPU = cpu_device()
SPECS = [ConvSpec("conv", 3, 5, 6, Taps.oriented(angle, 3)) for angle in (0.0, 0.7)]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that nobody has built."""
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))


def in_cache(spec: ConvSpec) -> bool:
    return KernelCache().find(build_key(spec, CPU, default_choices(spec, CPU))) is not None


def test_kernels_are_in_the_cache_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_FEW", 0)
    assert not any(map(in_cache, SPECS))
    said, done = ahead.compile_ahead([(spec, ["raster"]) for spec in SPECS], CPU, 1, 2, float("inf"))
    assert done == {(spec.key, "") for spec in SPECS}
    assert said.startswith("compiled ahead: 2 of 2 in ")
    assert said.endswith(", 0 failed")
    assert all(map(in_cache, SPECS))
    assert build(SPECS[0], CPU, compiling=False).exists()


def test_a_deadline_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "_FEW", 0)
    begin = time.monotonic()
    said, done = ahead.compile_ahead([(SPECS[0], [])], CPU, 1, 2, begin + 0.01)
    assert done == set()
    assert said.startswith("compiled ahead: 0 of 1")
    assert time.monotonic() - begin < 30


def test_few_are_compiled_in_their_cells() -> None:
    assert ahead.compile_ahead([(SPECS[0], [])], CPU, 1, 16, time.monotonic() + 100) == ("compiling: in each cell", {(SPECS[0].key, "")})


def test_cells_whose_peers_are_not_compiled_are_late() -> None:
    done = {(SPECS[0].key, ""), (SPECS[0].key, "compiled_gather")}
    assert not ahead.late((SPECS[0], ["compiled_gather", "raster"]), done)
    assert ahead.late((SPECS[0], ["compiled_gather", "compiled_shift"]), done)
    assert ahead.late((SPECS[1], ["compiled_gather"]), done)
    assert not ahead.late((SPECS[1], []), done)


def test_jobs_are_ours_then_the_compiled_peers() -> None:
    jobs = ahead.jobs_of([(SPECS[0], ["raster", "compiled_gather"]), (SPECS[1], [])])
    assert jobs == [(SPECS[0].key, ""), (SPECS[1].key, ""), (SPECS[0].key, "compiled_gather")]


def test_peers_that_are_left_out() -> None:
    names = [peer.name for peer in registry.PEERS]
    assert run.rivals(SPECS[0], run.Among.ALL, ["raster"]) == [name for name in names if name != "raster"]
    assert run.rivals(SPECS[0], run.Among.SOME, []) == names  # angle 0 alone
    assert run.rivals(SPECS[1], run.Among.SOME, []) == run.rivals(SPECS[0], run.Among.NONE, []) == []
    app = typer.Typer()
    app.command()(run.main)
    done = CliRunner().invoke(app, ["--without", "spoon"])
    assert done.exit_code == 2
    assert "without must be among compiled_gather" in " ".join(done.output.replace("│", "").split())


def test_a_failure_is_no_exception() -> None:
    assert not ahead.compile_one(("no key", "compiled_gather"), CPU, 1, None)
    assert ahead.compile_one((SPECS[0].key, "native_channels_last"), CPU, 1, None)
