"""Says whether the kernel of a problem computes what it should, in several ways that need no GPU; where it does not, at which place, angle and template.

Each way is held to the float64 reference within the tolerance that rounding alone explains (`tolerance.tolerance`), on random operands between walls
of NaN. A CPU's kernel is compiled and called. A GPU's is looked at from three sides: its loops, indices and predicates (the serial form), its CUDA
source with barriers, shuffles and shared memory (the block emulator), and its machine code (`cubin_executor`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ..codegen.names import kernel_names
from ..compiler import library, lower
from ..compiler.layer import compile_layer
from ..errors import BuildFailed, EnvironmentProblem, InvalidArgument, Unsupported
from ..forks import kept
from ..problem import generic_args
from ..problem.device import Device, own_cpu
from ..problem.spec import ConvSpec
from ..sass.checked_memory import Fault
from ..schedules import registry
from ..schedules.choices import Choice, default_choices, generic_choices, is_generic
from ..toolchain import openmp
from . import cubin_executor, reference, tolerance, walled
from .walled import Called, workspace_of

WAYS: dict[str, tuple[str, ...]] = {"cpu": ("compiled",), "cuda": ("serial", "blocks", "machine")}  # by kind of device, quickest first
BATCH = 2  # images: the fewest that show a fault between them, and a large batch hides small faults of a weight gradient
_ORDERS = ("ascending", "descending")  # in which warps of a block run where machine code is executed


@dataclass(frozen=True)
class Place:
    """One element of a result, and what computed it."""

    index: tuple[int, ...]  #: (n, c, h, w), or (channel, tap) of a weight gradient
    group: int  #: the angle group, counted from 0
    template: str  #: that the group's kernel is made by
    got: float
    expected: float


@dataclass(frozen=True)
class Outcome:
    """The findings of one way."""

    way: str  #: one of WAYS
    status: str  #: "right", "wrong" or "left out"
    reasons: tuple[str, ...]  #: why it was left out; or rules that the kernel broke
    error: float | None  #: the largest absolute error; infinite where something is NaN; None where it was left out or gave no result
    wrong: tuple[int, ...]  #: by angle group, elements that err by more than the tolerance; empty where there is no result
    worst: Place | None  #: where the error is largest; None where there is no result
    seconds: float  #: that it took, compiling included


@dataclass(frozen=True)
class Checked:
    """A problem, the choices that its kernel was made by, and what each way found."""

    spec: ConvSpec
    computed: ConvSpec  #: what the kernel itself computes: of the generic kernel torch adds layout and epilogue
    choices: tuple[Choice, ...]
    batch: int
    seed: int
    tolerance: float  #: the largest absolute error that rounding alone may put into the result
    outcomes: tuple[Outcome, ...]

    @property
    def right(self) -> bool:
        """Returns whether no way found anything wrong, and one of them at least was gone."""
        return any(one.status == "right" for one in self.outcomes) and all(one.status != "wrong" for one in self.outcomes)


def check(
    spec: ConvSpec,
    device: Device,
    choices: Sequence[Choice] | None = None,
    *,
    batch: int = BATCH,
    seed: int = 0,
    ways: Sequence[str] | None = None,
    report: Callable[[str], None] | None = None,
) -> Checked:
    """Holds the kernel of a spec on a device to the float64 reference, one way after the other; a GPU need not be here.

    Args:
        choices: one for each part of the spec; None takes the analytic ones, whatever the logs hold.
        batch: images N.
        seed: of the random operands.
        ways: some of WAYS[device.kind]; None goes all of them.
        report: is told the name of each way before it is gone.

    Raises:
        InvalidArgument: a way that this kind of device has not, a batch < 1, or another number of choices than parts.
    """
    known = WAYS[device.kind]
    ways = known if ways is None else ways
    for way in ways:
        if way not in known:
            raise InvalidArgument(f"a way to check a kernel for {device.arch} must be one of {', '.join(known)}, got {way!r}: give some, or none for all")
    if batch < 1:
        raise InvalidArgument(f"batch must be a whole number >= 1, got {batch}: some images are needed to see anything")
    chosen = tuple(default_choices(spec, device) if choices is None else choices)
    if len(chosen) != len(spec.parts()):
        raise InvalidArgument(f"choices must be one for each part of the spec, of which there are {len(spec.parts())}, got {len(chosen)}")
    computed = dataclasses.replace(spec.plain, layout="nchw") if is_generic(chosen) else spec
    case = _Case(computed, device, chosen, walled.operands(computed, batch, seed))
    outcomes = []
    for way in dict.fromkeys(ways):
        if report is not None:
            report(way)
        outcomes.append(_outcome(case, way))
    return Checked(spec, computed, chosen, batch, seed, case.tolerance, tuple(outcomes))


def forced(spec: ConvSpec, device: Device, name: str, decisions: Mapping[str, int]) -> tuple[Choice, ...]:
    """Returns a choice of one template for every part of a spec: its default with these decisions in the place of its own.

    Raises:
        InvalidArgument: no such template, a decision that it does not have, or decisions that it cannot take together.
        Unsupported: the template does not serve a part of the spec on this device.
    """
    if name == registry.GENERIC[device.kind].name:
        if decisions:
            raise InvalidArgument(f"the template {name} has no decisions, got {', '.join(decisions)}: leave them out")
        return generic_choices(spec, device)
    template, choices = registry.find(name), []
    for _, _, part in spec.parts():
        reason = template.declines(part, device)
        if reason is not None:
            raise Unsupported(f"template {name} does not serve {part} on {device.slug}: {reason}")
        default = template.default(part, device).decisions()
        strange = [knob for knob in decisions if knob not in default]
        if strange:
            raise InvalidArgument(f"template {name} decides on {', '.join(default)}, got {', '.join(strange)}: name some of these")
        reason = template.invalid(part, device, {**default, **decisions})
        if reason is not None:
            raise InvalidArgument(f"template {name} cannot take {' '.join(f'{k}={v}' for k, v in decisions.items())} for {part}: {reason}")
        choices.append(Choice.of(template, template.config({**default, **decisions})))
    return tuple(choices)


@dataclass(frozen=True)
class _Case:
    """A kernel to check, and the operands that every way gives it."""

    spec: ConvSpec
    device: Device
    choices: tuple[Choice, ...]
    given: tuple[Tensor, ...]

    @kept
    def reference(self) -> Tensor:
        return reference.run(self.spec, *self.given)

    @kept
    def tolerance(self) -> float:
        return tolerance.tolerance(self.spec, len(self.given[0]), *self.given)

    @property
    def plan(self) -> generic_args.GenericArgs | None:
        """Returns what the generic kernel is told; None for others."""
        lanes = generic_args.vector_lanes(self.device, self.spec.sums)
        return generic_args.generic_args(self.spec, self.device.kind, lanes) if is_generic(self.choices) else None

    def called(self, function: Callable[..., object], workspace: tuple[int, int] | None) -> Called:
        """Returns the result of a function, given the workspace that it needs; the generic kernel's is that of its plan."""
        plan = self.plan
        return walled.call(self.spec, function, self.given, plan.workspace if plan else workspace, plan)


