"""A kernel that does not load: built again where that can help, once, and never lost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tvm_orient as to
from tests.support.helpers import assert_close, operands
from tests.support.serving import CPU, spec_at
from tvm_orient import env
from tvm_orient.kernels import build, layer_build, manifest, part_cache
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import serving


def junk(*given: Any, **_: Any) -> dict[str, Any]:
    """A compiler that leaves a library of another machine."""
    (given[3] / manifest.KERNEL).write_bytes(b"\x7fELF of another machine")
    return {}


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    serving.forget()
    yield tmp_path / "kernels"
    serving.forget()


def counted(monkeypatch: pytest.MonkeyPatch, *makers: Any) -> list[str]:
    """What was compiled, by one maker after the other; the last one stays."""
    made: list[str] = []

    def compiled(spec: ConvSpec, *rest: Any, **options: Any) -> Any:
        made.append(spec.key)
        return makers[min(len(made), len(makers)) - 1](spec, *rest, **options)

    monkeypatch.setattr(build, "compiled", compiled)
    return made


def test_a_kernel_of_another_machine_is_built_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_at(19)
    made = counted(monkeypatch, junk, layer_build.compiled)
    build.build(spec, CPU)
    given = operands(spec, 2)
    assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert made == [spec.key] * 2
    assert sum("built again" in record.message for record in caplog.records if record.levelname == "WARNING") == 1
    serving.forget()
    to.tap_conv2d(*given, spec.taps)
    assert len(made) == 2, "the new one is in the cache"
    assert [path.name for path in own_cache.iterdir() if path.is_dir() and path.name != part_cache.FOLDER] == [serving.kernel(spec, CPU).path.parent.name]


def test_one_that_does_not_load_built_again_either_is_an_error_with_a_remedy(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(20)
    made = counted(monkeypatch, junk)
    for _ in range(3):
        with pytest.raises(to.EnvironmentProblem, match=r"must be a library that this machine can load, and .*kernel.so is not .*set TVM_ORIENT_CACHE_DIR"):
            serving.kernel(spec, CPU)
    assert len(made) == 2, "once a process, not at every call"


def test_one_whose_rebuilding_fails_is_not_lost(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(21)

    def refuse(*_: Any, **__: Any) -> Any:
        raise to.BuildFailed("no compiler today")

    counted(monkeypatch, junk, refuse)
    path = build.build(spec, CPU)
    with pytest.raises(to.BuildFailed, match="today"):
        serving.kernel(spec, CPU)
    assert path.read_bytes() == b"\x7fELF of another machine"
    assert json.loads((path.parent / manifest.HOW).read_text())["size"] == path.stat().st_size


def test_on_a_file_system_that_runs_no_programs_nothing_is_built_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(22)
    made = counted(monkeypatch, junk)
    monkeypatch.setattr(env, "runs_no_programs", lambda _: True)
    with pytest.raises(to.EnvironmentProblem, match=r"its file system is mounted noexec\): set TVM_ORIENT_CACHE_DIR"):
        serving.kernel(spec, CPU)
    assert len(made) == 1


@pytest.mark.usefixtures("second")
def test_an_own_kernel_that_does_not_load_leaves_the_generic_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_at(23)
    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)
    made = counted(monkeypatch, junk)
    for _ in range(5):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
        assert to.compiling().wait(60)
    assert len(made) == 2
    assert sum("stays on the generic kernel" in record.message for record in caplog.records) == 1
