"""Caches that are only read: kernels that others bring, used where none but root and this user can have written them."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.entries import KEY, flip, maker
from tests.support.helpers import assert_close, line, operands, spec_of
from tvm_orient import env, notices
from tvm_orient.kernels import build, shared_cache
from tvm_orient.kernels.cache import KernelCache
from tvm_orient.kernels.manifest import HOW, KERNEL
from tvm_orient.problem.device import cpu_device
from tvm_orient.runtime import serving

CPU = cpu_device()
SPEC = spec_of("conv", 3, 6, 7, line(0, 45, k=5))
OTHER = 54321  # a user that is neither root nor the one who runs the tests
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared cache with one entry, its kernel."""
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir(mode=0o755)
    return KernelCache(tmp_path / "shared").publish(KEY, maker(b"brought"))


@pytest.fixture
def told() -> Iterator[None]:
    notices.log_once.cache_clear()
    yield
    notices.log_once.cache_clear()


def test_what_is_made_for_many_can_be_read_by_them(brought: Path, tmp_path: Path) -> None:
    assert stat.S_IMODE(brought.parent.stat().st_mode) == 0o755
    assert {stat.S_IMODE((brought.parent / name).stat().st_mode) for name in (KERNEL, HOW)} == {0o644}
    own = KernelCache(tmp_path / "own").publish(KEY, maker())
    assert stat.S_IMODE(own.parent.stat().st_mode) == 0o700
    assert {stat.S_IMODE((own.parent / name).stat().st_mode) for name in (KERNEL, HOW)} == {0o600}


