"""Tuning logs: records, bad lines, crashes, concurrent writers, merge laws, and every step of the lookup."""

import json
import logging
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
from pydantic import ValidationError

from tvm_orient import env
from tvm_orient.errors import InvalidArgument, LogFileError
from tvm_orient.problem.device import Device
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.records import store as records_store
from tvm_orient.records.lookup import lookup
from tvm_orient.records.merge import merge, prune
from tvm_orient.records.record import Record
from tvm_orient.records.store import append, log_path, read, write

H200 = Device("cuda", "NVIDIA H200", "nvidia-h200", "sm_90a", 132, 232448, 16)
SPEC = ConvSpec("conv", 96, 56, 56, Taps.oriented(math.radians(22.5), 31))
KEY = "conv-c96h56w56-s1-zeros-float32-nchw-k31a22.5"


def record(**changes):
    fields = {
        "spec": KEY,
        "template": "patch",
        "template_version": 2,
        "decisions": {"patch_h": 4, "patch_w": 4, "stage": "shared"},
        "device": "nvidia-h200",
        "median_us": 18.25,
        "spread_us": 0.5,
        "default_us": 25.0,
        "floor_us": 16.0,
        "error": 1e-7,
        "provenance": {"gpu": "NVIDIA H200", "cc": "9.0", "units": 132, "date": "2026-11-21T10:00:00+00:00", "trials": 64, "seed": 0},
    }
    return Record(**{**fields, **changes})


