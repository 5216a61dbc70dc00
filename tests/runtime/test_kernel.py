"""From the op to a loaded kernel: what is found, what is built, what is refused, and what a fresh process does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_orient as to
from tests.support.helpers import OPS, assert_close, line, operands, spec_of
from tvm_orient import env, ops
from tvm_orient.kernels import cache, manifest
from tvm_orient.kernels.build import build
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import loader, serving
from tvm_orient.runtime.kernel import Kernel
from tvm_orient.schedules import choices
from tvm_orient.schedules.choices import Choice

CPU = cpu_device()
SPEC = spec_of("conv", 3, 6, 7, line(0, 45, k=5))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[ConvSpec]:
    """The specs that launch asked build for, in order; nothing is loaded at the start."""
    asked: list[ConvSpec] = []

    def counted(spec: ConvSpec, *given: Any, **rest: Any) -> Path:
        asked.append(spec)
        return build(spec, *given, **rest)

    serving.forget()
    monkeypatch.setattr(serving, "build", counted)
    return asked


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_kernel_takes_any_batch(op: str, batch: int) -> None:
    spec = spec_of(op, 3, 6, 7, line(0, 45, k=5), 2)
    given = operands(spec, batch)
    out = serving.kernel(spec, CPU)(*given)
    assert out.is_contiguous()
    assert_close(out, spec, given)


def test_a_kernel_is_loaded_once(builds: list[ConvSpec]) -> None:
    first = serving.kernel(SPEC, CPU)
    assert serving.kernel(SPEC, CPU) is first
    x, w = operands(SPEC, 2)
    for _ in range(3):
        to.tap_conv2d(x, w, SPEC.taps)
    assert builds == [SPEC]


def test_forget_asks_again(builds: list[ConvSpec]) -> None:
    x, w = operands(SPEC, 2)
    before = to.tap_conv2d(x, w, SPEC.taps)
    first = serving.kernel(SPEC, CPU)
    serving.forget()
    after = to.tap_conv2d(x, w, SPEC.taps)
    assert builds == [SPEC, SPEC], "the op itself asks again, not only launch"
    assert serving.kernel(SPEC, CPU) is not first
    assert torch.equal(before, after)


def test_a_kernel_that_was_forgotten_still_runs() -> None:
    x, w = operands(SPEC, 2)
    kernel = serving.kernel(SPEC, CPU)
    serving.forget()
    assert_close(kernel(x, w), SPEC, (x, w))


def test_warmup(builds: list[ConvSpec]) -> None:
    specs = [SPEC, spec_of("conv_dx", 3, 6, 7, line(0, 45, k=5))]
    to.warmup(specs)
    to.warmup(SPEC)
    assert builds == specs
    x, w = operands(SPEC, 2)
    to.tap_conv2d(x.requires_grad_(), w, SPEC.taps).sum().backward()
    assert builds == specs, "what was warmed up is what the op runs"


def test_every_entry_says_how_it_was_made() -> None:
    for op in OPS:
        path = build(spec_of(op, 3, 6, 7, line(0, 45, k=5)), CPU)
        how = json.loads((path.parent / manifest.HOW).read_text())
        assert path.name == manifest.KERNEL
        assert how["key"]["spec"] == f"{op}-c3h6w7-s1-zeros-float32-nchw-k5a0_45"
        assert (how["key"]["device"], how["key"]["model"], how["key"]["features"]) == (CPU.kin, CPU.model, CPU.features)
        assert [choice[0] for choice in how["key"]["choices"]] == [c.template for c in choices.default_choices(ConvSpec.from_key(how["key"]["spec"]), CPU)]
        assert how["facts"]["steps"] == ["default", "default"]
        assert set(how["facts"]["seconds"]) == {"parts", "layer"}
        assert ("workspace" in how["facts"]) == (op == "conv_dw")
        assert "apache-tvm" in dict(map(tuple, how["key"]["toolchain"]))


def test_choices_are_part_of_the_entry() -> None:
    spec = spec_of("conv", 2, 6, 18, line(45, k=5))
    (default,) = choices.default_choices(spec, CPU)
    other = Choice(default.template, default.version, tuple((k, 1 - v if k == "tap_outer" else v) for k, v in default.decisions))
    assert other != default
    paths = [build(spec, CPU, [choice]) for choice in (default, other)]
    assert paths[0] != paths[1]
    given = operands(spec, 2)
    for path in paths:
        assert_close(Kernel(spec, CPU, path)(*given), spec, given)


def test_two_threads_at_once(builds: list[ConvSpec]) -> None:
    """Many threads ask for the same kernel and for others, all at the same moment: each is built once and all are right."""
    specs = [spec_of("conv", 2, 5, width, line(45, k=3)) for width in (6, 7)]
    gate, results = threading.Barrier(8), {}

    def work(index: int) -> None:
        spec = specs[index % 2]
        given = operands(spec, 2, seed=index)
        gate.wait()
        results[index] = (to.tap_conv2d(*given, spec.taps), spec, given)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(spec.width for spec in builds) == [6, 7]
    assert len(results) == 8
    for out, spec, given in results.values():
        assert_close(out, spec, given)


def test_one_kernel_in_many_threads() -> None:
    kernel = serving.kernel(spec_of("conv_dw", 3, 6, 7, line(0, 45, k=5)), CPU)
    results: dict[int, Any] = {}

    def work(index: int) -> None:
        given = operands(kernel.spec, 4, seed=index)
        for _ in range(50):
            results[index] = (kernel(*given), given)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for out, given in results.values():
        assert_close(out, kernel.spec, given)


@pytest.mark.parametrize("op", OPS)
def test_more_elements_than_32_bits_count(op: str) -> None:
    """Refused before memory is taken for the result: the operands are one number, expanded."""
    spec = spec_of(op, 3, 6, 7, line(0, 45, k=5), 2)
    batch = 2**31 // (3 * 6 * 7) + 1
    shapes = {"x": (batch, 3, 6, 7), "dy": (batch, 3, 3, 4), "w": (3, 5)}
    first, second = (torch.zeros(1).expand(shapes[name]) for name in {"conv": ("x", "w"), "conv_dx": ("dy", "w"), "conv_dw": ("x", "dy")}[op])
    with pytest.raises(to.Unsupported, match=rf"at most {2**31 - 1} elements.*got {batch * 3 * 6 * 7}: split the batch"):
        serving.kernel(spec, CPU)(first, second)


def test_more_elements_of_workspace_than_32_bits_count() -> None:
    """A plane of 8 pixels meets 15 distinct taps: the partial sums are more than the pixels."""
    spec = spec_of("conv_dw", 1, 1, 8, line(0, k=31))
    batch = 2**31 // 15 + 1
    x = torch.zeros(1).expand(batch, 1, 1, 8)
    assert x.numel() < 2**31
    with pytest.raises(to.Unsupported, match=f"got {batch * 15}"):
        serving.kernel(spec, CPU)(x, x)


def test_operands_that_are_not_aligned_are_copied() -> None:
    kernel = serving.kernel(SPEC, CPU)
    x, w = operands(SPEC, 2)
    for offset in (1, 2, 4, 8, 16):
        moved = torch.cat([x.new_zeros(offset), x.flatten()])[offset:].view(x.shape)
        assert kernel._laid(moved).data_ptr() % kernel.alignment == 0
        assert torch.equal(kernel(moved, w), kernel(x, w))
    assert kernel._laid(x) is x or x.data_ptr() % kernel.alignment


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("op", OPS)
def test_calls_that_differ_in_addresses_and_strides(op: str, layout: str) -> None:
    """Of a call the op remembers sizes and strides, never where the operands lie."""
    spec = spec_of(op, 3, 6, 1, line(0, 90, k=5), layout=layout)
    plane = (6, 1) if op == "conv_dx" else ()
    given = [t.contiguous(memory_format=torch.channels_last) if layout == "nhwc" and t.dim() == 4 else t for t in operands(spec, 2)]
    run = lambda first, second: getattr(ops, op)(first, second, spec.taps.key, *plane, spec.stride, spec.padding_mode)  # noqa: E731
    want = run(*given)
    assert_close(want, spec, given)
    for which in (0, 1):
        for offset in (0, 1, 3, 16):  # the same strides, aligned or not
            moved = torch.zeros(offset + 2 * given[which].numel())[offset:].as_strided(given[which].shape, given[which].stride()).copy_(given[which])
            assert torch.equal(run(*given[:which], moved, *given[which + 1 :]), want)
        strides = [7 if size == 1 else step for size, step in zip(given[which].shape, given[which].stride(), strict=True)]
        assert torch.equal(run(*given[:which], given[which].as_strided(given[which].shape, strides), *given[which + 1 :]), want)
        spread = torch.zeros(*given[which].shape, 2)[..., 1].copy_(given[which])
        assert torch.equal(run(*given[:which], spread, *given[which + 1 :]), run(*given[:which], spread.contiguous(), *given[which + 1 :]))
    assert run(*(t[:0] if t.dim() == 4 else t for t in given)).shape == ((3, 5) if op == "conv_dw" else (0, *want.shape[1:]))
    assert not want._is_view(), "autograd would treat it apart"


# ---- fresh processes ----------------------------------------------------------------------------

_CALL = """
import sys, torch, tvm_orient as to
x, w = torch.ones(1, 2, 4, 5, requires_grad=True), torch.ones(2, 3, requires_grad=True)
y = to.oriented_conv2d(x, w, [0.0, 0.8])
y.sum().backward()
print("tvm" in sys.modules, y.sum().item(), x.grad.sum().item(), w.grad.sum().item())
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A fresh process with a cache of its own."""
    given = {**os.environ, "TVM_ORIENT_CACHE_DIR": str(folder / "kernels"), **environment}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, check=False)


def test_a_second_process_does_without_the_compiler(tmp_path: Path) -> None:
    first = run(_CALL, tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("False "), "TVM is imported by the process that compiles, and by no other"
    assert sorted(ConvSpec.op_of_key(entry.key["spec"]) for entry in cache.KernelCache(tmp_path / "kernels").entries()) == ["conv", "conv_dw", "conv_dx"]
    second = run(_CALL, tmp_path, TVM_ORIENT_BUILD="0")
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout


def test_compiling_forbidden(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_ORIENT_BUILD", "0")
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    serving.forget()
    assert env.building_call() == 0
    x, w = operands(SPEC, 2)
    with pytest.raises(
        to.EnvironmentProblem, match=r"no kernel for conv-c3h6w7-.* and compiling is off \(TVM_ORIENT_BUILD=0\): run `tvm-orient build.*or unset it"
    ):
        to.tap_conv2d(x, w, SPEC.taps)
    monkeypatch.setenv("TVM_ORIENT_BUILD", "1")
    assert_close(to.tap_conv2d(x, w, SPEC.taps), SPEC, (x, w))
    serving.forget()
    monkeypatch.setenv("TVM_ORIENT_BUILD", "0")
    assert_close(to.tap_conv2d(x, w, SPEC.taps), SPEC, (x, w))
    serving.forget()


def test_a_cache_that_others_can_write_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    serving.forget()
    with pytest.raises(to.EnvironmentProblem, match="nobody else may write, got mode 0o777"):
        serving.kernel(SPEC, CPU)


def test_no_runtime_library(monkeypatch: pytest.MonkeyPatch) -> None:
    real = sys.modules.pop("tvm", None)
    monkeypatch.setattr(loader, "_runtimes", [])
    try:
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        with pytest.raises(to.EnvironmentProblem, match=r"libtvm_runtime.so of apache-tvm, which is not installed: pip install"):
            loader.load_runtime("cpu")
    finally:
        if real is not None:
            sys.modules["tvm"] = real


def test_importing_costs_neither_torch_nor_tvm(tmp_path: Path) -> None:
    done = run("import sys, tvm_orient; print([m for m in ('torch', 'tvm', 'typer', 'rich', 'click') if m in sys.modules])", tmp_path)
    assert done.stdout == "[]\n", done.stderr


def test_kernels_of_the_op_are_those_of_the_spec() -> None:
    """The op's own table of kernels tells apart everything that a spec does."""
    x, w = torch.randn(1, 2, 4, 4), torch.randn(2, 3)
    seen = set()
    for taps in (line(0, k=3), line(90, k=3)):
        for stride in ((1, 1), (2, 1)):
            for padding in ("zeros", "circular"):
                y = ops.conv(x, w, taps.key, stride, padding)
                spec = spec_of("conv", 2, 4, 4, taps, stride, padding)
                assert_close(y, spec, (x, w))
                seen.add(tuple(y.flatten().tolist()))
    assert len(seen) == 8
