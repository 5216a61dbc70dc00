"""Files of records: bad lines, crashes, concurrent writers, and what replacing a file keeps."""

import math
import multiprocessing
import os
import random
import resource
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.records import KEY, put, record
from tvm_orient.errors import InvalidArgument, LogFileError
from tvm_orient.records.merge import merge
from tvm_orient.records.store import LogFile, append, log_path, read, write

# ---- reading ---------------------------------------------------------------------------------------

BAD_LINES = [
    "{",
    record().line[:-9],
    "null",
    "[]",
    '"text"',
    "{}",
    record().line.replace('"schema":1,', ""),
    record().line.replace('"schema":1,', '"schema":"1",'),
    record().line.replace('"schema":1,', '"schema":true,'),
    record().line.replace("18.25", "NaN"),
    record().line.replace("18.25", "1e999"),
    record().line.replace("132", "1e999"),
    record().line.replace('"median_us":18.25,', ""),
    record().line + record().line,
    record().line.replace(KEY, "conv-c96"),
    "[" * 100_000,
    '{"schema":' + "1" * 5000 + "}",
    "\0\0\0\0",
    "\ufeff" + record().line,
]


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_a_bad_line_is_counted_and_its_neighbours_are_read(tmp_path, line):
    log = read(put(tmp_path / "conv.jsonl", record(), line, record(median_us=19.0)))
    assert [r.median_us for r in log.records] == [18.25, 19.0]
    assert (log.bad, log.blank, log.foreign) == (1, 0, 0)


@given(st.binary(max_size=60))
def test_no_line_is_fatal(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "noise.jsonl"
    good = record().line.encode()
    path.write_bytes(good + b"\n" + noise.replace(b"\n", b" ") + b"\n" + good)
    log = read(path)
    assert log.records == (record(), record())
    assert log.bad + log.blank + log.foreign == 1


def test_blank_lines_and_other_schemas_are_counted_apart(tmp_path):
    newer = record().line.replace('"schema":1', '"schema":2')
    log = read(put(tmp_path / "conv.jsonl", "", record(), "  ", newer, '{"schema":7}', "{"))
    assert log.records == (record(),)
    assert (log.bad, log.blank, log.foreign) == (1, 2, 2)


def test_windows_line_ends_are_no_matter(tmp_path):
    path = tmp_path / "conv.jsonl"
    path.write_bytes(record().line.encode() + b"\r\n" + record().line.encode() + b"\r\n")
    assert (len(read(path).records), read(path).bad, read(path).blank) == (2, 0, 0)


def test_an_empty_file_is_an_empty_log(tmp_path):
    path = tmp_path / "conv.jsonl"
    path.touch()
    assert read(path) == LogFile(path)


@pytest.mark.parametrize("content", [b"\x7fELF\x02\x01\0\0\xff\xfe\n\0\n", "{}".encode("utf-16"), b"\xff\xfe\xfd"])
def test_a_binary_file_is_an_error(tmp_path, content):
    path = tmp_path / "conv.jsonl"
    path.write_bytes(content)
    with pytest.raises(LogFileError, match=r"UTF-8.*conv\.jsonl"):
        read(path)


def test_a_folder_or_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(LogFileError, match=f"{tmp_path}: Is a directory: give"):
        read(tmp_path)
    with pytest.raises(LogFileError, match=r"missing\.jsonl: No such file"):
        read(tmp_path / "missing.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_forbidden_file_is_an_error(tmp_path):
    path = put(tmp_path / "conv.jsonl", record())
    path.chmod(0)
    with pytest.raises(LogFileError, match="Permission denied"):
        read(path)


def test_a_file_is_read_again_only_when_it_changed(tmp_path, monkeypatch):
    path = append(record(), tmp_path)
    first = read(path)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail("read again"))
    assert read(path) is first
    monkeypatch.undo()
    append(record(median_us=17.0), tmp_path)
    assert [r.median_us for r in read(path).records] == [18.25, 17.0]
    same_size = record(median_us=17.25)
    write([record(median_us=17.0), same_size], path)
    stamp = path.stat()
    write([record(median_us=17.0), record(median_us=17.35)], path)
    os.utime(path, ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))  # a clock too coarse to tell, and the same size
    assert [r.median_us for r in read(path).records] == [17.0, 17.35]


# ---- appending -------------------------------------------------------------------------------------


def test_append_makes_the_device_file(tmp_path):
    path = append(record(), tmp_path / "logs")
    assert path == tmp_path / "logs" / "nvidia-h200" / "conv.jsonl" == log_path(tmp_path / "logs", "nvidia-h200", "conv")
    assert path.read_text() == record().line + "\n"
    assert append(record(spec=KEY.replace("conv-", "conv_dw-")), tmp_path / "logs").name == "conv_dw.jsonl"
    names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))  # the lock is hidden
    assert names == ["conv.jsonl", "conv_dw.jsonl"]


def test_append_goes_to_the_user_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path / "mine"))
    assert append(record()) == tmp_path / "mine" / "nvidia-h200" / "conv.jsonl"


@pytest.mark.parametrize(("slug", "op"), [("nvidia-h200", "conv2d"), ("../up", "conv"), ("a/b", "conv"), (".hidden", "conv"), ("", "conv")])
def test_log_path_stays_inside_its_folder(tmp_path, slug, op):
    with pytest.raises(InvalidArgument) as caught:
        log_path(tmp_path, slug, op)
    assert repr(op if op == "conv2d" else slug) in str(caught.value)


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_append_after_a_crash_loses_only_the_cut_line(tmp_path, cut):
    path = append(record(), tmp_path)
    whole = path.read_bytes()
    append(record(median_us=17.0), tmp_path)
    path.write_bytes(path.read_bytes()[:-cut])
    append(record(median_us=16.5), tmp_path)
    log = read(path)
    assert path.read_bytes().startswith(whole)
    assert [r.median_us for r in log.records] == ([18.25, 17.0, 16.5] if cut == 1 else [18.25, 16.5])
    assert log.bad == (0 if cut == 1 else 1)