def put(path, *lines):
    """A file of lines: records, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line.line if isinstance(line, Record) else line}\n" for line in lines))
    return path


# ---- records ---------------------------------------------------------------------------------------


def test_a_record_is_one_canonical_line():
    line = record().line
    assert line == (
        '{"decisions":{"patch_h":4,"patch_w":4,"stage":"shared"},"default_us":25.0,"device":"nvidia-h200","error":1e-07,"floor_us":16.0,"median_us":18.25,'
        '"provenance":{"cc":"9.0","date":"2026-11-21T10:00:00+00:00","gpu":"NVIDIA H200","seed":0,"trials":64,"units":132},"schema":1,'
        f'"spec":"{KEY}","spread_us":0.5,"template":"patch","template_version":2}}'
    )
    assert Record.model_validate(json.loads(line)) == record()


def test_line_does_not_depend_on_the_order_of_fields():
    one = record(decisions={"a": 1, "b": 2}, median_us=18)
    other = record(decisions={"b": 2, "a": 1}, median_us=18.0)
    assert one.line == other.line


def test_a_record_keeps_what_it_does_not_know(tmp_path):
    odd = record(clocks={"sm": 1980}, note="täglich\u2028\n")
    assert "\n" not in odd.line
    path = append(odd, tmp_path)
    (again,) = read(path).records
    assert again == odd
    assert again.model_extra == {"clocks": {"sm": 1980}, "note": "täglich\u2028\n"}
    assert again.line == odd.line


def test_identity_leaves_out_measurements_and_provenance():
    assert record().identity == (KEY, "patch", 2, "nvidia-h200")
    assert record(median_us=1.0, provenance={}, decisions={}).identity == record().identity


WRONG_FIELDS = [
    ({"spec": "conv-c96"}, "'conv-c96'"),
    ({"spec": ConvSpec("conv", 96, 56, 56, Taps.oriented(angles_between(8), 31)).key}, "got 8"),
    ({"spec": KEY.replace("a22.5", "a22.50")}, "a22.50"),
    ({"template": ""}, "template"),
    ({"template_version": "2"}, "template_version"),
    ({"template_version": True}, "template_version"),
    ({"decisions": {"patch_h": 1.5}}, "patch_h"),
    ({"decisions": {"patch_h": True}}, "patch_h"),
    ({"device": "../nvidia-h200"}, "../nvidia-h200"),
    ({"device": ".."}, "device"),
    ({"device": ""}, "device"),
    ({"median_us": 0.0}, "median_us"),
    ({"median_us": -1.0}, "median_us"),
    ({"median_us": math.nan}, "median_us"),
    ({"median_us": "18"}, "median_us"),
    ({"spread_us": -0.1}, "spread_us"),
    ({"default_us": math.inf}, "default_us"),
    ({"floor_us": 0.0}, "floor_us"),
    ({"error": -1e-9}, "error"),
    ({"provenance": None}, "provenance"),
    ({"provenance": {"power": math.nan}}, "JSON"),
    ({"provenance": {"path": Path("log")}}, "plain JSON"),
    ({"schema": 2}, "schema"),
]


@pytest.mark.parametrize(("change", "said"), WRONG_FIELDS, ids=[str(*change) for change, _ in WRONG_FIELDS])
def test_wrong_field_is_refused_by_name(change, said):
    with pytest.raises(ValidationError) as caught:
        record(**change)
    assert said in str(caught.value)


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
    assert read(path) == records_store.LogFile(path)


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

    monkeypatch.setattr(records_store.os, "replace", fail)
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


# ---- merge and prune -------------------------------------------------------------------------------

records = st.builds(
    lambda angle, template, version, device, median, date, tile, extra: record(
        spec=KEY.replace("22.5", angle),
        template=template,
        template_version=version,
        device=device,
        median_us=median,
        decisions={"tile": tile},
        provenance=date,
        **extra,
    ),
    st.sampled_from(["0", "45"]),
    st.sampled_from(["patch", "rows"]),
    st.integers(1, 2),
    st.sampled_from(["nvidia-h200", "nvidia-h100"]),
    st.sampled_from([10.0, 11.0]),
    st.sampled_from([{}, {"date": "2026-11-21"}, {"date": "2026-11-21T10:00:00"}, {"date": 20261121}]),
    st.integers(1, 3),
    st.sampled_from([{}, {"note": "again"}]),
)
record_lists = st.lists(records, max_size=8)


@pytest.fixture(scope="module")
def fold(tmp_path_factory):
    """merge of lists of records, through files."""
    folder = tmp_path_factory.mktemp("merge")

    def run(*lists):
        return merge([put(folder / f"{n}.jsonl", *rows) for n, rows in enumerate(lists)])

    return run


@given(record_lists, record_lists)
def test_merge_is_commutative_and_idempotent(fold, one, other):
    both = fold(one, other)
    assert fold(other, one) == both
    assert fold([*one, *other]) == both
    assert fold(both) == both
    assert fold(both, one) == both


@given(record_lists, record_lists, record_lists)
def test_merge_is_associative(fold, a, b, c):
    assert fold(fold(a, b), c) == fold(a, fold(b, c)) == fold(a, b, c)


@given(record_lists)
def test_merge_keeps_the_best_of_each_identity(fold, rows):
    merged = fold(rows)
    assert [r.identity for r in merged] == sorted({r.identity for r in rows})
    for kept in merged:
        rivals = [r for r in rows if r.identity == kept.identity]
        assert kept in rivals
        assert kept.median_us == min(r.median_us for r in rivals)
        assert kept.date == max(r.date for r in rivals if r.median_us == kept.median_us)


@given(record_lists, st.randoms())
def test_prune_keeps_one_record_for_a_spec_and_device(rows, rng):
    pruned = prune(rows)
    assert [r.identity for r in pruned] == sorted(r.identity for r in pruned)
    assert {(r.spec, r.device): r.median_us for r in pruned} == {
        place: min(r.median_us for r in rows if (r.spec, r.device) == place) for place in {(r.spec, r.device) for r in rows}
    }
    assert len(pruned) == len({(r.spec, r.device) for r in rows})
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert prune(shuffled) == pruned == prune(pruned)


def test_ties_go_to_the_newest():
    old, new = (record(provenance={"date": date}) for date in ("2026-11-20", "2026-11-21"))
    assert prune([old, new]) == prune([new, old]) == [new]


def test_merge_needs_its_files(tmp_path):
    with pytest.raises(LogFileError, match=r"missing\.jsonl"):
        merge([tmp_path / "missing.jsonl"])


def test_merge_then_write_is_allowed(tmp_path):
    path = put(tmp_path / "conv.jsonl", record(), record(median_us=17.0), record(template="rows"))
    write(merge([path]), path)
    assert len(read(path).records) == 2
    write(prune(read(path).records), path)
    assert [r.median_us for r in read(path).records] == [17.0]


# ---- lookup ----------------------------------------------------------------------------------------


def key_of(**changes):
    fields = {"op": "conv", "channels": 96, "height": 56, "width": 56, "taps": SPEC.taps, **changes}
    return ConvSpec(**fields).key


def h100(**changes):
    return record(**{"device": "nvidia-h100-80gb-hbm3", "provenance": {"cc": "sm_90a", "units": 132}, **changes})


MIRROR = key_of(taps=Taps.oriented(math.radians(157.5), 31))
STEP_RECORDS = {
    "user": ("user", record()),
    "shipped": ("shipped", record()),
    "alias": ("shipped", h100()),
    "mirror": ("shipped", record(spec=MIRROR)),
    "nearest": ("shipped", record(spec=key_of(height=28))),
}
EARLIER = ("user", "shipped", "alias", "mirror", "nearest", "default")


class Logs:
    """A user folder and a shipped folder."""

    def __init__(self, root):
        self.folders = {"user": root / "user", "shipped": root / "shipped"}

    def put(self, where, *rows):
        for row in rows:
            append(row, self.folders[where])

    def lookup(self, spec=SPEC, device=H200, accepts=lambda r: None, mode="default"):
        return lookup(spec, device, accepts, directories=[self.folders["user"], self.folders["shipped"]], mode=mode)


@pytest.fixture
def store(tmp_path):
    return Logs(tmp_path)


@pytest.mark.parametrize("step", STEP_RECORDS)
def test_each_step_answers_and_says_why_the_earlier_ones_did_not(store, step):
    where, row = STEP_RECORDS[step]
    store.put(where, row)
    found = store.lookup()
    assert (found.step, found.record) == (step, row)
    assert found.source == log_path(store.folders[where], row.device, "conv")
    assert [name for name, _ in found.tried] == list(EARLIER[: EARLIER.index(step)])
    assert all(why for _, why in found.tried)


def test_steps_are_tried_in_order(store):
    for step in reversed(STEP_RECORDS):
        store.put(*STEP_RECORDS[step])
        assert store.lookup().step == step


def test_nothing_found_is_the_default(store):
    found = store.lookup()
    assert (found.record, found.step, found.source) == (None, "default", None)
    assert [step for step, _ in found.tried] == list(EARLIER[:-1])
    said = dict(found.tried)
    assert f"{log_path(store.folders['user'], 'nvidia-h200', 'conv')} does not exist" in said["user"]
    assert "sm_90a with 132 units" in said["alias"]
    assert MIRROR in said["mirror"]


@pytest.mark.parametrize("step", STEP_RECORDS)
def test_mode_strict_lets_only_exact_records_answer(store, step):
    store.put(*STEP_RECORDS[step])
    found = store.lookup(mode="strict")
    if step in ("user", "shipped"):
        assert found.step == step
    else:
        assert (found.record, found.step) == (None, "none")
        assert [name for name, _ in found.tried] == list(EARLIER)
        assert "strict" in dict(found.tried)[step]
        assert "strict" in dict(found.tried)["default"]


def test_mode_nearest_explains_instead_of_the_default(store):
    found = store.lookup(mode="nearest")
    assert (found.record, found.step) == (None, "none")
    assert [name for name, _ in found.tried] == list(EARLIER)
    store.put(*STEP_RECORDS["nearest"])
    assert store.lookup(mode="nearest").step == "nearest"


def test_mode_comes_from_the_environment(store, monkeypatch):
    store.put(*STEP_RECORDS["alias"])
    monkeypatch.setenv("TVM_ORIENT_LOOKUP", "strict")
    assert store.lookup(mode=None).step == "none"
    monkeypatch.delenv("TVM_ORIENT_LOOKUP")
    assert store.lookup(mode=None).step == "alias"
    monkeypatch.setenv("TVM_ORIENT_LOOKUP", "closest")
    with pytest.raises(InvalidArgument, match="'closest'"):
        store.lookup(mode=None)


def test_folders_come_from_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path))
    monkeypatch.setattr(env, "shipped_log_dir", lambda: tmp_path / "shipped")
    append(record(), tmp_path / "shipped")
    assert lookup(SPEC, H200, lambda r: None).step == "shipped"
    append(record())
    assert lookup(SPEC, H200, lambda r: None).step == "user"


def test_the_shipped_folder_is_there():
    assert env.shipped_log_dir().is_dir()


def test_the_fastest_record_answers_then_the_newest(store):
    rows = [record(median_us=18.0, decisions={"n": 0}), record(median_us=17.0, decisions={"n": 1}, provenance={"date": "2026-01-01"})]
    rows += [record(median_us=17.0, decisions={"n": 2}, provenance={"date": "2026-02-01"}), record(template="rows", median_us=17.5, decisions={"n": 3})]
    store.put("user", *rows)
    answers = []
    for _ in rows:
        found = store.lookup(accepts=lambda r: "seen" if r.decisions["n"] in answers else None)
        answers.append(found.record.decisions["n"])
    assert answers == [2, 1, 3, 0]


def test_a_refused_record_is_explained_and_the_next_step_answers(store):
    store.put("user", record(template_version=1))
    store.put("shipped", record(median_us=30.0))
    found = store.lookup(accepts=lambda r: "version 1 is gone" if r.template_version == 1 else None)
    assert (found.step, found.record.median_us) == ("shipped", 30.0)
    ((step, why),) = found.tried
    assert step == "user"
    assert "patch v1" in why
    assert "version 1 is gone" in why


OTHER_DEVICES = [
    ({"cc": "9.0", "units": 132}, "alias"),
    ({"cc": "9.0", "units": 114}, "nearest"),  # at distance 0
    ({"cc": "9.0"}, "nearest"),
    ({"cc": "8.0", "units": 132}, "default"),
    ({"cc": "10.0", "units": 132}, "default"),
    ({"cc": None, "units": 132}, "default"),
    ({"units": 132}, "default"),
    ({}, "default"),
]


@pytest.mark.parametrize(("provenance", "step"), OTHER_DEVICES)
def test_an_alias_needs_the_same_capability_and_units(store, provenance, step):
    store.put("shipped", h100(provenance=provenance))
    assert store.lookup().step == step


def test_records_of_a_cpu_answer_at_another_number_of_cores(store):
    """Before those of another CPU with as many cores; and they are no other model's."""
    cpu = Device("cpu", "AMD EPYC 9654", "cpu-amd-epyc-9654-avx512f-4c", "avx512f", 4, 0, 64)
    kin, other, far = (
        record(device=slug, median_us=time, provenance={"cc": "avx512f", "units": units})
        for slug, time, units in (("cpu-amd-epyc-9654-avx512f-96c", 9.0, 96), ("cpu-intel-xeon-avx512f-4c", 1.0, 4), ("cpu-intel-xeon-avx512f-96c", 1.0, 96))
    )
    store.put("shipped", kin, other, far)
    found = store.lookup(device=cpu)
    assert (found.step, found.record) == ("alias", kin)
    assert store.lookup(device=cpu, accepts=lambda r: "refused" if r == kin else None).record == other
    found = store.lookup(device=cpu, accepts=lambda r: None if r == far else "refused")
    assert (found.step, found.record) == ("nearest", far)
    assert "another number of cores" in dict(Logs(store.folders["user"] / "empty").lookup(device=cpu).tried)["alias"]
    store.put("shipped", record(device=kin.device, spec=MIRROR, provenance=kin.provenance))
    found = store.lookup(device=cpu, accepts=lambda r: None if r.spec == MIRROR else "refused")
    assert found.step == "mirror"


