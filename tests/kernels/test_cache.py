"""The kernel cache: whole entries, broken ones, failed and concurrent builds, and whose folder it is."""

import dataclasses
import errno
import hashlib
import json
import logging
import math
import multiprocessing
import os
import stat
import time
from pathlib import Path

import pytest

from tests.support.entries import KEY, SPEC, flip, maker, names
from tvm_orient.errors import BuildFailed, EnvironmentProblem, InvalidArgument
from tvm_orient.kernels import cache, manifest
from tvm_orient.kernels.cache import KernelCache
from tvm_orient.kernels.manifest import HOW, KERNEL

# ---- entries ---------------------------------------------------------------------------------------


def test_an_entry_is_found_after_it_is_published(store):
    assert store.find(KEY) is None
    path = store.publish(KEY, maker(b"code"))
    assert path == store.directory / KEY.name / KERNEL
    assert path.read_bytes() == b"code"
    assert store.find(KEY) == KernelCache(store.directory).find(KEY) == path
    assert store.find(dataclasses.replace(KEY, arch="sm_100a")) is None
    assert names(store.directory) == [KEY.name]


def test_how_tells_people_what_it_is(store):
    path = store.publish(KEY, maker(b"code", {"registers": 40, "seconds": 0.8}))
    text = (path.parent / HOW).read_text()
    how = json.loads(text)
    assert '\n  "key": {' in text
    assert how["key"] == json.loads(json.dumps(dataclasses.asdict(KEY)))
    assert how["key"]["spec"] == SPEC
    assert how["facts"] == {"registers": 40, "seconds": 0.8}
    assert how["sha256"] == hashlib.sha256(b"code").hexdigest()
    assert (how["size"], how["format"], how["name"]) == (4, manifest.FORMAT, KEY.name)
    assert time.strptime(how["made"], "%Y-%m-%dT%H:%M:%S+00:00")
    assert [one.plain for one in store.entries()] == [how]


def test_published_once(store):
    store.publish(KEY, maker(b"first"))
    path = store.publish(KEY, lambda folder: pytest.fail("built again"))
    assert path.read_bytes() == b"first"


BREAKS = {
    "a flipped bit": flip,
    "cut short": lambda entry: os.truncate(entry / KERNEL, 3),
    "no kernel": lambda entry: (entry / KERNEL).unlink(),
    "no how.json": lambda entry: (entry / HOW).unlink(),
    "empty how.json": lambda entry: (entry / HOW).write_text(""),
    "how.json is a list": lambda entry: (entry / HOW).write_text("[]"),
    "how.json is binary": lambda entry: (entry / HOW).write_bytes(b"\xff\xfe"),
    "no checksum": lambda entry: (entry / HOW).write_text("{}"),
}


@pytest.mark.parametrize("broken", BREAKS)
def test_a_broken_entry_is_a_miss_told_once_and_built_again(store, broken, caplog):
    entry = store.publish(KEY, maker(b"first build")).parent
    BREAKS[broken](entry)
    with caplog.at_level(logging.WARNING):
        assert [store.find(KEY) for _ in range(3)] == [None] * 3
    assert [str(entry) in message for message in caplog.messages] == [True]
    path = store.publish(KEY, maker(b"second"))
    assert path == store.find(KEY)
    assert path.read_bytes() == b"second"
    assert names(store.directory) == [KEY.name]
    assert sorted(os.listdir(path.parent)) == [HOW, KERNEL]


def test_a_cut_kernel_is_told_by_its_size(store, caplog):
    entry = store.publish(KEY, maker(b"four")).parent
    BREAKS["cut short"](entry)
    with caplog.at_level(logging.WARNING):
        assert store.find(KEY) is None
    assert "has 3 bytes, how.json says 4" in caplog.text


def test_a_file_in_place_of_an_entry_is_replaced(store):
    (store.directory / KEY.name).write_text("not a folder")
    assert store.find(KEY) is None
    assert store.publish(KEY, maker(b"code")).read_bytes() == b"code"
    assert names(store.directory) == [KEY.name]


def test_make_that_raises_leaves_nothing_behind(store):
    def make(folder):
        (folder / KERNEL).write_bytes(b"half")
        raise BuildFailed("ptxas said no")

    with pytest.raises(BuildFailed, match="ptxas said no"):
        store.publish(KEY, make)
    assert names(store.directory) == []
    assert store.publish(KEY, maker(b"code")).read_bytes() == b"code"  # and the lock is free


def test_make_that_is_interrupted_leaves_nothing_behind(store):
    def make(folder):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.publish(KEY, make)
    assert names(store.directory) == []


