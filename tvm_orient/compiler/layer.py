"""Puts the compiled parts of a layer together: one library, and on a GPU one launch for all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BuildFailed, OrientError, last_line
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice
from .compile_part import compile_part
from .library import export, load_compilers
from .parts import CompiledPart, Part, Placed, channel_elements, placed_parts, workspaces

Compiled = Mapping[Part, CompiledPart]


@dataclass(frozen=True)
class Layer:
    """What a layer's library was made of.

    Attributes:
        workspace: (bands, taps) that conv_dw needs for each image and channel; None for another op.
        source: CUDA source of its parts, one after the other, for people; empty for a CPU.
        cubin: its machine code on a GPU; empty for a CPU.
    """

    workspace: tuple[int, int] | None
    source: str = ""
    cubin: bytes = b""


def compiled_parts(spec: ConvSpec, device: Device, choices: Sequence[Choice]) -> dict[Part, CompiledPart]:
    """Return every part of a layer, compiled one after the other in this process.

    Raises:
        BuildFailed, EnvironmentProblem: as `compile_part`.
    """
    distinct = dict.fromkeys(placed.part for placed in placed_parts(spec, choices, device))
    return {part: compile_part(part, device) for part in distinct}


def compile_layer(spec: ConvSpec, device: Device, choices: Sequence[Choice], path: Path, compiled: Compiled | None = None) -> Layer:
    """Compile a layer to a shared library at path, and return what it was made of.

    Args:
        choices: one for each of `spec.parts()`, none of them generic.
        compiled: its parts; None compiles them now.

    Raises:
        BuildFailed: the compiler refused it.
        EnvironmentProblem: nothing here links a library; or as `compile_part`.
    """
    load_compilers()
    compiled = compiled_parts(spec, device, choices) if compiled is None else compiled
    placed = placed_parts(spec, choices, device)
    starts, space = workspaces(spec, [(one.part.channels, compiled[one.part].workspace) for one in placed])
    plan = _Plan(spec, device, placed, [compiled[one.part] for one in placed], starts, space)
    try:
        if device.kind == "cpu":
            _link(plan, path)
            return Layer(space)
        source, cubin = _assemble(plan, path)
        return Layer(space, source, cubin)
    except OrientError:
        raise
    except Exception as problem:
        raise BuildFailed(f"{device.arch} refused the kernel: {last_line(problem)}") from problem


@dataclass(frozen=True)
class _Plan:
    """A layer to be put together: its parts where they stand, compiled, and where each one's workspace begins for each image."""

    spec: ConvSpec
    device: Device
    placed: Sequence[Placed]
    compiled: Sequence[CompiledPart]
    starts: Sequence[int]
    space: tuple[int, int] | None

    @property
    def nests(self) -> int:
        """Returns how many launches the layer has."""
        return len(self.compiled[0].launches)


def _link(plan: _Plan, path: Path) -> None:
    """Link the object files of the parts with the function that calls theirs."""
    import tvm
    from tvm import te, tirx

    from ..codegen.tir.part_functions import Branch, called, layer_function, scratch_for
    from ..toolchain.tvm import target

    n = te.var("n", "int32")
    operands = plan.spec.operands(n, plan.space or (1, 1))
    buffers = [tirx.decl_buffer(operand.shape, operand.dtype, name=operand.name) for operand in operands]
    nests: list[tuple[list[Any], list[Branch]]] = [
        (scratch_for([compiled.launches[index].scratch for compiled in plan.compiled]), []) for index in range(plan.nests)
    ]
    for one, compiled, start in zip(plan.placed, plan.compiled, plan.starts, strict=True):
        before = [n * start if operand.role == "workspace" else one.channel * channel_elements(operand) for operand in operands]
        for index, launch in enumerate(compiled.launches):
            scratch, branches = nests[index]
            call = called(f"{one.part.symbol}_{index}", list(zip(buffers, before, strict=True)), n, scratch[: len(launch.scratch)])
            branches.append(Branch(launch.tasks(n), call))
    module = tvm.IRModule({"main": layer_function(buffers, nests)})
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for part, compiled in {one.part: compiled for one, compiled in zip(plan.placed, plan.compiled, strict=True)}.items():
            objects.append(Path(folder) / f"{part.symbol}.o")
            objects[-1].write_bytes(compiled.code)
        export(tvm.compile(module, target=target(plan.device)), plan.device, path, objects)


