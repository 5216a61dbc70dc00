"""The command line: help, problems, exit codes, pure JSON, and every verb on something small."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tvm_orient import env
from tvm_orient.cli.application import app
from tvm_orient.cli.output import angle, degrees, duration, microseconds, size, speedup
from tvm_orient.errors import EnvironmentProblem, TuningFailed, Unsupported
from tvm_orient.problem.device import arch_device, archs, capability, cpu_device
from tvm_orient.problem.spec import OPS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.records import lookup, store
from tvm_orient.records import record as records_record
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice
from tvm_orient.toolchain import nvrtc
from tvm_orient.tools import doctor, doctor_files
from tvm_orient.tuning.journal import Journal

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "FORCE_COLOR": None, "GITHUB_ACTIONS": None, "PY_COLORS": None}
TINY = ("--channels", "8", "--height", "6", "--width", "5", "--kernel-size", "3")
VERBS = [
    "doctor",
    "show",
    "tune",
    "build",
    "explain",
    "bench",
    "demo",
    "logs",
    "logs where",
    "logs list",
    "logs show",
    "logs check",
    "logs merge",
    "logs prune",
]
VERBS += ["cache", "cache list", "cache clear"]


def orient(*args: object, code: int = 0) -> Result:
    """What `tvm-orient ARGS` does, in this process; its exit code must be code."""
    result = CliRunner(env=PLAIN).invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


def printed_json(*args: object, code: int = 0) -> Any:
    """The JSON that a verb prints: all of its standard output."""
    return json.loads(orient(*args, "--json", code=code).stdout)


def real(*args: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    env = {**os.environ, **{name: value for name, value in PLAIN.items() if value is not None}}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60, **how)


# ---- help and start -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_shows_an_example(verb: str) -> None:
    said = orient(*verb.split(), "--help").stdout
    assert re.search(rf"Examples?\s+\$ tvm-orient {verb}", said), said


def test_help_says_degrees() -> None:
    assert "DEGREES" in orient("--help").stdout
    assert "DEGREES" in orient("tune", "--help").stdout


def test_help_names_every_verb_in_order() -> None:
    said = orient("--help").stdout
    found = [verb for verb in re.findall(r"│ (\w+) ", said) if verb in VERBS]
    assert found == ["doctor", "show", "tune", "build", "explain", "bench", "logs", "cache", "demo"]


def test_starting_imports_nothing_heavy() -> None:
    code = "import sys\nfrom tvm_orient.cli import app\napp(['--help'], standalone_mode=False)\nprint(sorted({name.split('.')[0] for name in sys.modules}))"
    done = real("-c", code)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "tvm", "tvm_ffi", "matplotlib", "xgboost"}.intersection(re.findall(r"'(\w+)'", done.stdout.splitlines()[-1]))


def test_module_and_version() -> None:
    done = real("-m", "tvm_orient", "--version")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"tvm-orient \d+\.\d+\.\d+\n", done.stdout)


# ---- problems -----------------------------------------------------------------------------------


def keys(*args: object) -> list[str]:
    return [answer["spec"] for answer in printed_json("explain", "--target", "cpu", *args)["specs"]]


@pytest.mark.parametrize(
    ("args", "tail"),
    [
        ((), "-c8h6w5-s1-zeros-float32-nchw-k3a0_22.5_45_67.5_90_112.5_135_157.5"),
        (("--angles", "0, 30"), "-c8h6w5-s1-zeros-float32-nchw-k3a0_30"),
        (("--angles=-90",), "-c8h6w5-s1-zeros-float32-nchw-k3a270"),
        (("--angles", "0", "--stride", "2x1", "--dilation", "2"), "-c8h6w5-s2x1-zeros-float32-nchw-k3d2a0"),
        (("--angles", "0", "--stride", "2", "--padding-mode", "circular", "--dtype", "float64"), "-c8h6w5-s2-circular-float64-nchw-k3a0"),
        (("--angles", "0", "--layout", "nhwc"), "-c8h6w5-s1-zeros-float32-nhwc-k3a0"),
    ],
)
def test_options_make_specs(args: tuple[str, ...], tail: str) -> None:
    wanted = ConvSpec.from_key("conv" + tail)
    assert [ConvSpec.from_key(key) for key in keys(*TINY, *args)] == [wanted]
    assert [ConvSpec.from_key(key) for key in keys(*TINY, *args, "--op", "all")] == [dataclasses.replace(wanted, op=op) for op in OPS]


def test_epilogues() -> None:
    plain = "-c8h6w5-s1-zeros-float32-nchw-k3a0"
    assert keys(*TINY, "--angles", "0", "--epilogue", "bias+gelu") == ["conv+bias+gelu" + plain]
    assert keys(*TINY, "--angles", "0", "--epilogue", "bias") == ["conv+bias" + plain]
    assert keys(*TINY, "--angles", "0", "--epilogue", "relu", "--op", "all") == ["conv+relu" + plain, "conv_dx" + plain, "conv_dw" + plain]


def test_specs_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    flat, weights = (f"{op}-c8h6w5-s1-zeros-float32-nchw-k3a0" for op in ("conv", "conv_dw"))
    file.write_text(f"# two problems\n\n{flat}  # flat\n{weights}\n\n{flat}\n")
    assert keys("--specs", file) == [flat, weights]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--kernel-size", "4"), "kernel_size must be odd so that a centre tap exists, got 4"),
        (("--kernel-size", "0"), "'--kernel-size': must be a whole number >= 1, got '0'"),
        (("--channels", "many"), "'--channels': must be a whole number >= 1, got 'many'"),
        (("--channels", "7"), "got 8 angles for 7 channels"),
        (("--angles", "0,nan"), "--angles takes finite numbers of degrees separated by commas, got 'nan'"),
        (("--angles", "inf"), "got 'inf'"),
        (("--angles", ""), "got ''"),
        (("--angles", "0;45"), "got '0;45'"),
        (("--stride", "0"), "--stride takes a whole number >= 1, or two of them (vertical x horizontal), got '0'"),
        (("--stride", "1x2x3"), "got '1x2x3'"),
        (("--dtype", "int8"), "dtype must be one of float64, float32, float16, bfloat16, got 'int8'"),
        (("--layout", "chwn"), "layout must be one of nchw, nhwc, got 'chwn'"),
        (("--epilogue", "bias+tanh"), "--epilogue takes bias, relu, silu, gelu, or bias and one of them, got 'bias+tanh'"),
        (("--epilogue", "gelu+bias"), "got 'gelu+bias'"),
        (("--op", "conv_dw", "--epilogue", "bias"), "only conv has an epilogue, got conv_dw"),
        (("--op", "pool"), "op must be one of conv, conv_dx, conv_dw, got 'pool'"),
        (("--padding-mode", "mirror"), "padding_mode must be one of zeros, circular, got 'mirror'"),
        (("--arch", "sm_77"), "unknown arch 'sm_77'"),
        (("--target", "tpu"), "target must be auto, cpu, cuda or an arch such as sm_90a, got 'tpu'"),
        (("--target", "cpu", "--arch", "sm_90a"), "got both (cpu, sm_90a)"),
        (("--mode", "guess"), "mode must be one of strict, nearest, default, got 'guess'"),
        (("--specs", "keys.txt"), "got --channels, --height, --width, --kernel-size too"),
    ],
)
def test_bad_problems_name_the_value(args: tuple[str, ...], says: str) -> None:
    result = orient("explain", *TINY, *args, code=2)
    assert says in result.stderr
    assert result.stdout == ""


def test_missing_options_are_named() -> None:
    said = orient("tune", "--channels", 8, "--width", 5, code=2).stderr
    assert "got no --height, --kernel-size" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file or directory"),
        (b"\xff\xfe\0", "it is not UTF-8 text"),
        (b"# nothing\n", "got none in"),
        (b"\nconv-c8h6w5-s1-zeros-float32-nchw-k3a0\nconv-c8\n", "keys.txt, line 3: not a spec key: 'conv-c8'"),
        (b"conv-c8h6w5-s1-zeros-int8-nchw-k3a0", "keys.txt, line 1: dtype must be one of float64, float32, float16, bfloat16, got 'int8'"),
    ],
)
def test_bad_specs_files_are_named(content: bytes | None, says: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    if content is not None:
        file.write_bytes(content)
    said = orient("build", "--specs", file, code=2).stderr
    assert says in said
    assert "keys.txt" in said
    assert len(said.splitlines()) == 1


# ---- errors and streams -------------------------------------------------------------------------


def test_no_gpu_is_a_failure_not_bad_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.problem.device.cuda_devices", lambda: ())
    assert orient("explain", *TINY, "--target", "cuda", code=1).stderr.startswith("error: no CUDA GPU on this machine")


def test_unknown_verb_and_option() -> None:
    orient("frobnicate", code=2)
    orient("show", "--frobnicate", code=2)


@pytest.mark.parametrize(
    ("problem", "code", "says"),
    [
        (PermissionError(13, "Permission denied", "/some/where"), 1, "error: /some/where: Permission denied"),
        (KeyboardInterrupt(), 1, "error: interrupted"),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 1, "error: this needs torch, which is not installed"),
    ],
)
def test_what_is_not_ours_is_one_line_too(problem: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise problem

    monkeypatch.setattr("tvm_orient.tools.plots.taps.taps_text", fail)
    said = orient("show", "k3a0", code=code).stderr
    assert said.startswith(says)
    assert len(said.splitlines()) == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.tools.plots.taps.taps_text", lambda *_: 1 // 0)
    assert isinstance(CliRunner().invoke(app, ["show", "k3a0"]).exception, ZeroDivisionError)


@pytest.mark.parametrize("args", [("show", "--kernel-size", "301", "--json"), ("show", "--kernel-size", "301"), ("--help",)])
def test_a_reader_that_leaves_hears_nothing_more(args: tuple[str, ...]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "tvm_orient", *args], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # type: ignore[union-attr]
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


# ---- show ---------------------------------------------------------------------------------------

GOLDEN = """\
group 0: 0 deg         group 1: 22.5 deg      group 2: 45 deg
7 of 7 taps distinct   5 of 7 taps distinct   5 of 7 taps distinct
 . . . . . . .          . . . . . . .          . . . . . 1 .
 . . . . . . .          . . . . . 1 .          . . . . 1 . .
 1 1 1[1]1 1 1          . . 1[3]1 . .          . . .[3]. . .
 . . . . . . .          . 1 . . . . .          . . 1 . . . .
 . . . . . . .          . . . . . . .          . 1 . . . . .