def test_make_that_writes_no_kernel_is_a_failed_build(store):
    with pytest.raises(BuildFailed, match=r"kernel\.so.*\['kernel\.cu'\]"):
        store.publish(KEY, lambda folder: {"bytes": (folder / "kernel.cu").write_text("source")})
    assert names(store.directory) == []


def test_facts_that_are_no_json_leave_nothing_behind(store):
    with pytest.raises(TypeError):
        store.publish(KEY, maker(facts={"path": Path("x")}))
    assert names(store.directory) == []


def test_what_a_killed_build_left_is_swept(store):
    (store.directory / f".{KEY.name}-dead").mkdir()
    (store.directory / f".{KEY.name}-dead" / KERNEL).write_bytes(b"half")
    other = store.directory / f".{dataclasses.replace(KEY, arch='sm_100a').name}-alive"
    other.mkdir()
    store.publish(KEY, maker())
    assert names(store.directory) == sorted([KEY.name, other.name])  # another key's build may be running


# ---- disk ------------------------------------------------------------------------------------------


def test_a_full_disk_names_the_folder_and_the_variable(store, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache.os, "fsync", full)
    with pytest.raises(EnvironmentProblem) as caught:
        store.publish(KEY, maker())
    assert str(store.directory) in str(caught.value)
    assert "TVM_ORIENT_CACHE_DIR" in str(caught.value)
    assert names(store.directory) == []


def test_a_disk_that_fills_while_building_is_the_same_error(store):
    def make(folder):
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / KERNEL))

    with pytest.raises(EnvironmentProblem, match="TVM_ORIENT_CACHE_DIR"):
        store.publish(KEY, make)
    assert names(store.directory) == []


def test_another_error_of_the_build_is_not_blamed_on_the_disk(store):
    def make(folder):
        raise FileNotFoundError(errno.ENOENT, "No such file", "nvcc")

    with pytest.raises(FileNotFoundError, match="nvcc"):
        store.publish(KEY, make)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match=r"file/kernels.*TVM_ORIENT_CACHE_DIR"):
        KernelCache(tmp_path / "file" / "kernels")


# ---- whose folder ----------------------------------------------------------------------------------


def test_the_folder_is_private(tmp_path):
    old = os.umask(0)
    try:
        KernelCache(tmp_path / "a" / "kernels")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a" / "kernels").stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702, 0o720])
def test_a_folder_that_others_can_write_is_refused(tmp_path, mode):
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(mode)
    with pytest.raises(EnvironmentProblem) as caught:
        KernelCache(tmp_path / "kernels")
    assert f"mode {oct(mode)} of {tmp_path / 'kernels'}" in str(caught.value)
    assert "chmod 700" in str(caught.value)
    (tmp_path / "kernels").chmod(0o755)
    assert KernelCache(tmp_path / "kernels").entries() == []


def test_a_folder_of_another_user_is_refused(tmp_path, monkeypatch):
    (tmp_path / "kernels").mkdir(mode=0o700)
    me = os.geteuid()
    monkeypatch.setattr(cache.os, "geteuid", lambda: me + 1)
    with pytest.raises(EnvironmentProblem, match=f"user {me + 1}, .* got owner {me} of .*TVM_ORIENT_CACHE_DIR"):
        KernelCache(tmp_path / "kernels")


def test_the_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "mine"))
    assert KernelCache().directory == tmp_path / "mine"


# ---- listing and clearing --------------------------------------------------------------------------


def test_clear_removes_entries_and_nothing_else(store, tmp_path):
    other = dataclasses.replace(KEY, arch="sm_100a")
    for key in (KEY, other):
        store.publish(key, maker())
    BREAKS["how.json is binary"](store.directory / other.name)
    assert [how.name for how in store.entries()] == [KEY.name]
    (store.directory / "notes.txt").write_text("mine")
    (store.directory / "conv-mine").mkdir()
    (store.directory / ("conv-" + "A" * 20)).mkdir()
    (tmp_path / "elsewhere").mkdir()
    (store.directory / ("conv-" + "0" * 20)).symlink_to(tmp_path / "elsewhere")
    assert store.clear() == (2, 0)
    assert names(store.directory) == sorted(["notes.txt", "conv-mine", "conv-" + "A" * 20, "conv-" + "0" * 20])
    assert (tmp_path / "elsewhere").is_dir()
    assert store.entries() == []
    assert store.find(KEY) is None
    store.publish(KEY, maker())
    assert store.clear() == (1, 0)


# ---- room ------------------------------------------------------------------------------------------

