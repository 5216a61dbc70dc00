"""how.json: one form for caches and exported folders; what is of another form is read or told, and never an error of a cache."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.entries import KEY, maker
from tests.support.helpers import assert_close, operands
from tvm_orient import notices
from tvm_orient.errors import EnvironmentProblem
from tvm_orient.kernels import build, bundle, manifest
from tvm_orient.kernels.cache import KernelCache
from tvm_orient.kernels.manifest import FORMAT, HOW, KERNEL, Manifest, Unreadable
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import kernel

SPEC = ConvSpec("conv_dw", 3, 7, 8, Taps.oriented([0.4], 5))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Changes what how.json of a folder says."""
    how = json.loads((folder / HOW).read_text())
    (folder / HOW).write_text(json.dumps(change(how)))


def as_exported_before(how: dict[str, Any]) -> dict[str, Any]:
    """What an exported folder said before it had a number for its form."""
    key = {name: how["key"][name] for name in ("arch", "model", "features")}
    return {**key, "toolchain": dict(how["key"]["toolchain"]), "made": how["made"], "choices": [], **how["facts"]}


def test_what_is_sealed_is_read(tmp_path: Path) -> None:
    (tmp_path / KERNEL).write_bytes(b"code")
    wrote = manifest.seal(tmp_path, "conv-0", {"spec": "s", "features": "avx fma", "model": "m"}, {"workspace": [2, 5]})
    assert manifest.read(tmp_path) == wrote
    assert json.loads((tmp_path / HOW).read_text()) == wrote.plain
    assert (wrote.format, wrote.size, wrote.workspace, wrote.features, wrote.model) == (FORMAT, 4, (2, 5), ("avx", "fma"), "m")
    assert manifest.flaw(tmp_path) is None
    bare = dataclasses.replace(wrote, key={}, facts={})
    assert (bare.workspace, bare.features, bare.model) == (None, (), "")


BROKEN = {
    "missing": None,
    "no JSON": "spoiled",
    "a list": "[]",
    "empty": "{}",
    "of another form": json.dumps({"format": FORMAT + 1, "name": "", "key": {}, "facts": {}, "sha256": "", "size": 0, "made": ""}),
    "of an older form": json.dumps({"format": FORMAT - 1}),
    "a key that is a number": json.dumps({"format": FORMAT, "name": "", "key": 3, "facts": {}, "sha256": "", "size": 0, "made": ""}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_read_says_why_and_what_to_do(what: str, tmp_path: Path) -> None:
    (tmp_path / KERNEL).write_bytes(b"code")
    if BROKEN[what] is not None:
        (tmp_path / HOW).write_text(str(BROKEN[what]))
    with pytest.raises(Unreadable, match=r"how.json must .* build the kernel again") as caught:
        manifest.read(tmp_path)
    assert isinstance(caught.value, EnvironmentProblem)
    assert manifest.flaw(tmp_path) == str(caught.value)


@pytest.mark.parametrize("number", [FORMAT - 1, FORMAT + 1])
def test_an_entry_of_another_form_is_a_miss_with_its_reason(number: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notices.log_once.cache_clear()
    store = KernelCache(tmp_path / "kernels")
    entry = store.publish(KEY, maker(b"code")).parent
    rewritten(entry, lambda how: how | {"format": number})
    with caplog.at_level(logging.WARNING):
        assert store.find(KEY) is None
        assert store.entries() == []
    assert f"must be of format {FORMAT}, got format {number}" in caplog.text
    assert store.publish(KEY, maker(b"new")).read_bytes() == b"new"
    assert store.clear() == (1, 0)


def test_a_folder_that_was_exported_before_runs_and_serves_no_cache(tmp_path: Path) -> None:
    device = cpu_device()
    folder = bundle.export(SPEC, device, tmp_path)
    new = manifest.read(folder)
    rewritten(folder, as_exported_before)
    old = manifest.read(folder)
    assert (old.workspace, old.features, old.model, old.facts["signature"]) == (new.workspace, new.features, new.model, new.facts["signature"])
    given = operands(SPEC, 2)
    assert_close(kernel.Kernel(SPEC, device, folder / KERNEL)(*given), SPEC, given)
    assert "has no checksum: export it again" in str(manifest.flaw(folder))


def test_an_exported_folder_is_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is brought as a shared cache, nothing is compiled."""
    folder = bundle.export(SPEC, cpu_device(), tmp_path / "brought")
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", str(tmp_path / "brought"))
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "own"))
    assert build.build(SPEC, cpu_device(), compiling=False) == folder / KERNEL


def test_a_sum_without_its_workspace_is_refused(tmp_path: Path) -> None:
    folder = bundle.export(SPEC, cpu_device(), tmp_path)
    rewritten(folder, lambda how: how | {"facts": {}})
    with pytest.raises(Unreadable, match=r"must tell its workspace, got none in .* build the kernel again"):
        kernel.Kernel(SPEC, cpu_device(), folder / KERNEL)
    (folder / HOW).unlink()
    with pytest.raises(Unreadable, match="No such file"):
        kernel.Kernel(SPEC, cpu_device(), folder / KERNEL)


def test_a_manifest_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Manifest(FORMAT, "", {}, {}, "", 0, "").size = 1  # type: ignore[misc]
