"""Machine code of generated kernels, executed with values and without a GPU: compiled by NVRTC, launched as the host would, run by `executor`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..codegen.cuda.cuda_text import definitions
from ..codegen.names import BATCH, kernel_names
from ..compiler import library, lower
from ..compiler.assemble import assembled, layer_kernels
from ..compiler.layer_plan import planned
from ..compiler.predict import grids
from ..errors import Unsupported
from ..problem import generic_args
from ..problem.device import Device, capability
from ..problem.generic_args import GenericArgs
from ..problem.spec import ConvSpec
from ..sass import cubin
from ..sass.executor import execute
from ..schedules.choices import Choice, is_generic
from ..toolchain import nvrtc
from ..toolchain.tvm import load_tvm
from . import walled
from .walled import Called

Case = tuple[ConvSpec, Sequence[Choice]]
# compute capabilities whose machine code is followed: others lay constants and addresses out differently
FIRST = (8, 0)
LAST = (9, 0)
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
    """The kernels that compute a spec, in the order in which they run.

    Attributes:
        spec: the problem.
        choices: what the kernels were made by.
        launches: the kernels.
        blocks: gives the blocks of each launch for the numbers that kernels are told.
        workspace: (bands, taps) of conv_dw for each image and channel; None for another op.
        plan: what a generic kernel is told.
    """

    spec: ConvSpec
    choices: Sequence[Choice]
    launches: tuple[Launch, ...]
    blocks: Callable[[Mapping[str, int]], list[int]]
    workspace: tuple[int, int] | None
    plan: GenericArgs | None = None

    def with_code(self, index: int, code: str) -> Machine:
        """Returns the same with other code in one of its kernels."""
        launches = list(self.launches)
        launches[index] = dataclasses.replace(launches[index], kernel=dataclasses.replace(launches[index].kernel, code=code))
        return dataclasses.replace(self, launches=tuple(launches))


def machines(cases: Mapping[str, Case], device: Device) -> dict[str, Machine]:
    """Returns the cases compiled for a GPU that need not be here, as they are compiled for a user: a layer's angles apart, and put together.

    Raises:
        BuildFailed, EnvironmentProblem: as `nvrtc.compile_cubin` and `cubin.kernels`.
        Unsupported: machine code of another compute capability than is followed, or a kernel whose blocks have threads along two axes.
    """
    if not FIRST <= capability(device.arch) <= LAST:
        span = " to ".join(f"{major}.{minor}" for major, minor in (FIRST, LAST))
        raise Unsupported(f"machine code is followed of compute capability {span}, got {device.arch}: check the problem for sm_80 or sm_90a too")
    return {name: (_generic if is_generic(choices) else _own)(spec, choices, device) for name, (spec, choices) in cases.items()}


def _own(spec: ConvSpec, choices: Sequence[Choice], device: Device) -> Machine:
    """Returns the kernels of a layer of its own."""
    plan = planned(spec, device, choices)
    found, kernels = _by_name(assembled(plan)), layer_kernels(plan)
    launches = tuple(Launch(found[one.name], one.names, one.threads) for one in kernels)
    return Machine(spec, choices, launches, lambda numbers: [one.blocks(numbers[BATCH]) for one in kernels], plan.workspace)


def _generic(spec: ConvSpec, choices: Sequence[Choice], device: Device) -> Machine:
    """Returns the generic kernels, told of a spec."""
    module = lower.scheduled(spec, device, choices)
    source = _source(module, device)
    defined, func = definitions(source), module["main"]
    nests = grids(func)
    if len(nests) != len(defined) or 'thread="threadIdx.y"' in module.script():
        raise Unsupported(f"machine code is executed of kernels whose blocks have threads along x alone, one for each nest, got others for {spec}")
    found, plan = _by_name(nvrtc.compile_cubin(source, device.arch)), generic_args.generic_args(spec, "cuda")
    launches = tuple(Launch(found[one.name], one.names, threads) for one, (_, threads) in zip(defined, nests, strict=True))
    workspace = plan.workspace if spec.op == "conv_dw" else None
    return Machine(spec, choices, launches, lambda numbers: [blocks for blocks, _ in grids(func, numbers)], workspace, plan)


def _by_name(code: bytes) -> dict[str, cubin.KernelFacts]:
    """Returns the kernels of a cubin by name."""
    return {kernel.name: kernel for kernel in cubin.kernels(code)}


def run(machine: Machine, given: Sequence[Tensor], order: str = "ascending", seed: int = 0) -> Called:
    """Returns what the machine code computes of operands as of `walled.operands`.

    Args:
        order: in which the warps of a block run between two barriers, one of `executor.ORDERS`.
        seed: of the garbage in registers and memory that nobody wrote, and of a random order.

    Raises:
        Fault: a kernel breaks a rule of memory or of barriers.
        BuildFailed: a kernel does something that is not followed.
    """
    names = _GENERIC[machine.spec.op] if machine.plan else kernel_names(machine.spec.op, bias=machine.spec.bias)
    numbers = _numbers(machine, given[0].shape[0])

    def function(*passed: Any) -> None:
        bound = dict(zip(names, passed, strict=False))  # numbers come last, and go by `numbers`
        for launch, blocks in zip(machine.launches, machine.blocks(numbers), strict=True):
            arguments = [_array(bound[name]) if name in bound else numbers[name] for name in launch.names]
            execute(launch.kernel, blocks, launch.threads, arguments, order, seed)

    return walled.call(machine.spec, function, given, machine.workspace, machine.plan)


def _source(module: Any, device: Device) -> str:
    """Returns CUDA source of a generic kernel without what TVM moves out of it to the host, whose values only the host's code knows."""
    tvm = load_tvm()
    with tvm.transform.PassContext(disabled_pass=["tirx.CommonSubexprElim"]):
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
