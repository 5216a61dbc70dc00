"""check: right kernels pass in every way, a kernel made wrong is found with its place, angle and template, and what cannot be done is said."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from tests.support.helpers import line, nvrtc_missing, spec_of
from tvm_orient.cli.application import app
from tvm_orient.compiler import library, lower
from tvm_orient.errors import EnvironmentProblem, InvalidArgument, Unsupported
from tvm_orient.evaluate import check as checking
from tvm_orient.evaluate import walled
from tvm_orient.evaluate.check import WAYS, check, forced
from tvm_orient.evaluate.cuda_emulator import Blocks
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.sass.checked_memory import Fault
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, default_choices, generic_choices
from tvm_orient.toolchain import nvrtc

CPU, GPU = cpu_device(), arch_device("sm_90a")
SMALL = spec_of("conv", 4, 5, 6, line(0, 45, k=3))
PLAIN = {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb", "FORCE_COLOR": None}
needs_nvrtc = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")


def orient(*args: object, code: int = 0) -> Result:
    """What `tvm-orient check ARGS` does."""
    result = CliRunner(env=PLAIN).invoke(app, ["check", *map(str, args)])
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


def by_templates(spec: ConvSpec, *names: str) -> list[Choice]:
    """The default of one template for each angle."""
    chosen = []
    for (_, _, part), name in zip(spec.parts(), names, strict=True):
        template = registry.find(name)
        assert template.declines(part, GPU) is None
        chosen.append(Choice.of(template, template.default(part, GPU)))
    return chosen


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> str:
    """A template that reads the last tap of each line one pixel too far to the right; its name."""
    right = lower.schedule_part

    def wrong(part: ConvSpec, channels: int, device: Any, choice: Choice, batch: Any) -> Any:
        if choice.template == "direct":
            *before, (h, w) = part.taps.table[0]
            part = dataclasses.replace(part, taps=Taps.from_offsets([[*before, (h, w + 1)]]))
        return right(part, channels, device, choice, batch)

    monkeypatch.setattr(lower, "schedule_part", wrong)
    return "direct"


# ---- what is right ------------------------------------------------------------------------------


@needs_nvrtc
def test_a_kernel_for_a_gpu_is_right_in_every_way() -> None:
    told: list[str] = []
    found = check(SMALL, GPU, report=told.append)
    assert told == [one.way for one in found.outcomes] == list(WAYS["cuda"])
    assert found.right
    for one in found.outcomes:
        assert (one.status, one.reasons, one.wrong) == ("right", (), (0, 0))
        assert one.error is not None
        assert 0 < one.error <= found.tolerance
        assert one.worst is not None
        assert abs(one.worst.got - one.worst.expected) == pytest.approx(one.error)
        assert one.worst.template in {choice.template for choice in found.choices}
        assert one.seconds > 0


@pytest.mark.parametrize("op", ["conv", "conv_dw"])
def test_a_kernel_for_this_cpu(op: str) -> None:
    spec = dataclasses.replace(SMALL, op=op)
    found = check(spec, CPU, batch=3, seed=1)
    (one,) = found.outcomes
    assert (one.way, one.status) == ("compiled", "right")
    assert one.worst is not None
    assert len(one.worst.index) == (2 if op == "conv_dw" else 4)
    assert check(spec, CPU, batch=3, seed=2).tolerance != found.tolerance


def test_the_generic_kernel_with_what_torch_adds_left_out() -> None:
    spec = dataclasses.replace(SMALL, layout="nhwc", bias=True, activation="gelu")
    found = check(spec, GPU, generic_choices(spec, GPU), ways=["serial"])
    assert found.right
    assert found.computed == dataclasses.replace(SMALL, layout="nchw")
    assert check(SMALL, CPU, generic_choices(SMALL, CPU)).right


# ---- what is wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["serial", "blocks"])
def test_a_shifted_tap_is_found_with_its_angle_and_template(shifted: str, way: str) -> None:
    choices = by_templates(SMALL, "shared_patch", shifted)
    found = check(SMALL, GPU, choices, ways=[way])
    assert not found.right
    (one,) = found.outcomes
    assert one.status == "wrong"
    assert one.wrong[0] == 0 < one.wrong[1]
    assert one.worst is not None
    assert (one.worst.group, one.worst.template) == (1, shifted)
    assert one.worst.index[1] in (2, 3)
    assert one.error is not None
    assert one.error > 100 * found.tolerance
    # the place is that of the operands: what the reference says there is what the report says
    case = checking._Case(SMALL, GPU, tuple(choices), walled.operands(SMALL, 2))
    assert one.worst.expected == float(case.reference[one.worst.index])


def test_a_weight_gradient_is_wrong_at_the_tap_that_is_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, right = dataclasses.replace(SMALL, op="conv_dw"), lower.schedule_part

    def wrong(part: ConvSpec, *rest: Any) -> Any:
        if part == spec.parts()[1][2]:
            *before, (h, w) = part.taps.table[0]
            part = dataclasses.replace(part, taps=Taps.from_offsets([[*before, (h + 1, w)]]))
        return right(part, *rest)

    monkeypatch.setattr(lower, "schedule_part", wrong)
    (one,) = check(spec, GPU, ways=["serial"]).outcomes
    assert one.status == "wrong"
    assert one.worst is not None
    assert one.worst.index[1] == 2  # the last tap
    assert one.worst.group == 1
    assert one.wrong == (0, 2)  # one tap of each of two channels


def test_a_missing_barrier_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    source = library.cuda_source
    monkeypatch.setattr(library, "cuda_source", lambda *given: source(*given).replace("__syncthreads();", ""))
    (one,) = check(SMALL, GPU, by_templates(SMALL, "shared_patch", "shared_patch"), ways=["blocks"]).outcomes
    assert one.status == "wrong"
    assert one.reasons == ("the result depends on the order in which threads run",)
    assert one.error == float("inf")  # shared memory that nobody has written is NaN


def test_a_barrier_that_threads_may_part_at_and_a_write_beyond_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    source, choices = library.cuda_source, by_templates(SMALL, "shared_patch", "shared_patch")
    parted = "if (((int)threadIdx.x) < 4) {\n    __syncthreads();\n  }"
    monkeypatch.setattr(library, "cuda_source", lambda *given: source(*given).replace("__syncthreads();", parted, 1))
    (one,) = check(SMALL, GPU, choices, ways=["blocks"]).outcomes
    assert (one.status, one.error, one.worst) == ("wrong", None, None)
    assert "need not agree on" in one.reasons[0]
    monkeypatch.setattr(library, "cuda_source", source)
    called = walled.call(SMALL, lambda x, w, y: (y.fill_(0), torch.as_strided(y, (1,), (1,), y.storage_offset() - 1).fill_(0)), operands(), None)
    assert called.faults == ("wrote past the end of a tensor of shape (2, 4, 5, 6)",)
    called = walled.call(SMALL, lambda x, w, y: (y.fill_(0), x.fill_(0)), operands(), None)
    assert called.faults == ("changed its operand of shape (2, 4, 5, 6)",)


def operands() -> tuple[torch.Tensor, ...]:
    return walled.operands(SMALL, 2)


# ---- what is refused ----------------------------------------------------------------------------


def test_what_is_asked_wrongly() -> None:
    with pytest.raises(InvalidArgument, match="must be one of compiled, got 'serial'"):
        check(SMALL, CPU, ways=["serial"])
    with pytest.raises(InvalidArgument, match="batch must be a whole number >= 1, got 0"):
        check(SMALL, CPU, batch=0)
    with pytest.raises(InvalidArgument, match="one for each part of the spec, of which there are 2, got 1"):
        check(SMALL, CPU, default_choices(SMALL, CPU)[:1])


def test_forced_choices() -> None:
    chosen = forced(SMALL, GPU, "shared_patch", {"patch_h": 1})
    assert [(one.template, dict(one.decisions)["patch_h"]) for one in chosen] == [("shared_patch", 1)] * 2
    assert forced(SMALL, GPU, "generic", {}) == generic_choices(SMALL, GPU)
    for name, decisions, kind, said in [
        ("nothing", {}, InvalidArgument, "unknown template 'nothing'"),
        ("shared_patch", {"speed": 9}, InvalidArgument, "template shared_patch decides on .*, got speed"),
        ("shared_patch", {"patch_h": 999}, InvalidArgument, "template shared_patch cannot take patch_h=999"),
        ("two_pass_dw", {}, Unsupported, "template two_pass_dw does not serve .*: for conv_dw only"),
        ("generic", {"patch_h": 1}, InvalidArgument, "has no decisions, got patch_h"),
    ]:
        with pytest.raises(kind, match=said):
            forced(SMALL, GPU, name, decisions)


def test_what_the_emulator_does_not_know_it_refuses() -> None:
    choices = by_templates(SMALL, "shared_patch", "shared_patch")
    module = lower.scheduled(SMALL, GPU, choices, 2)
    source = library.cuda_source(module, GPU)
    with pytest.raises(Unsupported, match="shared buffers of float, half and nv_bfloat16"):
        Blocks(module, GPU, re.sub(r"__shared__ .*?float (\w+)", r"__shared__ double \1", source))
    with pytest.raises(Unsupported, match=r"does not know something in this kernel: .*__ballot_sync"):
        Blocks(module, GPU, source.replace("__syncthreads();", "__ballot_sync(1, 1); __syncthreads();", 1))
    with pytest.raises(Unsupported, match="one kernel for each nest"):
        Blocks(module, GPU, source[: source.rindex('extern "C"')])
    with pytest.raises(Unsupported, match="kernels of a fixed size"):
        Blocks(lower.scheduled(SMALL, GPU, choices), GPU, source)
    with pytest.raises(InvalidArgument, match="got no w, y"):
        Blocks(module, GPU, source)(torch.zeros(1), names=("x",))


def test_without_a_compiler_the_emulator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.evaluate.cuda_emulator.shutil.which", lambda _: None)
    (one,) = check(SMALL, GPU, ways=["blocks"]).outcomes
    assert (one.status, one.wrong, one.worst) == ("left out", (), None)
    assert "install g++" in one.reasons[0]


def test_machine_code_that_is_not_followed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = check(SMALL, arch_device("sm_75"), ways=["machine"]).outcomes
    assert one.status == "left out"
    assert "compute capability 8.0 to 9.0, got sm_75" in one.reasons[0]

    def missing(*_: Any) -> bytes:
        raise EnvironmentProblem("compiling CUDA needs NVRTC, which is not installed")

    monkeypatch.setattr(nvrtc, "compile_cubin", missing)
    found = check(SMALL, GPU, ways=["machine"])
    assert not found.right
    assert found.outcomes[0].reasons == ("compiling CUDA needs NVRTC, which is not installed",)


def test_a_cpu_of_other_instructions_is_left_out() -> None:
    other = dataclasses.replace(CPU, features=f"{CPU.features} avx99")
    (one,) = check(SMALL, other, default_choices(SMALL, CPU)).outcomes
    assert one.status == "left out"
    assert "this CPU lacks avx99" in one.reasons[0]


# ---- the command --------------------------------------------------------------------------------

KEY = SMALL.key


def test_the_table_says_where_it_is_wrong(shifted: str) -> None:
    said = orient(KEY, "--arch", "sm_90a", "--template", shifted, "--way", "serial", code=1)
    for text in ("wrong", "at n, c, h, w", "rounding explains an error of at most", "45°", shifted, "elements that are wrong, by angle"):
        assert text in said.stdout
    assert f"error: {KEY}: wrong by serial" in said.stderr
    found = json.loads(orient(KEY, "--arch", "sm_90a", "--template", shifted, "--way", "serial", "--json", code=1).stdout)
    ((one,),) = (answer["ways"] for answer in found["checks"])
    assert (one["status"], one["worst"]["template"]) == ("wrong", shifted)
    assert one["worst"]["degrees"] in ([0.0], [45.0])
    assert not found["checks"][0]["right"]


def test_json_is_all_of_standard_output() -> None:
    found = json.loads(orient(KEY, "--target", "cpu", "--json").stdout)
    (one,) = found["checks"]
    assert (one["spec"], one["computed"], one["right"], one["batch"], one["seed"]) == (KEY, KEY, True, 2, 0)
    assert [part["channels"] for part in one["parts"]] == [[0, 2], [2, 4]]
    assert [way["status"] for way in one["ways"]] == ["right"]
    assert found["device"]["kind"] == "cpu"


def test_what_is_no_number_is_a_word_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(checking._GONE, "serial", lambda case: [checking.Called(torch.full_like(case.reference, torch.nan).float(), ())])
    (one,) = json.loads(orient(KEY, "--arch", "sm_90a", "--way", "serial", "--json", code=1).stdout)["checks"][0]["ways"]
    assert (one["error"], one["worst"]["got"]) == ("inf", "nan")

    def broken(_: Any) -> list[Any]:
        raise Fault("kernel 0: a vector access that is not aligned")

    monkeypatch.setitem(checking._GONE, "serial", broken)
    assert "serial: kernel 0: a vector access that is not aligned" in orient(KEY, "--arch", "sm_90a", "--way", "serial", code=1).stdout


def test_exit_statuses() -> None:
    assert "right" in orient(KEY, "--target", "cpu").stdout
    said = orient(KEY, "--arch", "sm_75", "--way", "blocks", code=1)
    assert "nothing was checked: blocks: the block emulator takes kernels of a fixed size" in said.stderr
    for args, text in [
        (("--target", "cpu", "--way", "serial"), "must be one of compiled, got 'serial'"),
        (("--target", "cpu", "--decisions", "a=1"), "no --template: name one"),
        (("--arch", "sm_90a", "--template", "shared_patch", "--decisions", "stages"), "by name, separated by commas, got 'stages'"),
        (("--arch", "sm_90a", "--template", "shared_patch", "--decisions", "stages=9"), "cannot take stages=9"),
        (("--arch", "sm_90a", "--template", "cpu_rows"), None),
        (("--target", "cpu", "--batch", "0"), None),
    ]:
        result = orient(KEY, *args, code=1 if "cpu_rows" in args else 2)
        assert text is None or text in result.stderr


def test_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines of Python, and the key that they print is that of its commands."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "wrong-result.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    exec(code, {})
    key, error, *_, bound = capsys.readouterr().out.split()
    assert f"tvm-orient check {key}" in page
    assert float(error) <= float(bound)
    named = re.findall(r"--template (\w+)[^\n]*?(?:\\\n *)?--decisions (\S+)", page)
    assert named
    for template, decisions in named:
        assert {pair.split("=")[0] for pair in decisions.split(",")} <= set(registry.find(template).knobs(SMALL.parts()[0][2], GPU)), template
