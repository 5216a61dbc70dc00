"""tvm-orient logs: where they are, what is in them, and checking, merging and pruning them."""

from __future__ import annotations

from pathlib import Path

from tests.support.command_line import KEY, TINY, orient, printed_json, record
from tvm_orient import env
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.records import store
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice
from tvm_orient.tools import doctor_files
from tvm_orient.tuning.journal import Journal


def test_logs_where_and_list(user_logs: Path) -> None:
    assert printed_json("logs", "where") == {"user": str(user_logs), "shipped": str(env.shipped_log_dir())}
    assert "not made yet" in orient("logs", "where").stdout
    file = store.append(record())
    mine = [row for row in printed_json("logs", "list") if row["source"] == "user"]
    assert [(row["file"], row["records"], row["bad"]) for row in mine] == [(str(file), 1, 0)]
    assert cpu_device().slug in orient("logs", "list").stdout


def test_logs_check_counts_what_is_wrong(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(record().line + "\n")
    lines = [record().line, "{", "", '{"schema": 2}', record(template_version=0).line, record(median_us=25.0).line, "[]"]
    bad.write_text("\n".join(lines) + "\n")
    assert orient("logs", "check", good).stderr == ""
    assert [row["records"] for row in printed_json("logs", "check", good)] == [1]
    (_, row) = sorted(printed_json("logs", "check", good, bad, code=1), key=lambda row: -row["records"])[::-1]
    assert row == {"file": str(bad), "records": 3, "bad": 2, "blank": 1, "foreign": 1, "old": 1, "slow": 1, "impossible": 0, "reasons": [], "error": None}
    assert len(printed_json("logs", "check", tmp_path, code=1)) == 2
    shown = orient("logs", "check", bad, code=1).stdout.splitlines()
    assert shown[0].split() == ["file", "records", "bad", "blank", "schema", "old", "slower", "doubtful"]
    assert shown[2].split() == [f"{tmp_path.name}/bad.jsonl", "3", "2", "1", "1", "1", "1", "0"]


def test_logs_check_and_the_doctor_agree_on_what_answers(tmp_path: Path) -> None:
    """Also where the template is of today's version, and does not take the decisions any more."""
    invalid = dict.fromkeys(record().decisions, 10**6)
    place = tmp_path / cpu_device().slug / "conv.jsonl"
    place.parent.mkdir()
    for one, answers in ((record(), True), (record(template_version=0), False), (record(decisions=invalid), False)):
        place.write_text(one.line + "\n")
        (row,) = printed_json("logs", "check", place, code=0 if answers else 1)
        assert row["old"] == (not answers)
        assert doctor_files.log_folder(tmp_path, "nothing", shipped=True)[0] == ("ok" if answers else "broken")


def test_logs_check_names_impossible_records(tmp_path: Path) -> None:
    file = tmp_path / "conv.jsonl"
    file.write_text(record(floor_us=7863.0, provenance={"batch": 8}).line + "\n" + record().line + "\n")
    (row,) = printed_json("logs", "check", file, code=1)
    assert (row["records"], row["impossible"]) == (2, 1)
    said = orient("logs", "check", file, code=1).stderr
    assert f"{file}: {record().spec}: its floor, a copy of" in said
    assert "slower than any machine that has nothing else to do" in said


def test_logs_check_of_the_folder_of_logs_skips_the_journals(user_logs: Path) -> None:
    file = store.append(record())
    part = ConvSpec.from_key(record().spec)
    journal = Journal(user_logs, cpu_device(), part, 8)
    journal.add(Choice.of(*registry.default(part, cpu_device())), 1e-3, "")
    assert journal.path.is_relative_to(user_logs)
    assert [row["file"] for row in printed_json("logs", "check", user_logs)] == [str(file)]
    file.unlink()
    assert f"got none under {user_logs}" in orient("logs", "check", user_logs, code=2).stderr


def test_logs_check_unreadable(tmp_path: Path) -> None:
    assert "cannot read the tuning log" in orient("logs", "check", tmp_path / "none.jsonl", code=1).stderr
    assert f"got none under {tmp_path}" in orient("logs", "check", tmp_path, code=2).stderr


def test_logs_show(user_logs: Path) -> None:
    file = store.append(record())
    store.append(record(median_us=8.0, template_version=0))
    store.append(record(KEY.replace("k3a0", "k3a90")))
    shown = printed_json("logs", "show", KEY)
    assert [(row["file"], row["record"]["median_us"], row["impossible"]) for row in shown] == [(str(file), 8.0, None), (str(file), 10.0, None)]
    assert len(printed_json("logs", "show", KEY + "_90")) == 3, "the angles of a layer have records of their own"
    assert len(printed_json("logs", "show", file)) == 3
    said = orient("logs", "show", KEY).stdout
    for words in (
        "cpu_rows v0:",
        "of an older template: it does not answer",
        "10.0 us (spread 0.10 us), 2.00x as fast as the default, 10% of a copy's",
        "date=2026",
    ):
        assert words in said, said
    assert f"no record of {KEY}1" in orient("logs", "show", KEY + "1").stdout
    assert "not a spec key: 'conv'" in orient("logs", "show", "conv", code=2).stderr
    assert "cannot read the tuning log none.jsonl" in orient("logs", "show", "none.jsonl", code=1).stderr


def test_logs_merge_is_usable(user_logs: Path, tmp_path: Path) -> None:
    other = "conv-c8h6w5-s1-zeros-float32-nchw-k3a90"
    here, there, both = tmp_path / "here.jsonl", tmp_path / "there.jsonl", user_logs / cpu_device().slug / "conv.jsonl"
    here.write_text(record().line + "\n" + record(other, 12.0).line + "\n")
    there.write_text(record(median_us=9.0).line + "\nnot json\n")
    merged = printed_json("logs", "merge", here, there, "-o", both)
    assert (merged["records"], merged["records_read"], merged["lines_skipped"]) == (2, 3, 1)
    assert sorted(row.median_us for row in store.read(both).records) == [9.0, 12.0]
    assert [part["step"] for part in printed_json("explain", "--target", "cpu", *TINY, "--angles", "0,90")["specs"][0]["parts"]] == ["user", "user"]
    before = both.read_bytes()
    assert "1 lines skipped" in orient("logs", "merge", there, here, "-o", both).stdout
    assert both.read_bytes() == before
    (tmp_path / "empty.jsonl").touch()
    assert "got none as fast for 2 records" in orient("logs", "merge", tmp_path / "empty.jsonl", "-o", both, code=1).stderr
    assert both.read_bytes() == before


def test_logs_merge_says_where_mixed_records_belong(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(record().line + "\n" + record(device="nvidia-h200").line + "\n")
    assert "belong in 2 files" in orient("logs", "merge", tmp_path / "a.jsonl", "-o", tmp_path / "b.jsonl").stdout


def test_logs_prune(tmp_path: Path) -> None:
    file, out = tmp_path / "conv.jsonl", tmp_path / "best.jsonl"
    file.write_text("".join(record(median_us=value).line + "\n" for value in (11.0, 9.0, 10.0)))
    orient("logs", "prune", file, "-o", out)
    assert [row.median_us for row in store.read(out).records] == [9.0]
    assert len(store.read(file).records) == 3
    orient("logs", "prune", file)
    assert file.read_text() == out.read_text()
    file.write_text(out.read_text() + "{\n")
    assert "got 1 bad lines" in orient("logs", "prune", file, code=1).stderr
    orient("logs", "prune", file, "--force")
    assert file.read_text() == out.read_text()