@pytest.mark.parametrize("cc", ["9.0", "90", "sm_90", "sm_90a", 9.0])
def test_capabilities_are_compared_by_value(store, cc):
    store.put("user", h100(provenance={"cc": cc, "units": 132}))
    assert store.lookup().step == "alias"


@pytest.mark.parametrize(("arch", "cc"), [("sm_120", "12.0"), ("sm_103a", "10.3"), ("avx2", "avx2"), ("aarch64", "aarch64")])
def test_capabilities_of_other_devices(store, arch, cc):
    device = Device("cuda", "other", "other", arch, 8, 0, 16)
    store.put("user", h100(provenance={"cc": cc, "units": 8}))
    assert store.lookup(device=device).step == "alias"
    assert store.lookup(device=H200).step == "default"


def test_the_mirror_of_a_free_table(store):
    cross, mirrored = (Taps.from_offsets([[[0, sign], [1, 0], [-1, sign * 2]]]) for sign in (1, -1))
    store.put("user", h100(spec=key_of(taps=mirrored)))
    found = store.lookup(ConvSpec("conv", 96, 56, 56, cross))
    assert (found.step, found.record.spec) == ("mirror", key_of(taps=mirrored))


def test_a_vertical_line_is_its_own_mirror(store):
    found = store.lookup(ConvSpec("conv", 96, 56, 56, Taps.oriented(math.pi / 2, 31)))
    assert dict(found.tried)["mirror"] == "the taps are their own mirror"