key k7a0_22.5_45
"""


def test_show_golden() -> None:
    assert orient("show", "--kernel-size", 7, "--angles", "0,22.5,45").stdout == GOLDEN
    assert orient("show", "k7a0_22.5_45").stdout == GOLDEN
    assert orient("show", "conv-c8h6w5-s1-zeros-float32-nchw-k7a0_22.5_45").stdout == GOLDEN


def test_show_json_and_anchor() -> None:
    shown = printed_json("show", "--kernel-size", 3, "--angles", "90", "--anchor", "start", "--dilation", 2)
    groups = [{"degrees": [90.0], "offsets": [[0, 0], [-2, 0], [-4, 0]], "distinct": 3, "asked_degrees": 90.0}]
    assert shown == {"key": "k3d2sa90", "kernel_size": 3, "groups": groups, "picture": None}
    assert printed_json("show", "t0.0.0.7.-1.2")["groups"][0]["degrees"] == []


def test_an_angle_is_called_as_it_was_asked_for() -> None:
    """30 degrees have the taps of 33.75, by which their key is called; nobody asked for that."""
    shown = orient("show", "--kernel-size", 9, "--angles", "30,33.75,120,-90").stdout
    assert "2 groups: 30, 33.75 deg (taps as 33.75 deg)" in shown
    assert "group 2: 120 deg (taps as 123.75 deg)" in shown
    assert "group 3: 270 deg\n" in shown.replace(" \n", "\n")
    assert [group["asked_degrees"] for group in printed_json("show", "--kernel-size", 9, "--angles", "30,400")["groups"]] == [30.0, 400.0]
    assert "asked_degrees" not in printed_json("show", "k9a33.75")["groups"][0]
    story = orient("explain", "--channels", 4, "--height", 8, "--width", 8, "--kernel-size", 9, "--angles", "0.785,45,405").stdout
    assert "0.785° (taps as 11.25°)" in story
    assert "taps as 45" not in story


def test_show_writes_a_png(tmp_path: Path) -> None:
    out = tmp_path / "taps.png"
    assert str(out) in orient("show", "k7a22.5", "-o", out).stdout
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ((), "taps need --kernel-size, or a key"),
        (("k3a0", "--anchor", "start", "--kernel-size", "3"), "got k3a0 and --kernel-size, --anchor"),
        (("k3b0",), "not a taps key: 'k3b0'"),
        (("--kernel-size", "3", "--anchor", "end"), "--anchor must be center or start, got 'end'"),
        (("k3a0", "-o", os.devnull), "-o takes a plain file, got /dev/null"),  # a rename would replace the device
        (("k3a0", "-o", "nowhere/taps.png"), "nowhere/taps.png"),
    ],
)
def test_show_refuses(args: tuple[str, ...], says: str) -> None:
    assert says in orient("show", *args, code=2).stderr
    assert not Path(os.devnull).is_file()


# ---- records ------------------------------------------------------------------------------------


def record(key: str = "conv-c8h6w5-s1-zeros-float32-nchw-k3a0", median_us: float = 10.0, **fields: Any) -> records_record.Record:
    """A record that this machine's CPU accepts."""
    template, decisions = registry.default(ConvSpec.from_key(key), cpu_device())
    made = {
        "spec": key, "template": template.name, "template_version": template.version, "decisions": dict(decisions), "device": cpu_device().slug,
        "median_us": median_us, "spread_us": 0.1, "default_us": 20.0, "floor_us": 1.0, "error": 1e-6, "provenance": {"date": "2026-11-21"},
    }  # fmt: skip
    return records_record.Record(**{**made, **fields})


