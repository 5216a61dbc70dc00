"""What the kernel tests share: random operands between NaN walls, three ways to run a spec, and the comparison with the oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tvm_orient.codegen.names import kernel_names
from tvm_orient.compiler import lower
from tvm_orient.evaluate import reference, tolerance, walled
from tvm_orient.evaluate.walled import operands
from tvm_orient.evaluate.walled import workspace_of as space_of
from tvm_orient.problem import generic_args
from tvm_orient.problem.device import Device, arch_device, cpu_device
from tvm_orient.problem.generic_args import GenericArgs
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import kernel, serving
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import Template
from tvm_orient.schedules.choices import Choice, default_choices, generic_choices

OPS = ("conv", "conv_dx", "conv_dw")
EIGHT = tuple(math.pi * i / 8 for i in range(8))
AHEAD = {"tiles_per_block": 2, "stages": 2, "channels_per_block": 1}  # decisions by which the copies of one tile are on their way while another is computed


def line(*degrees: float, k: int, **rest: Any) -> Taps:
    """Taps of lines at these angles in degrees."""
    return Taps.oriented([math.radians(d) for d in degrees], k, **rest)


def spec_of(
    op: str, channels: int, height: int, width: int, taps: Taps, stride: Any = 1, padding: str = "zeros", dtype: str = "float32", layout: str = "nchw"
) -> ConvSpec:
    """A ConvSpec with its fields in the order that a table of cases is read."""
    return ConvSpec(op, channels, height, width, taps, stride=stride, padding_mode=padding, dtype=dtype, layout=layout)


def counted(monkeypatch: pytest.MonkeyPatch, what: Callable[[ConvSpec, tuple[Any, ...]], Any]) -> list[Any]:
    """what(spec, operands) of every call of a kernel from now on, in order."""
    calls: list[Any] = []
    prepared = kernel.Kernel.prepared

    def watched(self: kernel.Kernel, *like: Tensor) -> kernel.Call:
        call = prepared(self, *like)
        return lambda *given: (calls.append(what(self.spec, given)), call(*given))[1]

    serving.forget()  # calls that are prepared already
    monkeypatch.setattr(kernel.Kernel, "prepared", watched)
    return calls


def call(
    spec: ConvSpec, function: Callable[..., object], given: Sequence[Tensor], workspace: tuple[int, int] | None, plan: GenericArgs | None = None
) -> Tensor:
    """The result of a compiled function, started from NaN; fails where it wrote past the end of a buffer or changed an operand.

    plan: what a generic kernel is told.
    """
    called = walled.call(spec, function, given, workspace, plan)
    assert not called.faults, f"{spec}: {'; '.join(called.faults)}"
    return called.result


def stored_rounding(spec: ConvSpec, given: Sequence[Tensor]) -> float:
    """What an epilogue in passes of its own adds to the error of a spec: a rounding to its dtype for each pass."""
    if spec == spec.plain:
        return 0.0
    most = float(reference.run(spec.plain, *(t.double().abs() for t in given[:2])).amax()) + (float(given[2].abs().max()) if spec.bias else 0.0)
    return 2 * torch.finfo(given[0].dtype).eps * most


def assert_close(out: Tensor, spec: ConvSpec, given: Sequence[Tensor], *, note: Any = "", extra: float = 0.0) -> None:
    """The result is the oracle's within the rounding that reference.tolerance allows, and extra; says where the worst element is."""
    want, bound = reference.run(spec, *given), tolerance.tolerance(spec, given[0].shape[0], *given) + extra
    assert out.shape == want.shape, f"{spec}: shape {tuple(out.shape)}, expected {tuple(want.shape)}"
    assert str(out.dtype) == f"torch.{spec.dtype}", f"{spec}: dtype {out.dtype}"
    if out.numel() == 0:
        return
    error = (out.double() - want).abs().nan_to_num(nan=math.inf)
    worst = int(error.argmax())
    if float(error.flatten()[worst]) > bound:
        where = tuple(int(i) for i in np.unravel_index(worst, out.shape))
        wrong = int((error > bound).sum())
        got, expected = float(out.flatten()[worst]), float(want.flatten()[worst])
        raise AssertionError(f"{spec} {note}: worst at {where}: {got} instead of {expected}, allowed {bound:.3g}; {wrong} of {out.numel()} are wrong")


