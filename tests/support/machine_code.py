"""Machine code of generated kernels, executed with values: compiled by NVRTC, run by `tvm_orient.sass.executor`, compared with the oracle."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.support.blocks import DEFINITION
from tests.support.helpers import PARAMETERS, assert_close, call, operands, space_of
from tvm_orient.compiler import library, lower
from tvm_orient.compiler.predict import together
from tvm_orient.problem import generic_args
from tvm_orient.problem.device import Device, arch_device
from tvm_orient.problem.generic_args import GenericArgs
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.sass import cubin
from tvm_orient.sass.executor import execute
from tvm_orient.schedules import choices as schedules_choices
from tvm_orient.schedules.choices import Choice
from tvm_orient.toolchain import nvrtc

Case = tuple[ConvSpec, Sequence[Choice]]
_GRID = re.compile(r'in T\.thread_binding\((.+?), thread="blockIdx\.x"\)')
_THREADS = re.compile(r'T\.thread_binding\((\d+), thread="threadIdx\.x"\)')
_GENERIC = {"conv": ("source", "w", "table", "out"), "conv_dx": ("source", "w", "table", "out"), "conv_dw": ("x", "dy", "table", "part", "dw")}


@dataclass(frozen=True)
class Launch:
    """Of one kernel: its code, the names of its parameters in order, the number of blocks as an expression of those of whole numbers, threads."""

    kernel: cubin.KernelFacts
    names: tuple[str, ...]
    grid: str
    threads: int


@dataclass(frozen=True)
class Machine:
    """The kernels that compute a spec; plan: what a generic one is told."""

    spec: ConvSpec
    choices: Sequence[Choice]
    launches: tuple[Launch, ...]
    workspace: tuple[int, int] | None
    plan: GenericArgs | None = None

    def with_code(self, index: int, code: str) -> Machine:
        """The same with other code in one of its kernels."""
        launches = list(self.launches)
        launches[index] = dataclasses.replace(launches[index], kernel=dataclasses.replace(launches[index].kernel, code=code))
        return dataclasses.replace(self, launches=tuple(launches))


def machines(cases: Mapping[str, Case], arch: str) -> dict[str, Machine]:
    """The cases compiled for an arch, those with the same helpers in one source: half of NVRTC's time is headers."""
    device = arch_device(arch)
    modules = {name: lower.scheduled(spec, device, choices) for name, (spec, choices) in cases.items()}
    sources = {name: _source(module, device, schedules_choices.is_generic(cases[name][1])) for name, module in modules.items()}
    heads: dict[str, dict[str, str]] = {}
    for name, source in sources.items():
        heads.setdefault(source.partition('extern "C"')[0], {})[name] = source
    found = {kernel.name: kernel for alike in heads.values() for kernel in cubin.kernels(nvrtc.compile_cubin(together(alike), arch))}
    made = {}
    for name, (spec, choices) in cases.items():
        script, generic = modules[name].script(), schedules_choices.is_generic(choices)
        starts = list(_GRID.finditer(script))
        launches = []
        for start, after in zip(starts, [*starts[1:], None], strict=True):
            nest = script[start.end() : after.start() if after else None]
            assert 'thread="threadIdx.y"' not in nest
            launches.append((start[1], max([1, *map(int, _THREADS.findall(nest))])))
        definitions = {match[2]: match[3] for match in DEFINITION.finditer(sources[name])}
        assert len(definitions) == len(launches)
        names = [tuple(part.split()[-1].removesuffix("_ptr") for part in text.split(",")) for text in definitions.values()]
        kernels = [found[kernel.replace("main_kernel", f"{name}_kernel")] for kernel in definitions]
        plan = generic_args.generic_args(spec, "cuda") if generic else None
        workspace = (plan.workspace if plan else space_of(spec, modules[name])) if spec.op == "conv_dw" else None
        made[name] = Machine(spec, choices, tuple(Launch(*rest) for rest in zip(kernels, names, *zip(*launches, strict=True), strict=True)), workspace, plan)
    return made


def _source(module: Any, device: Device, generic: bool) -> str:
    """CUDA source; a generic kernel without what TVM moves out of it to the host, whose values only the host's code knows."""
    import tvm

    with tvm.transform.PassContext(disabled_pass=["tirx.CommonSubexprElim"] if generic else []):
        return library.cuda_source(module, device)


def outcome(machine: Machine, given: Sequence[Tensor], order: str = "ascending", seed: int = 0) -> Tensor:
    """What the machine code computes, its warps run in that order."""
    spec = machine.spec
    plain = ("x", "w", "bias", "y") if spec.bias else PARAMETERS[spec.op]

    def function(*passed: Any) -> None:
        bound = dict(zip(_GENERIC[spec.op] if machine.plan else plain, passed, strict=False))
        numbers = _numbers(machine, given[0].shape[0])
        for launch in machine.launches:
            arguments = [_array(bound[name]) if name in bound else numbers[name] for name in launch.names]
            execute(launch.kernel, eval(launch.grid, {"min": min, "max": max}, numbers), launch.threads, arguments, order, seed)

    return call(spec, function, given, machine.workspace, machine.plan)


def check_machine(machine: Machine, orders: Sequence[str] = ("ascending",), batch: int = 2, note: str = "") -> None:
    """The machine code against the oracle, and the same to the last bit in every order of warps."""
    given, first = operands(machine.spec, batch), None
    for order in orders:
        found = outcome(machine, given, order)
        assert_close(found, machine.spec, given, note=f"{note} {order} {machine.choices}")
        assert first is None or torch.equal(found, first), f"{machine.spec}: the result depends on the order of warps"
        first = found


def _numbers(machine: Machine, batch: int) -> dict[str, int]:
    """Whole numbers that kernels are given, by name; those of the generic kernels speak of the source and of the result."""
    spec, plan = machine.spec, machine.plan
    if plan is None:
        return {"n": batch}
    plane, out = (spec.height, spec.width), (spec.out_height, spec.out_width)
    source, result = (out, plane) if spec.op == "conv_dx" else (plane, out)
    names = ("height", "width", "p", "q", "down", "across", "bands", "n", "c", "k", "g")
    return dict(zip(names, (*source, *result, *plan.numbers, plan.workspace[0], batch, spec.channels, spec.kernel_size, len(plan.tables[0])), strict=True))


def _array(tensor: Tensor) -> Any:
    """The memory of a tensor."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