def _assemble(plan: _Plan, path: Path) -> tuple[str, bytes]:
    """Assemble the parts' PTX into one kernel for each launch, and return the parts' source and the machine code.

    TVM makes the host's code, of a function whose kernels take what the parts take; what it makes of their bodies is dropped.
    """
    import tvm
    from tvm import te

    from ..codegen.cuda.cuda_text import definitions
    from ..codegen.cuda.layer_source import layer_kernel
    from ..codegen.tir.launch_stub import Launched, kernel_names, launch_stub
    from ..toolchain import nvrtc
    from ..toolchain.tvm import compile_cuda, rewrite_cuda, target

    n = te.var("n", "int32")
    operands = plan.spec.operands(n, plan.space or (1, 1))
    launches = [[compiled.launches[index] for compiled in plan.compiled] for index in range(plan.nests)]
    stub = launch_stub([(operand.shape, operand.dtype) for operand in operands], kernel_names(plan.spec.op, plan.spec.bias), [
        Launched(_sum([one.tasks(n) for one in every]), max(one.threads for one in every), {name for one in every for name in one.names}) for every in launches
    ])  # fmt: skip
    made: list[bytes] = []

    def assembled(source: str) -> bytes:
        entries = definitions(source)
        text = "\n".join(layer_kernel(entry, _part_kernels(plan, index)) for index, entry in enumerate(entries))
        made.append(nvrtc.compile_cubin(text, plan.device.arch))
        return made[-1]

    compile_cuda(assembled)
    rewrite_cuda(lambda source: source)
    with tvm.transform.PassContext(disabled_pass=["tirx.CommonSubexprElim"]):  # which would compute on the host what a kernel takes, and pass that
        executable = tvm.compile(tvm.IRModule({"main": stub}), target=target(plan.device))
    export(executable, plan.device, path, [])
    return _listing(plan), made[0]


def _sum(terms: Sequence[Any]) -> Any:
    """Return the sum of terms."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _part_kernels(plan: _Plan, index: int) -> list[Any]:
    """Return the parts of one launch as its kernel holds them."""
    from ..codegen.cuda.layer_source import PartKernel
    from ..codegen.cuda.ptx import kernels
    from ..codegen.tir.launch_stub import kernel_names

    found = []
    operands = dict(zip(kernel_names(plan.spec.op, plan.spec.bias), plan.spec.operands(1), strict=True))
    for one, compiled, start in zip(plan.placed, plan.compiled, plan.starts, strict=True):
        launch = compiled.launches[index]
        tasks = f"n * {launch.each}" if launch.each else str(launch.more)
        moved = {name: str(one.channel * channel_elements(operand)) for name, operand in operands.items() if one.channel and operand.role != "workspace"}
        if start:
            moved |= {name: f"(long long)n * {start}" for name, operand in operands.items() if operand.role == "workspace"}
        moved = {name: text for name, text in moved.items() if name in launch.names}
        found.append(PartKernel(kernels(compiled.code.decode())[index], tasks, launch.threads, launch.names, moved))
    return found


def _listing(plan: _Plan) -> str:
    """Return the CUDA source of the parts, one after the other, each under the channels that it computes."""
    found = []
    for one, compiled in zip(plan.placed, plan.compiled, strict=True):
        first = one.channel + one.part.offset
        found.append(f"// channels {first} to {first + one.part.channels - 1}: {one.part.choice.template}, {one.part.spec}\n{compiled.source}")
    return "\n".join(found)