def _outcome(case: _Case, way: str) -> Outcome:
    """Returns what a way finds. It never raises what a user can mend: that becomes the reason why the way was left out."""
    start = time.perf_counter()
    try:
        found, broken = _GONE[way](case), []
    except Fault as fault:
        found, broken = [], [str(fault)]
    except (BuildFailed, EnvironmentProblem, Unsupported) as problem:
        return Outcome(way, "left out", (str(problem),), None, (), None, time.perf_counter() - start)
    broken += [fault for called in found for fault in called.faults]
    if any(not _same(called.result, found[0].result) for called in found[1:]):
        broken.append("the result depends on the order in which threads run")
    seconds = time.perf_counter() - start
    if not found:
        return Outcome(way, "wrong", tuple(broken), None, (), None, seconds)
    errors = [(called.result.double() - case.reference).abs().nan_to_num(nan=math.inf) for called in found]
    most = max(range(len(errors)), key=lambda i: float(errors[i].max()))
    error, wrong = errors[most], _wrong_by_group(case, errors[most])
    status = "wrong" if broken or any(wrong) else "right"
    place = _place(case, found[most].result, error)
    return Outcome(way, status, tuple(dict.fromkeys(broken)), float(error.max()), wrong, place, seconds)


def _same(one: Tensor, other: Tensor) -> bool:
    """Returns whether two results agree to the last bit, NaN with NaN."""
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _channel_axis(spec: ConvSpec) -> int:
    return 0 if spec.op == "conv_dw" else 1