@pytest.fixture
def user_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private folder of tuning logs."""
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path / "logs"))
    return tmp_path / "logs"


def test_explain_says_what_answered(user_logs: Path) -> None:
    file = store.append(record())
    (spec,) = printed_json("explain", "--target", "cpu", *TINY, "--angles", "0,90")["specs"]
    tuned, untuned = spec["parts"]
    assert (tuned["step"], tuned["source"], tuned["tried"], tuned["channels"], tuned["degrees"]) == ("user", str(file), [], [0, 4], [0.0])
    assert records_record.Record.model_validate(tuned["record"]) == record()
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


KEY = "conv-c8h6w5-s1-zeros-float32-nchw-k3a0"


def test_a_spec_stands_for_the_options() -> None:
    dw = KEY.replace("conv", "conv_dw")
    assert keys(KEY, dw, KEY) == [KEY, dw]
    assert f"{dw.partition('-')[0]}  8 x 6 x 5  K=3" in orient("explain", dw, "--target", "cpu").stdout
    assert "stands alone, got --channels, --specs too" in orient("explain", KEY, "--channels", 8, "--specs", "keys.txt", code=2).stderr
    assert "not a spec key: 'conv'" in orient("explain", "conv", code=2).stderr
    assert "conv-c8" in orient("build", "conv-c8", code=2).stderr


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


def test_explain_compares_on_a_cpu_and_not_where_a_record_answers(user_logs: Path) -> None:
    store.append(record(KEY))
    tuned, untuned = printed_json("explain", "--target", "cpu", *TINY, "--angles", "0,90")["specs"][0]["parts"]
    assert "candidates" not in tuned
    assert [(row["template"], row["total"], row["chosen"]) for row in untuned["candidates"]] == [("cpu_rows", None, True)]
    said = orient("explain", "--target", "cpu", *TINY, "--angles", "0,90").stdout
    assert "none has an estimate: the first is taken" in said
    assert "* serves" in said
    assert "for nhwc only" in said
    assert "none has an estimate" in orient("explain", "conv-c8h28w28-s1-zeros-float32-nhwc-k7a45", "--arch", "sm_80").stdout


def test_borrowed_figures_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = "no figures for sm_120: sm_90a's (H200 SXM) assumed"
    answer = printed_json("explain", KEY, "--arch", "sm_120", "--sass")
    assert answer["figures"].startswith(words)
    assert answer["specs"][0]["parts"][0]["sass"][0]["bound"] is None
    said = orient("explain", KEY, "--arch", "sm_120", "--sass").stdout
    assert words in said
    assert "predicted for sm_80, sm_89, sm_90a only, and need figures that sm_120 has none of" in said
    assert printed_json("explain", KEY, "--arch", "sm_90")["figures"] == ""
    fake(monkeypatch, "aot", export=lambda spec, device, out: tmp_path)
    assert words in orient("build", KEY, "--arch", "sm_120", "-o", tmp_path).stdout
    assert "no figures for" not in orient("build", KEY, "--arch", "sm_89", "-o", tmp_path).stdout
    gpu = dataclasses.replace(arch_device("sm_120a"), name="RTX 5090")
    monkeypatch.setattr(doctor, "cuda_devices", lambda: (gpu,))
    assert [check.detail for check in doctor._gpus() if "no figures for sm_120a: sm_90a's" in check.detail]


def test_sass_of_the_generic_kernel_says_why_nothing_is_predicted() -> None:
    said = orient("explain", KEY.replace("float32", "float64"), "--arch", "sm_90a", "--sass").stdout
    assert "the generic kernel learns its sizes when it is called, so nothing is counted per output" in said


def test_doctor_and_arch_know_the_same_gpus() -> None:
    """What this NVRTC compiles for is what --arch takes, and doctor prints just that."""
    numbers = {capability(arch) for arch in archs()}
    if nvrtc.version()[0] == 13:
        assert {capability(arch) for arch in nvrtc.archs()} <= numbers
    state, detail, _ = doctor._nvrtc()
    assert state == "ok"
    listed = detail.partition("--arch ")[2].split(", ")
    assert listed == [arch for arch in archs() if capability(arch) in set(map(capability, nvrtc.archs()))]
    for arch in listed:
        assert arch_device(arch).arch == arch
        assert capability(arch) >= (7, 5)


def test_what_has_no_asynchronous_copies_runs_the_generic_kernel() -> None:
    (part,) = printed_json("explain", KEY, "--arch", "sm_75")["specs"][0]["parts"]
    assert part["template"] == "generic"
    assert "for sm_80 and later, whose copies into shared memory may be asynchronous, got sm_75" in part["declined"]["shared_patch"]
    with pytest.raises(Unsupported, match="got sm_75"):
        registry.default(ConvSpec.from_key(KEY), arch_device("sm_75"))


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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_a_terminal_of_any_encoding_is_printed_to(encoding: str) -> None:
    command = [sys.executable, "-m", "tvm_orient", "show", *TINY[-2:], "--angles", "30"]
    for verb in (command, [*command[:3], "explain", "--target", "cpu", *TINY, "--angles", "30"]):
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
        done = subprocess.run(verb, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr.decode()
        said = done.stdout.decode(encoding)
        assert ("30 deg" if encoding == "ascii" or "show" in verb else "30\N{DEGREE SIGN}") in said, said


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


# ---- doctor -------------------------------------------------------------------------------------


def test_doctor_json(user_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    seen = printed_json("doctor")
    assert seen["healthy"] is True
    assert set(seen["works"]) == set(doctor.NEEDS)
    assert seen["works"]["run on the CPU"] == {"works": True, "lacks": []}
    names = [check["name"] for check in seen["checks"]]
    assert {"nvcc", "user logs", "kernel cache", *env.VARIABLES, *(need for needs in doctor.NEEDS.values() for need in needs)} <= set(names)
    assert {check["state"] for check in seen["checks"]} <= {"ok", "missing"}
    assert all(check["hint"] for check in seen["checks"] if check["state"] == "missing")


def test_doctor_finds_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(folder))
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("TVM_ORIENT_LOOKUP", "guess")
    with open(store.append(record()), "a") as file:
        file.write("{\n")
    broken = {check["name"]: check for check in printed_json("doctor", code=1)["checks"] if check["state"] == "broken"}
    assert set(broken) == {"kernel cache", "user logs", "TVM_ORIENT_LOOKUP"}
    assert "0o777" in broken["kernel cache"]["detail"]
    assert "1 records in 1 file" in broken["user logs"]["detail"]
    assert "1 bad lines" in broken["user logs"]["detail"]
    assert "3 broken: user logs, kernel cache, TVM_ORIENT_LOOKUP" in orient("doctor", code=1).stdout


def test_doctor_guards_against_the_crashing_ffi(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor.importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.15" if name == "apache-tvm-ffi" else version(name))
    checks = {check.name: check for check in doctor.examine()}
    assert checks["apache-tvm-ffi"].state == "broken"
    assert "0.1.15" in checks["apache-tvm-ffi"].detail


def test_doctor_tries_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._nvrtc()[0] == "ok"
    monkeypatch.setattr("tvm_orient.toolchain.nvrtc._include_folders", lambda: ())
    state, detail, hint = doctor._nvrtc()
    assert (state, hint.split(" to ")[0]) == ("missing", "pip install 'tvm-orient[compile]'")
    assert "cuda_runtime.h" in detail


def test_doctor_survives_what_it_finds() -> None:
    def explode() -> doctor_files.Finding:
        raise RuntimeError("no such symbol\nand more")

    assert doctor._check("packages", "torch", explode) == doctor.Check("packages", "torch", "broken", "RuntimeError: no such symbol", "reinstall it")


def test_what_works_follows_from_the_checks() -> None:
    every = [doctor.Check("", need, "ok", "") for needs in doctor.NEEDS.values() for need in needs]
    assert not any(doctor.lacks(every).values())
    without = [check for check in every if check.name not in ("GPU", "xgboost")]
    lacking = doctor.lacks(without)
    assert lacking["generate for CUDA without a GPU"] == []
    assert lacking["run on a GPU"] == ["GPU"]
    assert lacking["tune for the CPU"] == ["xgboost"]
    assert {"NVRTC", "GPU kernel"} <= set(doctor.lacks([])["run on a GPU"])


def test_doctor_runs_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.kernels.resolve.explain", lambda *_: pytest.fail("the user's records are not asked"))
    assert doctor._kernel(cpu_device())[0] == "ok"


def test_doctor_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.runtime.serving.Kernel.__call__", lambda _, x, w: x.new_zeros(x.shape))
    state, detail, _ = doctor._kernel(cpu_device())
    assert state == "broken"
    assert re.search(r"built in .* and run, but its result is off by \d.*, at most ", detail)


def test_doctor_minds_no_broken_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled by it."""
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho no toolkit here >&2\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor._nvcc() == ("missing", f"{tmp_path}/nvcc --version failed: no toolkit here", "kernels do without it")


