"""tvm-orient explain: which record answers, what else could serve, and what the machine code says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.support.command_line import KEY, TINY, fake, orient, printed_json, record
from tvm_orient.errors import Unsupported
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.records import lookup, store
from tvm_orient.records.record import Record
from tvm_orient.schedules import registry
from tvm_orient.tools import doctor


def test_explain_says_what_answered(user_logs: Path) -> None:
    file = store.append(record())
    (spec,) = printed_json("explain", "--target", "cpu", *TINY, "--angles", "0,90")["specs"]
    tuned, untuned = spec["parts"]
    assert (tuned["step"], tuned["source"], tuned["tried"], tuned["channels"], tuned["degrees"]) == ("user", str(file), [], [0, 4], [0.0])
    assert Record.model_validate(tuned["record"]) == record()
    assert (untuned["step"], untuned["record"], untuned["source"], untuned["degrees"]) == ("default", None, None, [90.0])
    assert [entry["step"] for entry in untuned["tried"]] == list(lookup.STEPS[:-1])
    assert all(entry["why_not"] for entry in untuned["tried"])
    said = orient("explain", "--target", "cpu", *TINY, "--angles", "0,90").stdout
    for text in ("0-3", "4-7", "answered, from", "10.0 us", "2.00x", "answered: the template's own choice, untuned", "has no record of this spec"):
        assert text in said


def test_explain_strict_forbids_the_default(user_logs: Path) -> None:
    said = orient("explain", "--target", "cpu", *TINY, "--angles", "90", "--mode", "strict", code=1).stderr
    assert "no record may answer" in said
    assert "mode strict forbids an untuned choice" in said


def test_explain_reads_machine_code_without_a_gpu() -> None:
    args = ("explain", "--arch", "sm_90a", *TINY, "--angles", "0")
    assert "sass" not in printed_json(*args)["specs"][0]["parts"][0]
    (kernel,) = printed_json(*args, "--sass")["specs"][0]["parts"][0]["sass"]
    assert (kernel["kernel"], kernel["spills"]) == ("main_kernel", 0)
    assert 0 < kernel["registers"] <= 255
    assert kernel["instructions"] > kernel["multiply_adds"] > 0
    assert "--sass reads CUDA kernels" in orient("explain", "--target", "cpu", *TINY, "--sass", code=2).stderr


@pytest.mark.parametrize("key", [KEY.replace("h6w5", "h28w28"), "conv_dw-c8h28w28-s1-zeros-float32-nchw-k7a45"])
def test_explain_compares_what_no_record_decides(key: str, user_logs: Path) -> None:
    device = arch_device("sm_80")
    ((part,),) = (answer["parts"] for answer in printed_json("explain", key, "--arch", "sm_80")["specs"])
    serve, declined = registry.candidates(ConvSpec.from_key(key), device)
    assert {row["template"] for row in part["candidates"]} == {template.name for template in serve}
    assert part["declined"] == {name: why for name, why in declined.items() if not name.startswith("cpu")}
    (chosen,) = (row for row in part["candidates"] if row["chosen"])
    assert (chosen["template"], chosen["decisions"]) == (part["template"], part["decisions"])
    totals = [row["total"] for row in part["candidates"]]
    assert totals == sorted(totals)
    assert all(row["total"] >= max(row["clocks"].values()) for row in part["candidates"])
    said = orient("explain", key, "--arch", "sm_80").stdout
    assert f"* {chosen['total']:.1f} {max(chosen['clocks'], key=chosen['clocks'].get)}" in said
    assert all(name in said for name in declined if not name.startswith("cpu"))
    assert "figures" not in said


def test_explain_compares_on_a_cpu_and_where_a_record_answers(user_logs: Path) -> None:
    default = registry.default(ConvSpec.from_key(KEY), cpu_device())[1].decisions()
    other = {**default, "tap_outer": 1 - default["tap_outer"]}
    store.append(record(KEY, decisions=other))
    tuned, untuned = printed_json("explain", "--target", "cpu", *TINY, "--angles", "0,90")["specs"][0]["parts"]
    assert [(row["template"], row["total"], row["chosen"]) for row in untuned["candidates"]] == [("cpu_rows", None, True)]
    assert [(row["template"], row["decisions"], row["chosen"]) for row in tuned["candidates"]] == [("cpu_rows", other, True)]
    assert (tuned["default"]["template"], tuned["default"]["decisions"]) == ("cpu_rows", default)
    assert tuned["default"]["total"] is None
    assert any(said.startswith("without the record the default would be cpu_rows (") for said in tuned["changes"])
    assert any(said == "when it was tuned, the choice took 10.0 us and the default of that day 20.0 us" for said in tuned["changes"])
    assert any("`tvm-orient tune conv-c8h6w5-s1-zeros-float32-nchw-k3a0_90` on this machine" in said for said in untuned["changes"])
    said = orient("explain", "--target", "cpu", *TINY, "--angles", "0,90").stdout
    assert "none has an estimate: the first is taken" in said
    assert "* serves" in said
    assert "for nhwc only" in said
    assert "- 0°: without the record" in said
    assert "none has an estimate" in orient("explain", "conv-c8h28w28-s1-zeros-float32-nhwc-k7a45", "--arch", "sm_80").stdout


def test_explain_says_what_would_change_a_choice(user_logs: Path) -> None:
    store.append(record(KEY))
    said = printed_json("explain", KEY, "--target", "cpu")["specs"][0]["parts"][0]["changes"]
    assert "without the record nothing would change: it holds what the default would be" in said
    (part,) = printed_json("explain", KEY.replace("h6w5", "h28w28"), "--arch", "sm_80")["specs"][0]["parts"]
    assert part["default"] == {name: value for name, value in part["candidates"][0].items() if name != "chosen"}
    assert (part["default"]["template"], part["default"]["decisions"]) == (part["template"], part["decisions"])
    first, second, third = part["changes"]
    chosen, following = part["candidates"][:2]
    assert first.startswith(f"{chosen['template']} is limited by {max(chosen['clocks'], key=chosen['clocks'].get)}")
    assert second.startswith(f"next is {following['template']}, estimated {following['total'] / chosen['total'] - 1:.0%} slower")
    assert third.startswith("a record would go first")
    layer = orient("explain", "--channels", 64, "--height", 28, "--width", 28, "--kernel-size", 7, "--arch", "sm_80").stdout
    sentences = layer.partition("what would change the choice")[2].strip().splitlines()
    assert [number for number, sentence in enumerate(sentences) if "a record would go first" in sentence] == [len(sentences) - 1]
    assert "what would change the choice" in layer
    (lent,) = printed_json("explain", KEY.replace("h6w5", "h7w5"), "--target", "cpu")["specs"][0]["parts"]
    assert lent["step"] == "nearest"
    assert any(f"the record is of {KEY} on" in said and "--mode strict" in said for said in lent["changes"])
    (generic,) = printed_json("explain", KEY, "--arch", "sm_75")["specs"][0]["parts"]
    assert generic["changes"][0].startswith("the generic kernel runs it")
    assert generic["default"]["template"] == "generic"


def test_borrowed_figures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "no figures for sm_120: sm_90a's (H200 SXM) assumed"
    answer = printed_json("explain", KEY, "--arch", "sm_120", "--sass")
    assert answer["figures"].startswith(words)
    assert answer["specs"][0]["parts"][0]["sass"][0]["bound"] is None
    said = orient("explain", KEY, "--arch", "sm_120", "--sass").stdout
    assert words in said
    assert "predicted for sm_80, sm_89, sm_90a only, and need figures that sm_120 has none of" in said
    assert printed_json("explain", KEY, "--arch", "sm_90")["figures"] == ""
    fake(monkeypatch, "kernels.bundle", export=lambda spec, device, out: tmp_path)
    assert words in orient("build", KEY, "--arch", "sm_120", "-o", tmp_path).stdout
    assert "no figures for" not in orient("build", KEY, "--arch", "sm_89", "-o", tmp_path).stdout
    gpu = dataclasses.replace(arch_device("sm_120a"), name="RTX 5090")
    monkeypatch.setattr(doctor, "cuda_devices", lambda: (gpu,))
    assert [check.detail for check in doctor._gpus() if "no figures for sm_120a: sm_90a's" in check.detail]


def test_sass_of_the_generic_kernel_says_why_nothing_is_predicted() -> None:
    said = orient("explain", KEY.replace("float32", "float64"), "--arch", "sm_90a", "--sass").stdout
    assert "the generic kernel learns its sizes when it is called, so nothing is counted per output" in said


def test_what_has_no_asynchronous_copies_runs_the_generic_kernel() -> None:
    (part,) = printed_json("explain", KEY, "--arch", "sm_75")["specs"][0]["parts"]
    assert part["template"] == "generic"
    assert "for sm_80 and later, whose copies into shared memory may be asynchronous, got sm_75" in part["declined"]["shared_patch"]
    with pytest.raises(Unsupported, match="got sm_75"):
        registry.default(ConvSpec.from_key(KEY), arch_device("sm_75"))
