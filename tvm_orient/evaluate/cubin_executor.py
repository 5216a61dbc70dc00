"""Machine code of generated kernels, executed with values and without a GPU: compiled by NVRTC, launched as the host would, run by `executor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codegen.cuda.cuda_text import definitions
from ..compiler import library, lower
from ..compiler.predict import compiled, grids
from ..errors import Unsupported
from ..problem import generic_args
from ..problem.device import Device, capability
from ..problem.generic_args import GenericArgs
from ..problem.spec import ConvSpec
from ..sass import cubin
from ..sass.executor import execute
from ..schedules.choices import Choice, is_generic
from ..toolchain.tvm import load_tvm
from . import walled
from .walled import Called, workspace_of

Case = tuple[ConvSpec, Sequence[Choice]]
# compute capabilities whose machine code is followed: others lay constants and addresses out differently
FIRST = (8, 0)
LAST = (9, 0)
_STARTS = 'extern "C"'
# names of the generic kernels' buffers by op, in the order in which the host passes them
_GENERIC = {"conv": ("source", "w", "table", "out"), "conv_dx": ("source", "w", "table", "out"), "conv_dw": ("x", "dy", "table", "part", "dw")}
# names of the whole numbers that a generic kernel is told, which speak of the source and of the result
_NUMBERS = ("height", "width", "p", "q", "down", "across", "bands", "n", "c", "k", "g")


@dataclass(frozen=True)
class Launch:
    """One kernel's launch: its machine code, the names of its parameters in order, and threads of a block."""

    kernel: cubin.KernelFacts
    names: tuple[str, ...]
    threads: int


@dataclass(frozen=True)
class Machine:
    """The kernels that compute a spec, in the order in which they run; func: what they were made of; plan: what a generic one is told."""

    spec: ConvSpec
    choices: Sequence[Choice]
    func: Any
    launches: tuple[Launch, ...]
    workspace: tuple[int, int] | None
    plan: GenericArgs | None = None

    def with_code(self, index: int, code: str) -> Machine:
        """Returns the same with other code in one of its kernels."""
        launches = list(self.launches)
        launches[index] = dataclasses.replace(launches[index], kernel=dataclasses.replace(launches[index].kernel, code=code))
        return dataclasses.replace(self, launches=tuple(launches))


def machines(cases: Mapping[str, Case], device: Device) -> dict[str, Machine]:
    """Returns the cases compiled for a GPU that need not be here, those with the same helpers in one source: half of NVRTC's time is headers.

    Raises:
        BuildFailed, EnvironmentProblem: as `nvrtc.compile_cubin` and `cubin.kernels`.
        Unsupported: machine code of another compute capability than is followed, or a kernel whose blocks have threads along two axes.
    """
    if not FIRST <= capability(device.arch) <= LAST:
        span = " to ".join(f"{major}.{minor}" for major, minor in (FIRST, LAST))
        raise Unsupported(f"machine code is followed of compute capability {span}, got {device.arch}: check the problem for sm_80 or sm_90a too")
    modules = {name: lower.scheduled(spec, device, choices) for name, (spec, choices) in cases.items()}
    sources = {name: _source(module, device, is_generic(cases[name][1])) for name, module in modules.items()}
    heads: dict[str, dict[str, str]] = {}
    for name, source in sources.items():
        heads.setdefault(source.partition(_STARTS)[0], {})[name] = source
    found = compiled(heads.values(), device.arch)
    made = {}
    for name, (spec, choices) in cases.items():
        func, defined = modules[name]["main"], definitions(sources[name])
        nests = grids(func)
        if len(nests) != len(defined) or 'thread="threadIdx.y"' in modules[name].script():
            raise Unsupported(f"machine code is executed of kernels whose blocks have threads along x alone, one for each nest, got others for {spec}")
        plan = generic_args.generic_args(spec, "cuda") if is_generic(choices) else None
        workspace = (plan.workspace if plan else workspace_of(spec, modules[name])) if spec.op == "conv_dw" else None
        launches = [
            Launch(found[one.name.replace("main_kernel", f"{name}_kernel")], one.names, threads) for one, (_, threads) in zip(defined, nests, strict=True)
        ]
        made[name] = Machine(spec, choices, func, tuple(launches), workspace, plan)
    return made


def run(machine: Machine, given: Sequence[Tensor], order: str = "ascending", seed: int = 0) -> Called:
    """Returns what the machine code computes of operands as of `walled.operands`.

    Args:
        order: in which the warps of a block run between two barriers, one of `executor.ORDERS`.
        seed: of the garbage in registers and memory that nobody wrote, and of a random order.

    Raises:
        Fault: a kernel breaks a rule of memory or of barriers.
        BuildFailed: a kernel does something that is not followed.
    """
    names = _GENERIC[machine.spec.op] if machine.plan else walled.buffers(machine.spec)
    numbers = _numbers(machine, given[0].shape[0])

    def function(*passed: Any) -> None:
        bound = dict(zip(names, passed, strict=False))  # numbers come last, and go by `numbers`
        for launch, (blocks, _) in zip(machine.launches, grids(machine.func, numbers), strict=True):
            arguments = [_array(bound[name]) if name in bound else numbers[name] for name in launch.names]
            execute(launch.kernel, blocks, launch.threads, arguments, order, seed)

    return walled.call(machine.spec, function, given, machine.workspace, machine.plan)


def _source(module: Any, device: Device, generic: bool) -> str:
    """Returns CUDA source; a generic kernel without what TVM moves out of it to the host, whose values only the host's code knows."""
    tvm = load_tvm()
    with tvm.transform.PassContext(disabled_pass=["tirx.CommonSubexprElim"] if generic else []):
        return library.cuda_source(module, device)


def _numbers(machine: Machine, batch: int) -> dict[str, int]:
    """Returns whole numbers that kernels are given, by name."""
    spec, plan = machine.spec, machine.plan
    if plan is None:
        return {"n": batch}
    plane, out = (spec.height, spec.width), (spec.out_height, spec.out_width)
    source, result = (out, plane) if spec.op == "conv_dx" else (plane, out)
    values = (*source, *result, *plan.numbers, plan.workspace[0], batch, spec.channels, spec.kernel_size, len(plan.tables[0]))
    return dict(zip(_NUMBERS, values, strict=True))


def _array(tensor: Tensor) -> Any:
    """Returns the memory of a tensor."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