# ---- build and cache ----------------------------------------------------------------------------


def test_build_fills_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    (row,) = printed_json("build", "--target", "cpu", *TINY, "--angles", "0")["kernels"]
    assert row["error"] is None
    assert (Path(row["folder"]) / "kernel.so").is_file()
    assert Path(row["folder"]).name in orient("build", "--target", "cpu", *TINY, "--angles", "0").stdout
    listed = printed_json("cache", "list")
    assert [how["name"] for how in listed["entries"]] == [Path(row["folder"]).name]
    assert "1 kernels" in orient("cache", "list").stdout
    assert "removed 0 kernels" in orient("cache", "clear", "--older-than", 1).stdout
    os.utime(row["folder"], (0, time.time() - 3 * 86400))
    assert printed_json("cache", "clear", "--older-than", 4)["removed"] == 0
    assert printed_json("cache", "clear", "--older-than", 2) == {"directory": str(tmp_path / "kernels"), "removed": 1}
    orient("build", "--target", "cpu", *TINY, "--angles", "0")
    assert printed_json("cache", "clear") == {"directory": str(tmp_path / "kernels"), "removed": 1}
    assert "0 kernels" in orient("cache", "list").stdout


def test_build_exports_for_real(tmp_path: Path) -> None:
    (row,) = printed_json("build", "--target", "cpu", *TINY, "--angles", "0", "-o", tmp_path / "kernels")["kernels"]
    folder = Path(row["folder"])
    assert folder.parent == tmp_path / "kernels"
    assert {"kernel.so", "how.json"} <= {file.name for file in folder.iterdir()}
    assert row["bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_one_failed_build_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(spec: ConvSpec, device: Any, directory: Path) -> Path:
        if spec.op == "conv":
            raise TuningFailed("no luck")
        folder = directory / spec.op
        folder.mkdir(parents=True)
        (folder / "kernel.so").write_bytes(b"12345")
        return folder

    fake(monkeypatch, "aot", export=export)
    result = orient("build", "--arch", "sm_90a", *TINY, "--op", "all", "-o", tmp_path, "--json", code=1)
    rows = json.loads(result.stdout)["kernels"]
    assert [(row["bytes"], row["error"]) for row in rows] == [(0, "no luck"), (5, None), (5, None)]
    assert "no luck" in result.stderr


# ---- verbs whose work is tested elsewhere -------------------------------------------------------


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """Puts a module of the package aside for a made up one."""
    module = types.ModuleType(f"tvm_orient.{name}")
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, f"tvm_orient.{name}", module)


