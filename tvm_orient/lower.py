"""From a spec and its choices to a scheduled module, and from there to a compiled library.

The compiler is imported inside the functions that need it: choosing a kernel that is in the cache must not.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import schedules
from .device import Device
from .errors import BuildFailed, EnvironmentProblem, OrientError, Unsupported
from .schedules.base import Decisions, Template
from .spec import ConvSpec, image_shape, part_shape


@dataclass(frozen=True)
class Choice:
    """How one angle group is scheduled: a template, its version and its named decisions; step says where they came from."""

    template: str
    version: int
    decisions: tuple[tuple[str, int], ...]
    step: str = "default"

    @classmethod
    def of(cls, template: Template, decisions: Decisions, step: str = "default") -> Choice:
        """A choice from a template and a mapping of decisions."""
        return cls(template.name, template.version, tuple(sorted(decisions.items())), step)

    @property
    def plain(self) -> list[Any]:
        """The choice as JSON can hold it; `of_plain` makes it again."""
        return [self.template, self.version, [list(pair) for pair in self.decisions], self.step]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> Choice:
        """The choice that `plain` was made of."""
        name, version, decisions, step = plain
        return cls(name, version, tuple((knob, value) for knob, value in decisions), step)


def default_choices(spec: ConvSpec, device: Device) -> tuple[Choice, ...]:
    """The analytic choice for each part of a spec; the generic kernel for all where one part has no template."""
    try:
        return tuple(Choice.of(*chosen) for chosen in schedules.together([part for _, _, part in spec.parts()], device))
    except Unsupported:
        return generic_choices(spec, device)


def generic_choices(spec: ConvSpec, device: Device) -> tuple[Choice, ...]:
    """The generic kernel, for every part of a spec: one kernel runs a whole layer."""
    generic = schedules.GENERIC[device.kind]
    return tuple(Choice(generic.name, generic.version, ()) for _ in spec.parts())


def is_generic(choices: Sequence[Choice]) -> bool:
    """Whether choices ask for the generic kernel."""
    return any(choice.template == generic.name for choice in choices for generic in schedules.GENERIC.values())


def schedule_part(part: ConvSpec, channels: int, device: Device, choice: Choice, batch: Any) -> Any:
    """Scheduled PrimFunc of one angle group over `channels` channels."""
    from tvm.s_tir import Schedule

    from . import channels_last, compute
    from .tvmkit import load_tvm

    template, decisions = schedules.find(choice.template), dict(choice.decisions)
    form = dataclasses.replace(template.form(part, decisions), batch=batch)
    part_func = channels_last.part_func if part.layout == "nhwc" else compute.part_func
    sch = Schedule(load_tvm().IRModule({"main": part_func(part, channels, form)}))
    template.apply(sch, part, device, decisions)
    return template.finish(sch.mod["main"], part, decisions)


def scheduled(spec: ConvSpec, device: Device, choices: Sequence[Choice], batch: int | None = None) -> Any:
    """IRModule of the whole layer; N at run time unless batch is given (the generic kernel takes it at run time always)."""
    from .tvmkit import load_tvm

    tvm = load_tvm()  # before any other import of it: says what is missing, and refuses what would crash
    from tvm import te

    from .merge import Group, merge

    if is_generic(choices):
        func = schedules.GENERIC[device.kind].func(spec.op, spec.padding_mode, spec.dtype, device)
        return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    n = te.var("n", "int32") if batch is None else batch
    groups = []
    for (start, stop, part), choice in zip(spec.parts(), choices, strict=True):
        func = schedule_part(part, stop - start, device, choice, n)
        groups.append(Group(func, tuple(_origin(spec, i, start, len(p.shape)) for i, p in enumerate(func.params))))
    return tvm.IRModule({"main": merge(groups, _shapes(spec, groups, n), device.kind)})


def _origin(spec: ConvSpec, index: int, start: int, rank: int) -> tuple[int, ...]:
    weights = index == 1 if spec.op != "conv_dw" else index == 3
    if rank == 1:  # bias
        return (start,)
    if weights:
        return (start, 0)
    return (0,) * (rank - 1) + (start,) if spec.layout == "nhwc" else (0, start) + (0,) * (rank - 2)


def _shapes(spec: ConvSpec, groups: Sequence[Any], n: Any) -> list[tuple[Any, ...]]:
    x, y, w = image_shape(spec, n, output=False), image_shape(spec, n, output=True), (spec.channels, spec.kernel_size)
    if spec.op == "conv":
        return [x, w, (spec.channels,), y] if spec.bias else [x, w, y]
    if spec.op == "conv_dx":
        return [y, w, x]
    return [x, y, part_shape(spec, n, workspace_shape([g.func for g in groups], spec.layout)), w]


def workspace_shape(funcs: Sequence[Any], layout: str = "nchw") -> tuple[int, int]:
    """(bands, taps) of the workspace per image and channel that conv_dw needs: the largest of its groups."""
    bands, taps = (1, 2) if layout == "nhwc" else (2, 3)
    shapes = [f.params[2].shape for f in funcs]
    return max(int(s[bands]) for s in shapes), max(int(s[taps]) for s in shapes)


def compile_library(module: Any, device: Device, path: Path) -> dict[str, bytes]:
    """Compile a scheduled module to a shared library at path; returns the cubin of each CUDA source that went into it.

    CUDA is compiled by `nvrtc.compile_cubin` alone, so that what runs is what the static checks read.

    Raises:
        BuildFailed: the compiler refused it.
        EnvironmentProblem: nothing here links a library, or NVRTC or its headers are missing.
    """
    from . import nvrtc
    from .pool import launcher_object
    from .tvmkit import compile_cuda, load_tvm, rewrite_cuda, target

    load_tvm()
    cubins: dict[str, bytes] = {}
    problems: list[OrientError] = []

    def cubin(source: str) -> bytes:
        try:
            cubins[source] = nvrtc.compile_cubin(source, device.arch)
        except OrientError as problem:  # TVM would wrap it in an error of its own
            problems.append(problem)
            raise
        return cubins[source]

    rewrite_cuda(functools.partial(_finished, arch=device.arch))
    compile_cuda(cubin)
    from tvm.support import cc

    if cc.get_cc() is None:
        raise EnvironmentProblem("building a kernel needs a C++ compiler to link it, and there is no g++, clang++ or cc on PATH: install g++, or set CXX")
    try:
        executable = _compiled(module, target(device))
        with tempfile.TemporaryDirectory() as folder:
            extra = [str(launcher_object(Path(folder)))] if device.kind == "cpu" else []
            executable.export_library(str(path), addons=extra)
    except OrientError:
        raise
    except Exception as problem:
        if problems:
            raise problems[0] from problem
        raise BuildFailed(f"{device.arch} refused the kernel: {last_line(problem)}") from problem
    return cubins


def _compiled(module: Any, target: Any) -> Any:
    """The module through TVM; without the pass that looks for better indices, for most of the time, where all of a long sum are known."""
    import tvm

    from .merge import SETTLED

    if SETTLED not in module["main"].attrs:
        return tvm.compile(module, target=target)
    with tvm.transform.PassContext(disabled_pass=["s_tir.RenormalizeSplitPattern"]):
        return tvm.compile(module, target=target)


def cuda_source(module: Any, device: Device) -> str:
    """The CUDA source of a scheduled module; compiles nothing for the GPU.

    Raises:
        BuildFailed: TVM refused to lower it.
    """
    from .tvmkit import load_tvm, rewrite_cuda, target

    load_tvm()
    rewrite_cuda(functools.partial(_finished, arch=device.arch))
    try:
        return str(_compiled(module, target(device)).mod.imports[0].inspect_source())
    except Exception as problem:
        raise BuildFailed(f"TVM refused to lower the kernel for {device.arch}: {last_line(problem)}") from problem


def _finished(source: str, arch: str) -> str:
    """CUDA source with what TVM cannot say: branches that may hold barriers, and copies that nobody waits for one by one, from sm_80 on asynchronous."""
    from .batches import batched
    from .guarded import declared
    from .halves import by_words
    from .merge import branches
    from .predicated import predicated
    from .staging import asynchronous

    source = declared(batched(by_words(branches(source))))
    return asynchronous(predicated(source)) if int(arch.removeprefix("sm_").rstrip("af")) >= 80 else source


def last_line(problem: BaseException) -> str:
    """The last line of an error's text, which is where TVM says what is wrong."""
    lines = str(problem).strip().splitlines()
    return lines[-1] if lines else repr(problem)