NEAR = [
    # (height, width, channels) from near to far of (56, 56, 96): log ratios, channels count a quarter
    (56, 56, 128),
    (56, 48, 96),
    (48, 56, 192),
    (56, 28, 96),
    (28, 28, 96),
    (28, 28, 192),
    (7, 7, 768),
]


def test_nearest_goes_by_logarithms(store):
    rows = [record(spec=key_of(height=h, width=w, channels=c), decisions={"n": n}, median_us=100.0 - n) for n, (h, w, c) in enumerate(NEAR)]
    store.put("user", *random.Random(1).sample(rows, len(rows)))
    answers = []
    for _ in rows:
        answers.append(store.lookup(accepts=lambda r: "seen" if r.decisions["n"] in answers else None).record.decisions["n"])
    assert answers == list(range(len(NEAR)))


def test_nearest_prefers_this_device_at_equal_distance(store):
    near = key_of(height=28)
    store.put("user", h100(spec=near, median_us=1.0))
    store.put("shipped", record(spec=near))
    assert store.lookup().record.device == "nvidia-h200"


UNLIKE = [
    {"op": "conv_dx"},
    {"taps": Taps.oriented(math.radians(23.5), 31)},
    {"taps": Taps.oriented(math.radians(22.5), 29)},
    {"stride": 2},
    {"padding_mode": "circular"},
    {"dtype": "float64"},
]