@dataclass(frozen=True)
class Progress:
    part: ConvSpec
    position: int
    parts: int
    trial: int
    trials: int
    failed: int
    best_us: float | None
    default_us: float | None
    seconds: float
    seconds_left: float | None
    waiting: tuple[float, float] | None = None


@dataclass(frozen=True)
class Outcome:
    part: ConvSpec
    record: records_record.Record | None
    default_us: float | None
    best_us: float | None
    trials: int
    failed: int
    resumed: int
    seconds: float
    stages: dict[str, float]
    note: str
    written: Path | None = None
    journal: Path | None = None
    doubt: str = ""


class Stopped(KeyboardInterrupt):
    """As tune.Interrupted and tune.TooBusy."""

    def __init__(self, outcomes: list[Outcome]) -> None:
        super().__init__()
        self.outcomes = outcomes


class TooBusy(EnvironmentProblem):
    def __init__(self, message: str, outcomes: list[Outcome]) -> None:
        super().__init__(message)
        self.outcomes = outcomes


def distinct_parts(spec: ConvSpec) -> list[ConvSpec]:
    return [part for _, _, part in spec.parts()][:2]


def searching(stop: str = "", **seen: Any) -> Callable[..., list[Outcome]]:
    """A tune that measures nothing; stop names the op at which it is interrupted or fails, or how; seen is updated with what it was given."""

    def tune(
        spec: ConvSpec, device: Any, *, trials: int, batch: int, seed: int, report: Callable[[Progress], None], directory: Path | None, **how: Any
    ) -> list[Outcome]:  # fmt: skip
        given.update(how)
        parts = distinct_parts(spec)
        folder = directory or env.user_log_dir()
        stages = {"build": 3.0, "measure": 0.5}
        doubt = "the copy took 1 to 9 us in 5 turns" if stop == "doubt" else ""

        def outcome(place: int, part: ConvSpec) -> Outcome:
            row = None if doubt or place else record(part.key)
            written = None if doubt else folder / device.slug / "conv.jsonl"  # where the default won that is written
            return Outcome(part, row, 20.0, 10.0, trials, 1, 2, 3.5, stages, f"not recorded: {doubt}" if doubt else "", written, None, doubt)

        for place, part in enumerate(parts):
            for trial in range(trials + 1):
                report(Progress(part, place, len(parts), trial, trials, 1, 10.0 if trial else None, 20.0, trial, None))
                if stop in ("first", "interrupt", "busy") and (place, trial) == (0 if stop == "first" else 1, 2):
                    (folder / ".trials" / device.slug).mkdir(parents=True, exist_ok=True)
                    done = [outcome(0, parts[0])] if stop != "first" else []
                    raise TooBusy("other work uses 55% of the cores", done) if stop == "busy" else Stopped(done)
                if stop == "ctrl-c" and (place, trial) == (1, 2):
                    os.kill(os.getpid(), signal.SIGINT)
        if stop == spec.op:
            raise TuningFailed(f"nothing for {spec.op} builds")
        return [outcome(place, part) for place, part in enumerate(parts)]

    given = seen.get("given", {})
    return tune


