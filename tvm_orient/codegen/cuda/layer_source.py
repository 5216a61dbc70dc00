"""Writes the CUDA source of a layer's kernels: each finds the part that a block belongs to, and holds the parts' own bodies as PTX."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .. import names
from .cuda_text import Definition
from .ptx import SHARED_MEMORY, Kernel, assembly, inlined, shared_places, with_task

_BLOCK = "block"  # variable of a kernel: the number of a block, later that of a task in its part
_WHICH = "which"  # variable of a kernel that holds some part several times: which of its bodies a block runs
_CHANNEL = "channel"  # variable of such a kernel: the channel whose addresses that body is given
_SPACE = "space"  # variable of such a kernel: where in the workspace its share begins, in elements for each image


@dataclass(frozen=True)
class PartKernel:
    """One kernel of one part, as a layer's kernel holds it.

    Attributes:
        part: name of the part; those of one name are the same but for where they stand.
        kernel: its PTX.
        tasks: the text of the number of its blocks, of the batch and numbers.
        threads: of a block.
        names: of its parameters, in order.
        channel: the channel of the layer whose addresses it is given.
        space: where in the workspace its share begins, in elements for each image.
        steps: elements from one channel to the next, by the name of each parameter that is an operand; 0 for the workspace.
    """

    part: str
    kernel: Kernel
    tasks: str
    threads: int
    names: tuple[str, ...]
    channel: int
    space: int
    steps: Mapping[str, int]

    def moved(self, channel: str, space: str) -> dict[str, str]:
        """Returns what is added to the addresses that it is given, in elements, by the name of the parameter; nothing where that is always 0.

        Args:
            channel: number, or variable, of the channel.
            space: number, or variable, of its share of the workspace.
        """
        places = {name: (channel, str(step)) if step else (space, names.BATCH) for name, step in self.steps.items()}
        return {name: f"(long long){place} * {factor}" for name, (place, factor) in places.items() if place != "0"}


def layer_kernel(entry: Definition, parts: Sequence[PartKernel]) -> str:
    """Returns the CUDA source of one kernel of a layer.

    Args:
        entry: the kernel as the host calls it: its name, the most threads of a block, its parameters.
        parts: in the order of their blocks.
    """
    head = f'extern "C" __global__ void __launch_bounds__({entry.bound}) {entry.name}({entry.parameters}) {{\n'
    only = parts[0]
    if len(parts) == 1 and not only.moved(str(only.channel), str(only.space)) and only.threads == entry.bound:
        body = inlined(only.kernel, entry.name, _given(entry, only), "a", keep_shared=True)
        return f"{head}asm volatile(\n{assembly(body, operands=False)}\n);\n}}\n"
    starts = ["0"]
    for part in parts[:-1]:
        starts.append(part.tasks if starts[-1] == "0" else f"{starts[-1]} + {part.tasks}")
    distinct = list({part.part: part for part in parts}.values())
    begin = f"{head}{_shared([part.kernel for part in distinct])}int {_BLOCK} = blockIdx.x;\n"
    if len(distinct) == len(parts):

        def leaf(index: int) -> str:
            part = parts[index]
            return _moved_block(starts[index]) + _body(entry, part, f"p{index}", part.moved(str(part.channel), str(part.space)))

        return f"{begin}{_searched(_BLOCK, starts, leaf)}}}\n"
    number = {part.part: index for index, part in enumerate(distinct)}

    def found(index: int) -> str:
        part = parts[index]
        return f"{_moved_block(starts[index])}{_WHICH} = {number[part.part]}; {_CHANNEL} = {part.channel}; {_SPACE} = {part.space};\n"

    bodies = [_body(entry, part, f"p{index}", part.moved(_CHANNEL, _SPACE)) for index, part in enumerate(distinct)]
    search = _searched(_BLOCK, starts, found) + _searched(_WHICH, [str(index) for index in range(len(bodies))], bodies.__getitem__)
    return f"{begin}int {_WHICH}, {_CHANNEL}, {_SPACE};\n{search}}}\n"


def _moved_block(start: str) -> str:
    """Returns the statement that makes the number of a block that of a task in its part."""
    return f"{_BLOCK} -= {start};\n" if start != "0" else ""


def _searched(variable: str, starts: Sequence[str], leaf: Callable[[int], str], first: int = 0, stop: int | None = None) -> str:
    """Returns the statements that find the last start that a variable has reached, by halves; all threads of a block take one way.

    Args:
        variable: its name.
        starts: ascending; the first is always reached.
        leaf: gives the statements for each.
        first: the first of those that are left.
        stop: after the last of them; None for all.
    """
    stop = len(starts) if stop is None else stop
    if stop - first == 1:
        return leaf(first)
    half = (first + stop) // 2
    low, high = _searched(variable, starts, leaf, first, half), _searched(variable, starts, leaf, half, stop)
    return f"if ({variable} < {starts[half]}) {{\n{low}}} else {{\n{high}}}\n"


def _body(entry: Definition, part: PartKernel, tag: str, moved: Mapping[str, str]) -> str:
    """Returns the statements that run one part; threads that it lacks are done before its first barrier.

    Its body declares registers, whose names may be those that the compiler gave the operands of the statement. So operands are moved to names of
    their own first, outside the block in which the body stands.
    """
    given, operands = _given(entry, part), [f'"r"({_BLOCK})']
    moves = [".reg .b32 tvm_orient_task;", "mov.u32 tvm_orient_task, %0;"]
    for number, name in enumerate(part.names):
        if name in moved:
            given[number] = f"tvm_orient_{name}"
            moves += [f".reg .b64 tvm_orient_{name};", f"mov.u64 tvm_orient_{name}, %{len(operands)};"]
            operands.append(f'"l"({name}{names.POINTER} + {moved[name]})')
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