def _wrong_by_group(case: _Case, error: Tensor) -> tuple[int, ...]:
    """Elements of each angle group that err by more than the tolerance."""
    beyond = error > case.tolerance
    return tuple(int(beyond.narrow(_channel_axis(case.spec), lo, hi - lo).sum()) for lo, hi in case.spec.taps.channel_ranges(case.spec.channels))


def _place(case: _Case, result: Tensor, error: Tensor) -> Place:
    """Returns where the error is largest."""
    flat = int(error.argmax())
    index = tuple(int(i) for i in np.unravel_index(flat, result.shape))
    channel = index[_channel_axis(case.spec)]
    group = next(g for g, (lo, hi) in enumerate(case.spec.taps.channel_ranges(case.spec.channels)) if lo <= channel < hi)
    part = next(i for i, (lo, hi, _) in enumerate(case.spec.parts()) if lo <= channel < hi)
    return Place(index, group, case.choices[part].template, float(result[index]), float(case.reference[index]))


# ---- the ways -----------------------------------------------------------------------------------


def _compiled(case: _Case) -> list[Called]:
    """Returns the results of the CPU's own kernel, as it is shipped: a library that is loaded."""
    import tvm_ffi

    lacking = sorted(set(case.device.features.split()).difference(own_cpu().features))
    if lacking:
        raise Unsupported(f"a kernel for {case.device.arch} runs where its instructions are, and this CPU lacks {', '.join(lacking)}: check it elsewhere")
    with tempfile.TemporaryDirectory() as folder:
        path, workspace = Path(folder) / "kernel.so", None
        if is_generic(case.choices):
            library.compile_library(lower.scheduled(case.spec, case.device, case.choices), case.device, path)
        else:
            workspace = compile_layer(case.spec, case.device, case.choices, path).workspace
        try:
            function = tvm_ffi.load_module(str(path)).get_function("main")
        except Exception as problem:
            raise EnvironmentProblem(f"the kernel does not load ({problem}): set TMPDIR to a folder from which programs may be run") from problem
        openmp.adopt(path)
        return [case.called(function, workspace)]


def _serial(case: _Case) -> list[Called]:
    """Returns the results of the loops, buffers, indices and predicates of the schedule, on the CPU; the number of images is a run-time number."""
    from .serial import serial_form

    module = lower.scheduled(case.spec, case.device, case.choices)
    return [case.called(serial_form(module), workspace_of(case.spec, module))]


def _blocks(case: _Case) -> list[Called]:
    """Returns the results of the CUDA source with its barriers, in two orders of threads."""
    from ..codegen.cuda.cuda_text import divergent
    from .cuda_emulator import Blocks

    if case.plan is not None:
        raise Unsupported("the block emulator takes kernels of a fixed size, and the generic kernel learns its sizes when it is called: `machine` follows it")
    module = lower.scheduled(case.spec, case.device, case.choices, len(case.given[0]))
    source = library.cuda_source(module, case.device)
    parted = divergent(source)
    if parted:
        raise Fault(f"a barrier under a condition that the threads of a block need not agree on: {parted[0]}")
    blocks = Blocks(module, case.device, source)
    runs = [functools.partial(blocks, names=kernel_names(case.spec.op, bias=case.spec.bias), backwards=backwards) for backwards in (False, True)]
    return [case.called(run, workspace_of(case.spec, module)) for run in runs]


def _machine(case: _Case) -> list[Called]:
    """Returns the results of the machine code, its warps in two orders."""
    (machine,) = cubin_executor.machines({"checked": (case.spec, case.choices)}, case.device).values()
    return [cubin_executor.run(machine, case.given, order) for order in _ORDERS]


_GONE: dict[str, Callable[[_Case], list[Called]]] = {"compiled": _compiled, "serial": _serial, "blocks": _blocks, "machine": _machine}