def fake_tune(monkeypatch: pytest.MonkeyPatch, stop: str = "", **seen: Any) -> None:
    fake(monkeypatch, "tune", distinct_parts=distinct_parts, tune=searching(stop, **seen), Interrupted=Stopped, TooBusy=TooBusy)


def test_tune_reports_in_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch)
    said = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5).stdout
    assert "conv 0° (1 of 2): trial 5/5, 1 failed, best 10.0 us, 2.00x as fast as the default" in said
    assert said.count("trial ") == 4  # the first and the last of each angle
    assert f"2 of 2 angles recorded in {user_logs / cpu_device().slug}: 1 tuned, 1 where the default won" in said
    assert "7.0 s in all: build 6.0 s, measure 1.0 s" in said
    assert "the default stays" in said


def test_tune_json_is_pure(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch)
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--op", "all", "--trials", 5, "--json")
    found = json.loads(result.stdout)
    assert [(outcome["degrees"], outcome["record"] is not None) for outcome in found["outcomes"]] == [([0.0], True), ([90.0], False)] * 3
    assert found["interrupted"] is False
    assert found["failures"] == {}
    assert "trial 5/5" in result.stderr


def test_tune_interrupted_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, "interrupt")
    folder, journal = user_logs / cpu_device().slug, user_logs / ".trials" / cpu_device().slug
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1)
    assert f"interrupted: 1 record in {folder} and the trials in {journal} are kept, and the same command goes on from there" in result.stderr
    assert "2/5" in result.stdout
    found = printed_json("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--log-dir", user_logs / "x", code=1)
    assert (found["interrupted"], found["journal"]) == (True, str(user_logs / "x" / ".trials" / cpu_device().slug))
    assert len(found["outcomes"]) == 1