def test_an_invalid_record_is_refused_before_anything_is_made(tmp_path):
    for change in ({"median_us": -1.0}, {"median_us": math.nan}, {"device": "../out"}, {"spec": "nonsense"}):
        with pytest.raises(InvalidArgument, match="nothing was written"):
            append(record().model_copy(update=change), tmp_path)
    assert list(tmp_path.iterdir()) == []


def _append_within(size, path):
    """What append says where the disk ends after size bytes (here: the largest file this process may write)."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        append(record(median_us=17.0), path)
    except LogFileError as problem:
        return str(problem)
    return "written"


@pytest.mark.parametrize("room", [0, 40])
def test_a_full_disk_leaves_the_earlier_lines(tmp_path, room):
    path = append(record(), tmp_path)
    before = path.read_bytes()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        said = pool.apply(_append_within, (len(before) + room, tmp_path))
    assert str(path) in said
    assert "TVM_ORIENT_LOG_DIR" in said
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LogFileError, match=r"file/nvidia-h200/conv\.jsonl.*TVM_ORIENT_LOG_DIR"):
        append(record(), tmp_path / "file")


def _append_many(writer, directory):
    for n in range(25):
        append(record(provenance={"writer": writer, "n": n, "padding": "x" * random.Random(n).randrange(9000)}), directory)


def test_concurrent_writers_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_append_many, args=(writer, tmp_path)) for writer in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    log = read(log_path(tmp_path, "nvidia-h200", "conv"))
    assert (log.bad, log.blank, log.foreign) == (0, 0, 0)
    assert sorted((r.provenance["writer"], r.provenance["n"]) for r in log.records) == [(writer, n) for writer in range(4) for n in range(25)]


@pytest.mark.parametrize("change", [lambda path: append(record(median_us=17.0), path.parents[1]), lambda path: write([record(median_us=17.0)], path)])
def test_append_and_write_wait_for_each_other(tmp_path, change):
    """A record that is appended between the reading and the replacing of a file would be lost."""
    path = append(record(), tmp_path)
    with ThreadPoolExecutor(1) as pool:
        with filelock.FileLock(path.with_name(".conv.jsonl.lock")):
            waiting = pool.submit(change, path)
            time.sleep(0.2)
            assert path.read_text() == record().line + "\n"
        waiting.result(timeout=10)
    assert read(path).records[-1].median_us == 17.0


# ---- replacing -------------------------------------------------------------------------------------


def test_write_is_sorted_whole_and_keeps_the_mode(tmp_path):
    path = tmp_path / "new" / "conv.jsonl"
    other = record(spec=KEY.replace("22.5", "0"))
    write([record(), other], path)
    assert path.read_text() == f"{other.line}\n{record().line}\n"
    path.chmod(0o640)
    write([other, record()], path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert read(path).records == (other, record())
    assert [p.name for p in path.parent.iterdir() if not p.name.endswith(".lock")] == ["conv.jsonl"]


def test_a_new_file_can_be_read_by_those_who_may_read_any(tmp_path):
    write([record()], tmp_path / "conv.jsonl")
    (tmp_path / "plain").touch()
    assert (tmp_path / "conv.jsonl").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(("line", "said"), [("{", "1 bad lines and 0 of another schema"), ('{"schema":2}', "0 bad lines and 1 of another schema")])
def test_write_never_drops_a_line_that_it_does_not_understand(tmp_path, line, said):
    path = put(tmp_path / "conv.jsonl", record(), line)
    before = path.read_bytes()
    with pytest.raises(LogFileError, match=said):
        write(merge([path]), path)
    assert path.read_bytes() == before
    write(merge([path]), path, force=True)
    assert path.read_text() == record().line + "\n"


def test_write_never_drops_a_better_record(tmp_path):
    path = put(tmp_path / "conv.jsonl", record(), record(spec=KEY.replace("22.5", "0")))
    before = path.read_bytes()
    for poorer in ([], [record()], [record(median_us=18.5), record(spec=KEY.replace("22.5", "0"))], [record(device="nvidia-h100")]):
        with pytest.raises(LogFileError, match=r"conv\.jsonl.*force"):
            write(poorer, path)
    assert path.read_bytes() == before
    faster = [record(template="rows", median_us=12.0), record(spec=KEY.replace("22.5", "0"))]
    write(faster, path)
    assert sorted(read(path).records, key=lambda r: r.line) == sorted(faster, key=lambda r: r.line)
    write([], path, force=True)
    assert path.read_bytes() == b""


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = put(tmp_path / "conv.jsonl", record())
    before = path.read_bytes()

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(LogFileError, match=r"conv\.jsonl.*No space left"):
        write([record(median_us=1.0)], path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == ["conv.jsonl"]


def test_write_goes_through_a_link(tmp_path):
    real = put(tmp_path / "repository" / "conv.jsonl", record())
    (tmp_path / "conv.jsonl").symlink_to(real)
    write([record(median_us=3.0)], tmp_path / "conv.jsonl")
    assert (tmp_path / "conv.jsonl").is_symlink()
    assert read(real).records[0].median_us == 3.0