def check(spec: ConvSpec, function: Callable[..., None], batches: Sequence[int] = (1, 3), workspace: tuple[int, int] | None = None, note: Any = "") -> None:
    """The compiled function against the oracle for each batch size: N is a run-time number."""
    for batch in batches:
        given = operands(spec, batch, seed=batch)
        assert_close(call(spec, function, given, workspace), spec, given, note=f"N={batch} {note}")


@functools.cache
def generic_function(kind: str, op: str, padding_mode: str, dtype: str, level: str | None = None) -> Callable[..., None]:
    """The generic kernel for the CPU here, as it is or as one of a level of x86-64, or that for a GPU in its serial form."""
    from tvm_orient.evaluate.serial import serial_form
    from tvm_orient.toolchain.tvm import target

    spec, device = spec_of(op, 1, 1, 1, line(0, k=1), 1, padding_mode, dtype), _generic_device(kind, level)
    module = lower.scheduled(spec, device, generic_choices(spec, device))
    return compiled(module, target(device)) if kind == "cpu" else serial_form(module)


def _generic_device(kind: str, level: str | None) -> Device:
    if kind == "cuda":
        return arch_device("sm_90a")
    return cpu_device() if level is None else arch_device(level)


def check_generic(spec: ConvSpec, kind: str, batches: Sequence[int] = (1, 3), level: str | None = None) -> None:
    """The spec by the generic kernel of a kind of device against the oracle; on a CPU by that for a level of x86-64, if one is named."""
    plan = generic_args.generic_args(spec, kind, generic_args.vector_lanes(_generic_device("cpu", level), spec.sums))
    function = generic_function(kind, spec.op, spec.padding_mode, spec.dtype, level)
    for batch in batches:
        given = operands(spec, batch, seed=batch)
        assert_close(call(spec, function, given, plan.workspace, plan), spec, given, note=f"N={batch} generic, {kind}")


def compiled(module: Any, target: Any = "llvm") -> Callable[..., None]:
    """The function "main" of a module, compiled for the CPU here."""
    import tvm

    return tvm.compile(module, target=target)["main"]


def check_cpu(spec: ConvSpec, choices: Sequence[Choice] | None = None, batches: Sequence[int] = (1, 3)) -> None:
    """The spec compiled for this CPU as one module (choices: one a part, None for the defaults) against the oracle.

    A layer whose angles are compiled apart gives the same to the last bit (`tests/compiler/test_layer.py`), and takes a linker.
    """
    from tvm_orient.toolchain.tvm import target

    device = cpu_device()
    choices = choices or default_choices(spec, device)
    module = lower.scheduled(spec, device, choices)
    check(spec, compiled(module, target(device)), batches, space_of(spec, module), choices)


def check_serial(spec: ConvSpec, choices: Sequence[Choice] | None = None, batches: Sequence[int] = (1, 3), arch: str = "sm_90a") -> None:
    """The spec scheduled for a GPU, in its serial form, against the oracle."""
    from tvm_orient.evaluate.serial import serial_form

    device = arch_device(arch)
    choices = choices or default_choices(spec, device)
    module = lower.scheduled(spec, device, choices)
    check(spec, serial_form(module), batches, space_of(spec, module), choices)


def check_blocks(spec: ConvSpec, choices: Sequence[Choice], batch: int = 2, arch: str = "sm_90a") -> None:
    """The generated CUDA source, block by block with its barriers, in two orders of threads, against the oracle."""
    from tvm_orient.codegen.cuda.cuda_text import divergent
    from tvm_orient.evaluate.cuda_emulator import Blocks

    device = arch_device(arch)
    module = lower.scheduled(spec, device, choices, batch)
    blocks, given = Blocks(module, device), operands(spec, batch)
    assert divergent(blocks.source) == []
    results = []
    for backwards in (False, True):
        run = functools.partial(blocks, names=kernel_names(spec.op, bias=spec.bias), backwards=backwards)
        results.append(call(spec, run, given, space_of(spec, module)))
        assert_close(results[-1], spec, given, note=f"threads {'down' if backwards else 'up'} {choices}")
    assert torch.equal(*results), f"{spec}: the result depends on the order of the threads"