def test_tune_interrupted_names_only_what_exists(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, "first")
    journal = user_logs / ".trials" / cpu_device().slug
    said = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1).stderr
    assert f"interrupted: no record yet; the trials in {journal} are kept, and the same command goes on from there" in said
    assert journal.is_dir()

    def at_once(*_: Any, **how: Any) -> None:
        raise KeyboardInterrupt

    fake(monkeypatch, "tune", distinct_parts=distinct_parts, tune=at_once, Interrupted=Stopped, TooBusy=TooBusy)
    said = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--log-dir", user_logs / "y", code=1).stderr
    assert "interrupted before the first trial: nothing was written" in said


def test_tune_on_a_busy_machine_ends_with_what_was_found(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    given: dict[str, Any] = {}
    fake_tune(monkeypatch, "busy", given=given)
    args = ("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--op", "all", "--trials", 5, "--wait", 7, "--restart")
    result = orient(*args, code=1)
    assert f"error: other work uses 55% of the cores; the trials until then are kept in {user_logs / '.trials' / cpu_device().slug}" in result.stderr
    assert "1 of 1 angles recorded" in result.stdout
    assert given == {"restart": True, "wait": 7.0}
    found = json.loads(orient(*args, "--json", code=1).stdout)
    assert (found["busy"], len(found["outcomes"])) == ("other work uses 55% of the cores", 1)


def test_tune_says_what_it_does_not_believe(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, "doubt")
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1)
    assert "0 of 2 angles recorded: nothing was written" in result.stdout
    assert "not recorded: the copy took 1 to 9 us in 5 turns" in " ".join(result.stdout.split())
    assert "error: 2 of 2 angles are not recorded: what was measured contradicts itself" in result.stderr


def test_ctrl_c_waits_for_the_trial_that_is_running(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, "ctrl-c")
    before = signal.getsignal(signal.SIGINT)
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--trials", 5, code=1)
    assert "error: stopping after this trial; Ctrl-C again stops at once" in result.stderr
    assert "error: interrupted before the first trial: nothing was written" in result.stderr  # by a tune that writes none
    assert "3/5" in result.stdout
    assert "4/5" not in result.stdout
    assert signal.getsignal(signal.SIGINT) is before


def test_tune_goes_on_after_an_op_that_fails(monkeypatch: pytest.MonkeyPatch, user_logs: Path) -> None:
    fake_tune(monkeypatch, "conv_dx")
    result = orient("tune", "--target", "cpu", *TINY, "--angles", "0,90", "--op", "all", "--trials", 5, "--json", code=1)
    found = json.loads(result.stdout)
    assert len(found["outcomes"]) == 4
    assert list(found["failures"].values()) == ["nothing for conv_dx builds"]
    assert "error: nothing for conv_dx builds" in result.stderr