@pytest.mark.parametrize("change", UNLIKE, ids=[str(*change.items()) for change in UNLIKE])
def test_nearest_never_crosses_what_makes_another_kernel(store, change):
    store.put("user", record(spec=key_of(**change)))
    assert store.lookup().step == "default"


def test_nearest_stays_on_the_architecture(store):
    store.put("user", record(spec=key_of(height=28), device="nvidia-a100", provenance={"cc": "8.0", "units": 132}))
    assert store.lookup().step == "default"
    store.put("user", record(spec=key_of(height=28), device="nvidia-h100-pcie", provenance={"cc": "9.0", "units": 114}))
    assert store.lookup().record.device == "nvidia-h100-pcie"


def test_bad_lines_are_told_and_do_not_hide_records(store):
    put(log_path(store.folders["user"], "nvidia-h200", "conv"), "{", "{")
    store.put("shipped", record())
    found = store.lookup()
    assert found.step == "shipped"
    assert "2 bad lines skipped" in found.tried[0][1]


def test_an_unreadable_file_is_passed_over_with_one_warning(store, caplog):
    broken = log_path(store.folders["user"], "nvidia-h200", "conv")
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\xff\0\xff")
    store.put("shipped", record())
    with caplog.at_level(logging.WARNING):
        found = [store.lookup() for _ in range(3)]
    assert {f.step for f in found} == {"shipped"}
    assert str(broken) in found[0].tried[0][1]
    assert [str(broken) in message for message in caplog.messages] == [True]


def test_a_new_record_answers_at_once(store):
    store.put("user", record())
    assert store.lookup().record.median_us == 18.25
    store.put("user", record(median_us=17.0))
    assert store.lookup().record.median_us == 17.0


def test_lookup_takes_one_group(store):
    layer = ConvSpec("conv", 96, 56, 56, Taps.oriented(angles_between(8), 31))
    with pytest.raises(InvalidArgument, match=r"8 groups.*parts\(\)"):
        store.lookup(layer)
    with pytest.raises(InvalidArgument, match="got 'fuzzy'"):
        store.lookup(mode="fuzzy")


def test_lookup_without_folders():
    found = lookup(SPEC, H200, lambda r: None, directories=[])
    assert found.step == "default"
    assert all(why for _, why in found.tried)