def choice_of(template: Template[Any], decisions: Mapping[str, int]) -> Choice:
    """A choice from a template and its decisions by name."""
    return Choice.of(template, template.config(decisions))


def drawn(template: Template[Any], spec: ConvSpec, device: Device, count: int = 2) -> Iterator[dict[str, int]]:
    """Valid decisions of a template, all knobs away from the default at once; the same ones in every run."""
    rng = random.Random(0)
    while count:
        decisions = {name: rng.choice(values) for name, values in template.knobs(spec, device).items()}
        if template.invalid(spec, device, decisions) is None:
            yield decisions
            count -= 1


def of_kind(kind: str) -> list[Template[Any]]:
    """Every template for that kind of device."""
    return [t for t in registry.TEMPLATES if t.kind == kind]


def fitted(template: Template[Any], spec: ConvSpec) -> ConvSpec:
    """The spec in a layout that the template serves, and for `lines` with taps on a diagonal."""
    spec = dataclasses.replace(spec, layout=template.layouts[0])
    if template.name != "lines":
        return spec
    return dataclasses.replace(spec, taps=line(135, k=spec.kernel_size | 1), stride=(1, 1), padding_mode="zeros")


def with_template(template: Template[Any], spec: ConvSpec, device: Device) -> tuple[Choice, ...] | None:
    """This template's default for every part of the spec; None where it declines one of them."""
    parts = [part for _, _, part in spec.parts()]
    if any(template.declines(part, device) for part in parts):
        return None
    return tuple(Choice.of(template, template.default(part, device)) for part in parts)


def served(
    templates: Sequence[Template[Any]], names: Sequence[str], cases: Mapping[str, tuple[Any, ...]], device: Device
) -> list[tuple[Template[Any], str, str]]:
    """(template, op, name of a case) of all that no template declines, its specs `fitted`."""
    every = [(template, op, name) for template in templates for op in template.ops for name in names]
    return [
        (template, op, name)
        for template, op, name in every
        if not any(template.declines(part, device) for _, _, part in fitted(template, spec_of(op, *cases[name])).parts())
    ]


def variations(template: Template[Any], part: ConvSpec, device: Device) -> Iterator[tuple[Mapping[str, int], str | None]]:
    """Every decision one step of one knob from the default, and why it is invalid (None: it is not)."""
    default = template.default(part, device).decisions()
    for name, values in template.knobs(part, device).items():
        for value in values:
            if value != default[name]:
                decisions = {**default, name: value}
                yield decisions, template.invalid(part, device, decisions)


_ALONE = ("whole",)  # knobs beside which others say nothing


def covering(template: Template[Any], part: ConvSpec, device: Device) -> list[Mapping[str, int]]:
    """A few valid decisions: each value of each knob that some choice allows is in one of them, together with other values than the default's."""
    default = template.default(part, device).decisions()
    left = [(name, value) for name, values in template.knobs(part, device).items() for value in values if value != default[name]]
    found: list[Mapping[str, int]] = []
    while left:
        decisions, taken = dict(default), []
        for name, value in left:
            if any(name == other for other, _ in taken) or (taken and (name in _ALONE or taken[0][0] in _ALONE)):
                continue
            if template.invalid(part, device, {**decisions, name: value}) is None:
                decisions[name] = value
                taken.append((name, value))
        if not taken:
            return found
        found.append(decisions)
        left = [pair for pair in left if pair not in taken]
    return found


@functools.cache
def nvrtc_missing() -> str | None:
    """Why CUDA source cannot be compiled and read here; None where it can."""
    from tvm_orient.errors import EnvironmentProblem
    from tvm_orient.sass import cubin
    from tvm_orient.toolchain import nvrtc

    try:
        nvrtc.compile_cubin("", "sm_90a")
        cubin._disassembler()
    except EnvironmentProblem as missing:
        return str(missing)
    return None


def build_for_gpu(key: str) -> None:
    """Compile a spec for the first GPU into the session's cache; what fails fails again in the test that needs it."""
    from tvm_orient.kernels.build import build
    from tvm_orient.problem.device import cuda_devices

    with contextlib.suppress(Exception):
        build(ConvSpec.from_key(key), cuda_devices()[0])