def test_tune_board_in_a_terminal() -> None:
    from rich.console import Console

    from tvm_orient.cli.progress import Board

    spec = ConvSpec("conv", 8, 6, 5, Taps.from_key("k3a0_90_45"))
    out = io.StringIO()
    printer = Console(force_terminal=True, width=100, color_system=None, file=out)
    parts = [part for _, _, part in spec.parts()]
    with Board(parts, printer) as board:
        board.report(Progress(parts[0], 0, 3, 3, 4, 1, 10.0, 20.0, 3.0, 0.0))
        board.report(Progress(parts[1], 1, 3, 2, 4, 0, None, 2000.0, 8.0, 65.0))
    assert "45°" in out.getvalue()
    board.report(Progress(parts[1], 1, 3, 2, 4, 0, None, 2000.0, 8.0, 65.0, (0.55, 110.0)))
    printer.print(board.table())
    assert "other work uses 55% of the cores: waiting for it to end, 1 min 50 s at most" in out.getvalue()
    board.report(Progress(parts[1], 1, 3, 2, 4, 0, None, 2000.0, 8.0, 65.0))
    out.truncate(0)
    printer.print(board.table())
    assert "about 1 min 05 s left" in out.getvalue()
    rows = [re.sub("━+.?━*", "", line).split() for line in out.getvalue().strip("\0").splitlines() if "°" in line]
    assert rows == [
        ["0°", "3/4", "1", "10.0", "us", "20.0", "us", "2.00x", "3.0", "s"],
        ["90°", "2/4", "0", "-", "2.00", "ms", "-", "8.0", "s"],
        ["45°"],
    ]


def test_tune_for_real(user_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # the lock of the device: whoever else tunes here is not waited for
    monkeypatch.setattr("tvm_orient.evaluate.machine.others_busy", lambda: 0.0)  # other tests are no reason to wait,
    result = CliRunner(env=PLAIN).invoke(app, ["tune", "--target", "cpu", *TINY, "--kernel-size", "5", "--angles", "45,135", "--trials", "4", "--batch", "1"])
    said = result.stdout
    assert result.exit_code == ("not recorded" in said), result.output  # but may be one to record nothing
    assert "conv 45° (1 of 1): trial 4/4, best" in said
    assert re.search(r"45° +4 +0 +0 +[\d.]+ [mu]s +[\d.]+ [mu]s +[\d.]+x ", said), said
    assert "135° use the records of their mirror images" in said


def test_bench_prints_and_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from rich.table import Table

    @dataclass(frozen=True)
    class Row:
        spec: str
        method: str
        ms: float
        note: str = ""
        ours: bool = True

    def bench(specs: list[ConvSpec], device: Any, *, batch: int, peers: bool, repeats: int, report: Callable[[str], None]) -> list[Row]:
        report("conv: ours")
        report("conv: theirs")
        return [Row(spec.key, "peers" if peers else "alone", batch * repeats, "wrong: off by 1" if spec.op == "conv_dw" else "") for spec in specs]

    def table(rows: list[Row]) -> Table:
        made = Table("spec", "ms")
        for row in rows:
            made.add_row(row.spec, str(row.ms))
        return made

    fake(monkeypatch, "bench", bench=bench, table=table, write_csv=lambda rows, path: path.write_text(f"{len(rows)} rows\n"))
    result = orient("bench", "--target", "cpu", *TINY, "--angles", "0", "--batch", 4, "--repeats", 3, "--csv", tmp_path / "speed.csv")
    assert "12" in result.stdout
    assert result.stderr == "conv: ours\n"  # now and then a line
    assert (tmp_path / "speed.csv").read_text() == "1 rows\n"
    found = printed_json("bench", "--target", "cpu", *TINY, "--angles", "0", "--no-peers", "--op", "all", code=1)  # one kernel of ours is wrong
    assert [row["method"] for row in found["rows"]] == ["alone"] * 3
    assert found["batch"] == 8


def test_demo_passes_its_code_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    fake(monkeypatch, "demo", run=lambda out, trials, console: seen.append((out, trials)) or 1)
    orient("demo", "-o", tmp_path, "--trials", 3, code=1)
    assert seen == [(tmp_path, 3)]


# ---- units --------------------------------------------------------------------------------------


def test_units() -> None:
    assert [duration(value) for value in (None, 0.04, 59.94, 59.96, 65)] == ["-", "0.0 s", "59.9 s", "1 min 00 s", "1 min 05 s"]
    assert [duration(value) for value in (3600, 7384)] == ["1 h 00 min", "2 h 03 min"]
    assert [microseconds(value) for value in (None, 1.234, 12.34, 123.4, 1234.0, 123400.0)] == ["-", "1.23 us", "12.3 us", "123 us", "1.23 ms", "123 ms"]
    assert [size(value) for value in (0, 999, 1000, 34003, 12_345_678, 3 * 10**9)] == ["0 B", "999 B", "1.0 kB", "34.0 kB", "12.3 MB", "3.0 GB"]
    assert [speedup(20.0, 10.0), speedup(None, 10.0), speedup(20.0, None)] == ["2.00x", "-", "-"]
    assert (angle(Taps.from_key("k3a0_45")), degrees(Taps.from_key("k3a0_45"))) == ("0° 45°", [0.0, 45.0])
    assert (angle(Taps.from_key("t0.0.0.7.-1.2")), degrees(Taps.from_key("t0.0.0.7.-1.2"))) == ("free", [])
