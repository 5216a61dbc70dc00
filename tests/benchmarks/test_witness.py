"""The witness of generated code: equal to itself, each change by name, and a table in which every template stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.static import witness
from tvm_orient.schedules import registry

FEW = ["--only", "x86-64-v3 cpu_pixels conv_dx", "--only", "sm_90a pixels conv_dx", "--only", "sm_75"]


def test_equal_with_itself_and_a_change_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "witness.json"
    assert witness.main(["--out", str(file), *FEW]) == 0
    made = json.loads(file.read_text())
    assert len(made) == 3
    one, other, cpu = (made[name] for name in sorted(made))
    assert [len(code) for code in (one["cuda"], other["cuda"], *cpu["objects"])] == [64] * 3
    assert not any("error" in one for one in made.values())
    assert witness.main(["--against", str(file), *FEW]) == 0
    assert "all equal" in capsys.readouterr().out
    name = next(name for name in made if name.startswith("sm_90a"))
    made[name]["choices"][0]["decisions"]["lanes"] = -1
    made[name]["tir"] = "0" * 64
    file.write_text(json.dumps(made))
    assert witness.main(["--against", str(file), *FEW]) == 1
    said = capsys.readouterr().out
    assert f"{name}: choices[0].decisions.lanes was -1, is " in said
    assert f"{name}: tir was {'0' * 64}, is " in said
    assert "2 differences" in said


def test_a_pair_that_cannot_be_lowered_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a long story\nno such loop")

    monkeypatch.setattr(witness, "scheduled", broken)
    pair = next(pair for pair in witness.pairs() if pair.arch == "sm_75")
    made = witness.witness([pair])[pair.name]
    assert made["error"] == "RuntimeError: no such loop"
    assert "choices" in made
    assert "tir" not in made


def test_entries_that_come_and_go() -> None:
    one, other = {"a": {"tir": "1"}, "b": {"cubin": None}}, {"b": {"cubin": "2"}, "c": {"tir": "1"}}
    assert witness.differences(one, other) == ["a: is no longer made", "c: was not there before"]
    assert witness.differences(one, other, whole=False) == ["c: was not there before"]


def test_every_template_is_in_the_table() -> None:
    chosen = witness.pairs()
    assert {template.name for template in registry.TEMPLATES} | {"default", "generic"} == {pair.template for pair in chosen}
    assert len({pair.name for pair in chosen}) == len(chosen)


def test_a_file_that_is_no_witness_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "list.json"
    file.write_text("[]")
    with pytest.raises(SystemExit, match="2"):
        witness.main(["--against", str(file)])
    assert "--against takes a file that --out wrote" in capsys.readouterr().err
