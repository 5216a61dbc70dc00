"""Writes the CUDA source of a layer's kernels: each finds the part that a block belongs to, and holds the parts' own bodies as PTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .. import names
from .cuda_text import Definition
from .ptx import SHARED_MEMORY, Kernel, assembly, inlined, shared_places, with_task

_BLOCK = "block"  # variable of a kernel: the number of a block, later that of a task in its part


@dataclass(frozen=True)
class PartKernel:
    """One kernel of one part, as a layer's kernel holds it.

    Attributes:
        kernel: its PTX.
        tasks: the text of the number of its blocks, of the batch and numbers.
        threads: of a block.
        names: of its parameters, in order.
        moved: what is added to an address that it is given, in elements, by the name of the parameter; those that are not here are given as they are.
    """

    kernel: Kernel
    tasks: str
    threads: int
    names: tuple[str, ...]
    moved: Mapping[str, str]


def layer_kernel(entry: Definition, parts: Sequence[PartKernel]) -> str:
    """Returns the CUDA source of one kernel of a layer.

    Args:
        entry: the kernel as the host calls it: its name, the most threads of a block, its parameters.
        parts: in the order of their blocks.
    """
    head = f'extern "C" __global__ void __launch_bounds__({entry.bound}) {entry.name}({entry.parameters}) {{\n'
    if len(parts) == 1 and not parts[0].moved and parts[0].threads == entry.bound:
        only = parts[0]
        body = inlined(only.kernel, entry.name, _given(entry, only), "a", keep_shared=True)
        return f"{head}asm volatile(\n{assembly(body, operands=False)}\n);\n}}\n"
    starts = ["0"]
    for part in parts[:-1]:
        starts.append(part.tasks if starts[-1] == "0" else f"{starts[-1]} + {part.tasks}")

    def leaf(index: int) -> str:
        return f"{_BLOCK} -= {starts[index]};\n" * bool(index) + _body(entry, parts[index], f"p{index}")

    return f"{head}{_shared([part.kernel for part in parts])}int {_BLOCK} = blockIdx.x;\n{_searched(0, len(parts), starts, leaf)}}}\n"


def _searched(first: int, stop: int, starts: Sequence[str], leaf: Callable[[int], str]) -> str:
    """Returns the statements that find the part of a block by halves; every block of threads takes one way."""
    if stop - first == 1:
        return leaf(first)
    half = (first + stop) // 2
    low, high = _searched(first, half, starts, leaf), _searched(half, stop, starts, leaf)
    return f"if ({_BLOCK} < {starts[half]}) {{\n{low}}} else {{\n{high}}}\n"


def _body(entry: Definition, part: PartKernel, tag: str) -> str:
    """Returns the statements that run one part; threads that it lacks are done before its first barrier.

    Its body declares registers, whose names may be those that the compiler gave the operands of the statement. So operands are moved to names of
    their own first, outside the block in which the body stands.
    """
    given, operands = _given(entry, part), [f'"r"({_BLOCK})']
    moves = [".reg .b32 tvm_orient_task;", "mov.u32 tvm_orient_task, %0;"]
    for number, name in enumerate(part.names):
        if name in part.moved:
            given[number] = f"tvm_orient_{name}"
            moves += [f".reg .b64 tvm_orient_{name};", f"mov.u64 tvm_orient_{name}, %{len(operands)};"]
            operands.append(f'"l"({name}{names.POINTER} + {part.moved[name]})')
    body = with_task(inlined(part.kernel, entry.name, given, tag), "tvm_orient_task")
    fewer = f"if (threadIdx.x >= {part.threads}) return;\n" * (part.threads < entry.bound)
    text = "\n".join(["{", *moves, body, "}"])
    return f'{fewer}asm volatile(\n{assembly(text, operands=True)}\n:: {", ".join(operands)} : "memory");\n'


def _given(entry: Definition, part: PartKernel) -> dict[int, str]:
    """Returns the parameter of the entry that each parameter of a part is, as `ptx.inlined` takes them."""
    return {number: f"#{entry.names.index(name)}" for number, name in enumerate(part.names)}


def _shared(kernels: Sequence[Kernel]) -> str:
    """Returns the declaration of the shared memory of kernels: as much as the one that takes most, as well aligned as any asks; nothing where none has any."""
    size = max(shared_places(kernel)[1] for kernel in kernels)
    alignment = max((array.alignment for kernel in kernels for array in kernel.shared), default=1)
    return f'asm volatile(".shared .align {alignment} .b8 {SHARED_MEMORY}[{size}];");\n' if size else ""
