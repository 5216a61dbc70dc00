"""Compiled parts on disk: whole ones, damaged ones, whose folder it is, processes that are killed, and room."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.entries import KEY, maker
from tests.support.parts import COMPILED, DEVICE, PART, file, part
from tests.support.sources import ROOT
from tvm_orient import env, notices
from tvm_orient.compiler.parts import CompiledPart
from tvm_orient.errors import EnvironmentProblem
from tvm_orient.kernels import part_cache, trust
from tvm_orient.kernels.cache import KernelCache
from tvm_orient.kernels.manifest import HOW
from tvm_orient.kernels.part_cache import FOLDER, PartCache, parts_of, sweep
from tvm_orient.problem.device import arch_device

DAY = 86400.0
OTHER = 54321  # a user that is neither root nor the one who runs the tests
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No shared caches, and a log that has said nothing."""
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", "")
    notices.log_once.cache_clear()
    yield
    notices.log_once.cache_clear()


@pytest.fixture
def cache(tmp_path: Path) -> PartCache:
    """A cache that has one part."""
    cache = PartCache(tmp_path / "kernels")
    cache.keep(PART, DEVICE, file(tmp_path))
    return cache


def kept(cache: PartCache) -> Path:
    """The only file of a cache."""
    assert cache.directory is not None
    (path,) = cache.directory.iterdir()
    return path


# ---- keeping and taking -------------------------------------------------------------------------


def test_a_part_is_taken_after_it_was_kept(cache: PartCache, tmp_path: Path) -> None:
    taken = cache.take(PART, DEVICE, tmp_path)
    assert taken is not None
    assert taken.parent == tmp_path, "a copy, which nobody else removes"
    assert CompiledPart.of_payload(taken.read_bytes()) == COMPILED
    assert [one.path for one in parts_of(tmp_path / "kernels")] == [kept(cache)]


@pytest.mark.parametrize(
    "other",
    [
        (dataclasses.replace(PART, channels=3), DEVICE),
        (dataclasses.replace(PART, offset=1), DEVICE),
        (dataclasses.replace(PART, spec=dataclasses.replace(PART.spec, dtype="float16")), DEVICE),
        (dataclasses.replace(PART, choice=dataclasses.replace(PART.choice, version=3)), DEVICE),
        (PART, arch_device("sm_100a")),
    ],
)
def test_another_part_is_not_found(cache: PartCache, other: Any, tmp_path: Path) -> None:
    assert cache.take(*other, tmp_path) is None