DAY = 86400.0


def filled(store, *ages):
    """Entries of 1000 bytes and a how.json, last used so many days ago; their names in that order."""
    made = [store.publish(dataclasses.replace(KEY, arch=f"sm_{index}"), maker(b"x" * 1000)).parent for index in range(len(ages))]
    for entry, age in zip(made, ages, strict=True):
        os.utime(entry / HOW, (0, time.time() - age * DAY))
    return [entry.name for entry in made]


def test_the_least_recently_used_make_room_and_none_of_the_last_day(store):
    old, older, _, new = filled(store, 2, 3, 4, 0.5)
    each = cache._bytes(store.directory / new)
    assert store.shrink(math.inf) == store.shrink(4 * each) == 0
    assert store.shrink(4 * each - 1) == 1
    assert names(store.directory) == sorted([old, older, new])
    assert store.shrink(0) == 2
    assert names(store.directory) == [new], "it was used in the last day"


def test_a_use_is_noted_and_keeps_an_entry(store):
    (name,) = filled(store, 5)
    assert store.find(dataclasses.replace(KEY, arch="sm_0"))
    assert time.time() - (store.directory / name / HOW).stat().st_mtime < 60
    assert store.shrink(0) == 0


def test_publishing_keeps_to_the_limit(store, tmp_path):
    filled(store, 2, 3)
    small = KernelCache(store.directory, limit=1.0)
    path = small.publish(KEY, maker())
    assert names(store.directory) == [KEY.name]
    assert path.is_file()


def test_what_another_process_holds_stays(store):
    one, other = filled(store, 2, 3)
    with store._locked(other):
        assert KernelCache(store.directory).shrink(0) == 1
    assert names(store.directory) == [other]
    assert one != other


def test_a_cache_whose_use_cannot_be_noted_is_read(store, monkeypatch):
    filled(store, 5)
    monkeypatch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    assert store.find(dataclasses.replace(KEY, arch="sm_0"))


@pytest.mark.parametrize(("text", "bytes_"), [(None, 1e10), ("2.5", 2.5e9), ("0", math.inf)])
def test_the_limit_of_the_variable(monkeypatch, tmp_path, text, bytes_):
    if text is None:
        monkeypatch.delenv("TVM_ORIENT_CACHE_LIMIT", raising=False)
    else:
        monkeypatch.setenv("TVM_ORIENT_CACHE_LIMIT", text)
    assert KernelCache(tmp_path / "kernels").limit == bytes_


@pytest.mark.parametrize("text", ["", "-1", "ten", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch, tmp_path, text):
    monkeypatch.setenv("TVM_ORIENT_CACHE_LIMIT", text)
    with pytest.raises(InvalidArgument, match=r"TVM_ORIENT_CACHE_LIMIT must be a number of gigabytes >= 0, got .*10 is the default, 0 sets no limit"):
        KernelCache(tmp_path / "kernels")


# ---- processes -------------------------------------------------------------------------------------


def _build_slowly(directory, marks, gate):
    def make(folder):
        Path(marks, str(os.getpid())).touch()
        time.sleep(0.5)
        (folder / KERNEL).write_bytes(b"from one of them")
        return {}

    store = KernelCache(Path(directory))
    gate.wait()
    Path(marks, f"{os.getpid()}.done").write_bytes(store.publish(KEY, make).read_bytes())


def test_two_processes_that_race_build_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    marks = tmp_path / "marks"
    marks.mkdir()
    gate = context.Barrier(2)
    racers = [context.Process(target=_build_slowly, args=(str(tmp_path / "kernels"), str(marks), gate)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
        assert racer.exitcode == 0
    assert len([m for m in marks.iterdir() if m.suffix != ".done"]) == 1
    assert [m.read_bytes() for m in marks.glob("*.done")] == [b"from one of them"] * 2
    assert names(tmp_path / "kernels") == [KEY.name]


def _fill(directory, first, gate):
    store = KernelCache(Path(directory), limit=1.0)
    gate.wait()
    for index in range(first, first + 10):
        path = store.publish(dataclasses.replace(KEY, arch=f"sm_{index}"), maker(b"x" * 1000))
        os.utime(path.parent / HOW, (0, 0))


def test_two_processes_that_make_room_at_once(tmp_path):
    """Each removes what the other made; neither fails, and nothing is left half removed."""
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(2)
    both = [context.Process(target=_fill, args=(str(tmp_path / "kernels"), first, gate)) for first in (0, 5)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    store = KernelCache(tmp_path / "kernels")
    store.shrink(0)
    assert names(store.directory) == []
