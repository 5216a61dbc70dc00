"""Assembles the PTX of a layer's parts into machine code: one kernel for each launch of the layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..codegen.cuda.cuda_text import Definition
from ..codegen.cuda.layer_source import PartKernel, layer_kernel
from ..codegen.cuda.ptx import Kernel, kernels
from ..codegen.names import BATCH, FIRST_KERNEL, POINTER, kernel_names
from ..problem.spec import Operand
from ..toolchain import nvrtc
from .layer_plan import LayerPlan
from .parts import Part, PartLaunch, Placed, channel_elements

_TYPES = {"float32": "float", "float64": "double"}  # of pointers in the kernels that hold PTX; which type it is changes nothing but how they are moved
_HALF = "unsigned short"


@dataclass(frozen=True)
class LayerKernel:
    """One kernel of a layer.

    Attributes:
        name: TVM's.
        names: of its parameters, in order.
        threads: of a block.
        parts: the kernels of its parts, in the order of their blocks.
    """

    name: str
    names: tuple[str, ...]
    threads: int
    parts: Sequence[PartLaunch]

    def blocks(self, n: int) -> int:
        """Returns the blocks of a launch for n images."""
        return sum(int(part.tasks(n)) for part in self.parts)


def layer_kernels(plan: LayerPlan) -> list[LayerKernel]:
    """Returns the kernels of a layer, in the order in which they run."""
    found = []
    for index, parts in enumerate(plan.launches()):
        taken = {name for part in parts for name in part.names}
        names = (*sorted(taken - {BATCH}), *sorted(taken & {BATCH}))  # TVM's order
        found.append(LayerKernel(FIRST_KERNEL + f"_{index}" * bool(index), names, max(part.threads for part in parts), parts))
    return found


def assembled(plan: LayerPlan) -> bytes:
    """Returns the cubin of a layer.

    Raises:
        BuildFailed: NVRTC refused it, or a part's kernel uses what its PTX does not hold.
        EnvironmentProblem: NVRTC is missing.
    """
    return nvrtc.compile_cubin(layer_source(plan), plan.device.arch)


def layer_source(plan: LayerPlan) -> str:
    """Returns the CUDA source of a layer's kernels, which hold its parts as PTX.

    Raises:
        BuildFailed: a part's kernel uses what its PTX does not hold.
    """
    read = {one.part: kernels(compiled.code.decode()) for one, compiled in zip(plan.placed, plan.compiled, strict=True)}
    return "\n".join(_source(plan, index, kernel, {part: found[index] for part, found in read.items()}) for index, kernel in enumerate(layer_kernels(plan)))


def _source(plan: LayerPlan, index: int, kernel: LayerKernel, bodies: Mapping[Part, Kernel]) -> str:
    """Returns the CUDA source of one kernel, given the PTX of each part's."""
    operands = dict(zip(kernel_names(plan.spec.op, bias=plan.spec.bias), plan.spec.operands(1), strict=True))

    def parameter(name: str) -> str:
        return f"int {name}" if name == BATCH else f"{_TYPES.get(operands[name].dtype, _HALF)}* __restrict__ {name}{POINTER}"

    entry = Definition(kernel.name, kernel.threads, ", ".join(map(parameter, kernel.names)), "")
    return layer_kernel(
        entry,
        [
            _part(one, bodies[one.part], compiled.launches[index], start, operands)
            for one, compiled, start in zip(plan.placed, plan.compiled, plan.starts, strict=True)
        ],
    )


def _part(placed: Placed, body: Kernel, launch: PartLaunch, start: int, operands: Mapping[str, Operand]) -> PartKernel:
    """Returns a part of one kernel as the kernel holds it; start: of its share of the workspace."""
    tasks = f"{BATCH} * {launch.each}" if launch.each else ""
    tasks = f"{tasks} + {launch.more}" if tasks and launch.more else tasks or str(launch.more)
    steps = {name: 0 if operands[name].role == "workspace" else channel_elements(operands[name]) for name in launch.names if name != BATCH}
    return PartKernel(placed.part.symbol, body, tasks, launch.threads, launch.names, placed.channel, start, steps)