def test_the_code_that_generated_it_is_part_of_its_name(cache: PartCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.kernels.source_hash.source_hash", lambda: "0" * 64)
    assert cache.take(PART, DEVICE, tmp_path) is None


def cut(path: Path) -> None:
    os.truncate(path, 100)


def flipped(path: Path, at: int = 50) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


BREAKS: dict[str, Callable[[Path], Any]] = {
    "cut short": cut,
    "a bit of the code": lambda path: flipped(path, -20),
    "a bit of the launches": lambda path: flipped(path, path.read_bytes().index(b'"launches": [[1') + 14),
    "empty": lambda path: path.write_bytes(b""),
    "another file": lambda path: path.write_text("{}\n"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_damaged_part_is_a_miss_told_once_and_made_again(cache: PartCache, broken: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = kept(cache)
    BREAKS[broken](path)
    assert [cache.take(PART, DEVICE, tmp_path) for _ in range(3)] == [None] * 3
    (said,) = caplog.messages
    assert f"compiled part {path} is not used and will be compiled again" in said
    if broken == "a folder":
        path.rmdir()
    cache.keep(PART, DEVICE, file(tmp_path))
    assert cache.take(PART, DEVICE, tmp_path)


def test_a_use_is_noted(cache: PartCache, tmp_path: Path) -> None:
    os.utime(kept(cache), (0, time.time() - 5 * DAY))
    assert cache.take(PART, DEVICE, tmp_path)
    assert time.time() - parts_of(tmp_path / "kernels")[0].used < 60


def test_one_whose_use_cannot_be_noted_is_used(cache: PartCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    assert cache.take(PART, DEVICE, tmp_path)


# ---- whose folder -------------------------------------------------------------------------------


def test_the_folders_are_private_and_a_kernel_cache_takes_them(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        cache = PartCache(tmp_path / "a" / "kernels")
        cache.keep(PART, DEVICE, file(tmp_path))
    finally:
        os.umask(old)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (kept(cache).parents[1], kept(cache).parent, kept(cache))]
    assert modes == [0o700, 0o700, 0o600]
    assert KernelCache(tmp_path / "a" / "kernels").entries() == []


def test_who_may_read_a_cache_may_read_its_parts(tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o755)
    cache = PartCache(tmp_path / "kernels")
    cache.keep(PART, DEVICE, file(tmp_path))
    assert [stat.S_IMODE(path.stat().st_mode) for path in (kept(cache).parent, kept(cache))] == [0o755, 0o644]


@pytest.mark.parametrize("what", ["file", "folder", "cache"])
@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_what_others_can_write_is_not_used_and_nothing_fails(cache: PartCache, what: str, mode: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = {"file": kept(cache), "folder": kept(cache).parent, "cache": kept(cache).parents[1]}[what]
    path.chmod(mode)
    assert [cache.take(PART, DEVICE, tmp_path) for _ in range(2)] == [None] * 2
    assert [f"others can write to {path}" in message for message in caplog.messages] == [True]
    before = kept(cache).stat().st_ino
    cache.keep(PART, DEVICE, file(tmp_path))
    assert (kept(cache).stat().st_ino == before) == (what != "file"), "a folder that others can write to is given nothing"


@root
@pytest.mark.parametrize("what", ["file", "folder", "cache"])
def test_what_another_user_owns_is_not_used_and_nothing_fails(cache: PartCache, what: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = {"file": kept(cache), "folder": kept(cache).parent, "cache": kept(cache).parents[1]}[what]
    os.chown(path, OTHER, -1)
    assert cache.take(PART, DEVICE, tmp_path) is None
    assert f"{path} belongs to user {OTHER}" in caplog.text
    before = kept(cache).stat().st_ino
    cache.keep(PART, DEVICE, file(tmp_path))
    assert (kept(cache).stat().st_ino == before) == (what != "file")


@pytest.mark.parametrize("blocked", ["the folder", "the cache"])
def test_a_folder_that_cannot_be_made(blocked: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "kernels"
    if blocked == "the folder":
        directory.mkdir()
    (directory / FOLDER if blocked == "the folder" else directory).touch()
    cache = PartCache(directory)
    for _ in range(2):
        cache.keep(PART, DEVICE, file(tmp_path))
        assert cache.take(PART, DEVICE, tmp_path) is None
    assert [f"compiled parts are not kept in {directory / FOLDER}" in message for message in caplog.messages] == [True]


@pytest.mark.parametrize("step", ["mkstemp", "fsync", "replace"])
def test_a_disk_that_cannot_be_written_leaves_nothing(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = PartCache(tmp_path / "kernels")
    monkeypatch.setattr(tempfile if step == "mkstemp" else os, step, full)
    cache.keep(PART, DEVICE, file(tmp_path))
    assert list((tmp_path / "kernels" / FOLDER).iterdir()) == []
    assert "No space left on device" in caplog.text


def test_without_a_cache_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none() -> Path:
        raise EnvironmentProblem("no home")

    monkeypatch.setattr(env, "cache_dir", none)
    cache = PartCache()
    cache.keep(PART, DEVICE, file(tmp_path))
    assert cache.take(PART, DEVICE, tmp_path) is None
    assert caplog.messages == []


# ---- caches that are only read ------------------------------------------------------------------


@pytest.fixture
def brought(cache: PartCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The part of a shared cache."""
    (tmp_path / "kernels").rename(tmp_path / "shared")
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", os.pathsep.join([str(tmp_path / "nowhere"), str(tmp_path / "shared")]))
    return next((tmp_path / "shared" / FOLDER).iterdir())


def test_a_shared_part_is_taken_and_stays_as_it_is(brought: Path, cache: PartCache, tmp_path: Path) -> None:
    os.utime(brought, (0, 1000.0))
    assert cache.take(PART, DEVICE, tmp_path)
    assert brought.stat().st_mtime == 1000.0
    assert not (tmp_path / "kernels").exists()


@pytest.mark.parametrize("what", [0, 1, 2])
def test_a_shared_part_that_others_can_write_is_not_used(brought: Path, what: int, cache: PartCache, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = (brought, *brought.parents)[what]
    path.chmod(0o777)
    assert trust.danger(brought.parent, (brought.name,)) is not None
    assert cache.take(PART, DEVICE, tmp_path) is None
    assert f"others can write to {path}" in caplog.text
    cache.keep(PART, DEVICE, file(tmp_path))
    assert cache.take(PART, DEVICE, tmp_path), "the user's own serves"


def test_a_damaged_shared_part_is_a_miss(brought: Path, cache: PartCache, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cut(brought)
    assert cache.take(PART, DEVICE, tmp_path) is None
    assert str(brought) in caplog.text


# ---- several processes --------------------------------------------------------------------------


def keeper(directory: Path) -> subprocess.Popen[str]:
    """A process that keeps parts for ever, and has kept one."""
    process = subprocess.Popen([sys.executable, "-m", "tests.support.parts", str(directory)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "kept\n"
    return process


def test_processes_that_are_killed_leave_no_half_part(tmp_path: Path) -> None:
    """At any moment, two at once on the same parts; what they were writing is swept once it is old, and not before."""
    directory, left = tmp_path / "kernels", []
    for turn in range(4):
        processes = [keeper(directory) for _ in range(2)]
        for number, process in enumerate(processes):
            time.sleep(0.003 * turn + 0.0007 * number)
            process.kill()
        for process in processes:
            process.communicate(timeout=60)
        for path in (directory / FOLDER).iterdir():
            if path.name.startswith("."):
                assert part_cache._TEMPORARY.fullmatch(path.name)
                left.append(path)
            else:
                CompiledPart.of_payload(path.read_bytes())
    whole = parts_of(directory)
    assert 1 <= len(whole) <= 4
    unfinished = sorted({path for path in left if path.exists()})
    sweep(directory)
    assert all(path.exists() for path in unfinished)
    for path in unfinished:
        os.utime(path, (0, time.time() - 2 * 3600))
    sweep(directory)
    assert [one.path for one in parts_of(directory)] == [one.path for one in whole]
    assert len(list((directory / FOLDER).iterdir())) == len(whole)


def test_a_part_is_whole_while_others_keep_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = tmp_path / "kernels"
    process = keeper(directory)
    try:
        with caplog.at_level(logging.WARNING):
            found = [PartCache(directory).take(part(0), DEVICE, tmp_path) for _ in range(50)]
    finally:
        process.kill()
        process.communicate(timeout=60)
    assert all(found)
    assert caplog.messages == []


# ---- room ---------------------------------------------------------------------------------------


def filled(directory: Path, *ages: float) -> list[Path]:
    """The files of as many parts that were last used so many days ago."""
    cache, found = PartCache(directory), []
    for number, age in enumerate(ages):
        cache.keep(part(number), DEVICE, file(directory.parent))
        (path,) = {one.path for one in parts_of(directory)} - set(found)
        os.utime(path, (0, time.time() - age * DAY))
        found.append(path)
    return found


def test_parts_count_in_the_size_of_a_cache_and_go_as_entries_do(store: KernelCache) -> None:
    entry = store.publish(KEY, maker(b"x" * 1000)).parent
    os.utime(entry / HOW, (0, time.time() - 3 * DAY))
    old, new, older = filled(store.directory, 2, 0.5, 4)
    each, held = old.stat().st_size, sum(path.stat().st_size for path in entry.iterdir())
    assert store.shrink(held + 3 * each) == 0
    assert store.shrink(held + 3 * each - 1) == 1
    assert not older.exists()
    assert store.shrink(2 * each) == 1
    assert not entry.exists(), "it was used before the others"
    assert store.shrink(0) == 1
    assert [one.path for one in parts_of(store.directory)] == [new], "it was used in the last day"


def test_publishing_keeps_to_the_limit_with_parts(store: KernelCache) -> None:
    filled(store.directory, 2, 3)
    KernelCache(store.directory, limit=1.0).publish(KEY, maker())
    assert parts_of(store.directory) == []


def test_clear_removes_parts(store: KernelCache) -> None:
    store.publish(KEY, maker())
    old, new, *_ = filled(store.directory, 40, 2, 1)
    assert store.clear(time.time() - 30 * DAY) == (0, 1)
    assert [old.exists(), new.exists()] == [False, True]
    assert store.clear() == (1, 2)
    assert parts_of(store.directory) == []


@pytest.mark.parametrize("how", ["clear", "shrink", "publish"])
def test_what_was_left_goes_and_what_is_nobodys_stays(store: KernelCache, how: str) -> None:
    folder = store.directory / FOLDER
    filled(store.directory, 0)
    names = {".0123456789abcdef0123-x1_y2": 2.0, ".0123456789abcdef0123-fresh": 0.1, "notes.txt": 900.0, ".hidden": 900.0}
    for name, hours in names.items():
        (folder / name).touch()
        os.utime(folder / name, (0, time.time() - hours * 3600))
    {"clear": store.clear, "shrink": lambda: store.shrink(float("inf")), "publish": lambda: store.publish(KEY, maker())}[how]()
    assert {path.name for path in folder.iterdir()} - {one.path.name for one in parts_of(store.directory)} == set(names) - {".0123456789abcdef0123-x1_y2"}


def test_a_link_in_place_of_a_part_is_left_alone(store: KernelCache, tmp_path: Path) -> None:
    (path,) = filled(store.directory, 3)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert parts_of(store.directory) == []
    assert store.clear() == (0, 0)
    assert path.is_symlink()
    assert (tmp_path / "elsewhere").is_file()