def test_a_shared_kernel_is_found_and_the_folder_stays_as_it_is(brought: Path) -> None:
    before = sorted(path.name for path in brought.parents[1].iterdir())
    assert shared_cache.find(KEY) == brought.resolve()
    assert sorted(path.name for path in brought.parents[1].iterdir()) == before
    assert [how.name for how in shared_cache.entries()[str(brought.parents[1])]] == [KEY.name]


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("what", ["entry", "kernel", "how", "cache", "above"])
@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_what_others_can_write_is_not_used(brought: Path, what: str, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    above = brought.parents[2]
    {"entry": brought.parent, "kernel": brought, "how": brought.with_name(HOW), "cache": brought.parents[1], "above": above}[what].chmod(mode)
    try:
        assert [shared_cache.find(KEY) for _ in range(2)] == [None] * 2
    finally:
        above.chmod(0o700)
    (said,) = [record.message for record in caplog.records]
    assert "others can write to" in said
    assert "chmod go-w" in said


@root
@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("what", ["entry", "kernel", "how", "cache", "above"])
def test_what_another_user_owns_is_not_used(brought: Path, what: str, caplog: pytest.LogCaptureFixture) -> None:
    above = brought.parents[2]
    os.chown({"entry": brought.parent, "kernel": brought, "how": brought.with_name(HOW), "cache": brought.parents[1], "above": above}[what], OTHER, -1)
    assert shared_cache.find(KEY) is None
    assert f"belongs to user {OTHER}" in caplog.text
    os.chown(above, 0, -1)


@pytest.mark.usefixtures("told")
def test_links_are_followed_to_where_they_lead_and_no_further(brought: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link to a safe folder is fine; a kernel that is one is not, and a folder behind one is looked at like any other."""
    (tmp_path / "link").symlink_to(brought.parents[1])
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", str(tmp_path / "link"))
    assert shared_cache.find(KEY) == brought.resolve()
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / KEY.name).mkdir()
    shutil.copytree(brought.parent, tmp_path / "open" / KEY.name, dirs_exist_ok=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "open")
    assert shared_cache.find(KEY) is None
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", str(brought.parents[1]))
    brought.rename(tmp_path / "kernel elsewhere")
    brought.symlink_to(tmp_path / "kernel elsewhere")
    assert shared_cache.find(KEY) is None


@pytest.mark.usefixtures("told")
def test_a_broken_entry_is_a_miss(brought: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip(brought.parent)
    assert shared_cache.find(KEY) is None
    assert "does not match the checksum" in caplog.text


def test_folders_that_are_not_there_are_passed_over(brought: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [tmp_path / "nowhere", brought.parents[1]]
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", os.pathsep.join(["", *map(str, folders)]))
    assert env.shared_cache_dirs() == folders
    assert shared_cache.find(KEY) == brought.resolve()
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", "")
    assert shared_cache.find(KEY) is None
    monkeypatch.delenv("TVM_ORIENT_SHARED_CACHE")
    assert env.shared_cache_dirs() == [Path(sys.prefix) / "share" / "tvm_orient" / "kernels"]


def copied(entry: Path, cache_folder: Path, code: bytes | None = None) -> Path:
    """A shared cache with a copy of an entry, with other code where it is given."""
    cache_folder.mkdir(mode=0o755)
    place = cache_folder / entry.name
    shutil.copytree(entry, place)
    if code is not None:
        facts = json.loads((place / HOW).read_text()) | {"size": len(code), "sha256": hashlib.sha256(code).hexdigest()}
        (place / KERNEL).write_bytes(code)
        (place / HOW).write_text(json.dumps(facts))
    return place


@pytest.mark.parametrize("loads", [True, False])
def test_a_kernel_that_was_brought_runs_and_one_that_does_not_load_is_built(loads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = build.build(SPEC, CPU)  # in the session's cache
    brought = copied(own.parent, tmp_path / "shared", None if loads else b"\x7fELF of another machine")
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", str(tmp_path / "shared"))
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "own"))
    made = []

    def compiled(*given: Any, **_: Any) -> dict[str, Any]:
        made.append(given[0])
        shutil.copy(own, given[3] / KERNEL)
        return {}

    monkeypatch.setattr(build, "compiled", compiled)
    given = operands(SPEC, 2)
    for _ in range(2):
        serving.forget()
        kernel = serving.kernel(SPEC, CPU)
        assert kernel.path.parents[1] == (brought.parent if loads else tmp_path / "own")
        assert_close(kernel(*given), SPEC, given)
    assert made == ([] if loads else [SPEC]), "the second time it is in the user's cache"
    assert (tmp_path / "own").exists() != loads, "nothing is written where nothing is missing"
    serving.forget()


_CALL = """
import os, sys
import torch, tvm_orient as to
from tvm_orient.runtime import serving
def call():
    return tuple(to.oriented_conv2d(torch.ones(1, 3, 6, 7), torch.ones(3, 5), [0.0, 0.7853981633974483]).shape)
call()  # imports what the other user may be unable to read
serving.forget()
for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TVM_ORIENT_CACHE_DIR", "TVM_ORIENT_LOG_DIR"):
    os.environ.pop(name, None)
os.environ |= {"TVM_ORIENT_SHARED_CACHE": sys.argv[1], "TVM_ORIENT_BUILD": "0"}
os.setgroups([]), os.setgid(54321), os.setuid(54321)
try:
    print(call(), next(iter(serving._kernels.values())).path)
except to.EnvironmentProblem as problem:
    print(problem)
"""


@root
def test_another_user_without_a_home_runs_what_an_image_brings() -> None:
    """As in a container with a user that has no entry, no home, and nothing to write to."""
    own = build.build(SPEC, CPU)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        placed = copied(own.parent, Path(folder) / "kernels")
        for path, mode in ((placed, 0o755), (placed / KERNEL, 0o644), (placed / HOW, 0o644)):
            path.chmod(mode)
        done = subprocess.run([sys.executable, "-c", _CALL, placed.parent], capture_output=True, text=True, check=True)
        assert done.stdout == f"(1, 3, 6, 7) {placed / KERNEL}\n"
        (placed / KERNEL).chmod(0o666)
        done = subprocess.run([sys.executable, "-c", _CALL, placed.parent], capture_output=True, text=True, check=True)
        assert "others can write to" in done.stderr
        assert done.stdout.startswith(f"a folder is needed to write to, and user {OTHER} has no home: set TVM_ORIENT_CACHE_DIR")
