"""Compiles a layer to a library: its parts are compiled apart and put together, on a GPU in one launch for all of them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..codegen.names import kernel_names
from ..errors import BuildFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice
from .layer_plan import Compiled, LayerPlan, planned
from .library import export, load_compilers, refusals
from .parts import channel_elements


@dataclass(frozen=True)
class Layer:
    """The facts of a layer's library, and what it was made of.

    Attributes:
        workspace: (bands, taps) that conv_dw needs for each image and channel; None for another op.
        source: CUDA source of its parts, one after the other, for people; empty for a CPU.
        cubin: its machine code on a GPU; empty for a CPU.
    """

    workspace: tuple[int, int] | None
    source: str = ""
    cubin: bytes = b""


def compile_layer(spec: ConvSpec, device: Device, choices: Sequence[Choice], path: Path, compiled: Compiled | None = None) -> Layer:
    """Compile a layer to a shared library at path, and return what it was made of.

    Args:
        choices: one for each of `spec.parts()`, none of them generic.
        compiled: its parts; None compiles them now.

    Raises:
        BuildFailed: the compiler refused it.
        EnvironmentProblem: nothing here links a library; or as `tvm_orient.compiler.compile_part.compile_part`.
    """
    load_compilers()
    plan = planned(spec, device, choices, compiled)
    with refusals(device):
        if device.kind == "cpu":
            _link(plan, path)
            return Layer(plan.workspace)
        return Layer(plan.workspace, _listing(plan), _with_host(plan, path))


def _link(plan: LayerPlan, path: Path) -> None:
    """Link the object files of the parts with the function that calls theirs."""
    import tvm
    from tvm import te, tirx

    from ..codegen.tir.part_functions import Branch, called, layer_function, scratch_for
    from ..toolchain.tvm import target

    n = te.var("n", "int32")
    operands = plan.spec.operands(n, plan.workspace or (1, 1))
    buffers = [tirx.decl_buffer(operand.shape, operand.dtype, name=operand.name) for operand in operands]
    nests: list[tuple[list[Any], list[Branch]]] = []
    for index, launches in enumerate(plan.launches()):
        scratch, branches = scratch_for([launch.scratch for launch in launches]), list[Branch]()
        for one, launch, start in zip(plan.placed, launches, plan.starts, strict=True):
            before = [n * start if operand.role == "workspace" else one.channel * channel_elements(operand) for operand in operands]
            call = called(f"{one.part.symbol}_{index}", list(zip(buffers, before, strict=True)), n, scratch[: len(launch.scratch)])
            branches.append(Branch(launch.tasks(n), call))
        nests.append((scratch, branches))
    module = tvm.IRModule({"main": layer_function(buffers, nests)})
    with tempfile.TemporaryDirectory() as folder:
        objects = {Path(folder) / f"{one.part.symbol}.o": compiled.code for one, compiled in zip(plan.placed, plan.compiled, strict=True)}
        for place, code in objects.items():
            place.write_bytes(code)
        export(tvm.compile(module, target=target(plan.device)), plan.device, path, list(objects))


def _with_host(plan: LayerPlan, path: Path) -> bytes:
    """Assemble the parts, put the host's code around them, and return the cubin.

    TVM makes the host's code, of a function whose kernels take what the parts take; what it makes of their bodies is dropped.

    Raises:
        BuildFailed: TVM passes parameters in another order than the kernels take them.
    """
    import tvm
    from tvm import te

    from ..codegen.cuda.cuda_text import definitions
    from ..codegen.te.expr import total_of
    from ..codegen.tir.launch_stub import Launched, launch_stub
    from ..toolchain.tvm import compile_cuda, rewrite_cuda, target
    from .assemble import assembled, layer_kernels

    n = te.var("n", "int32")
    operands = [(operand.shape, operand.dtype) for operand in plan.spec.operands(n, plan.workspace or (1, 1))]
    kernels = layer_kernels(plan)
    launched = [Launched(total_of([part.tasks(n) for part in kernel.parts]), kernel.threads, kernel.names) for kernel in kernels]
    stub = launch_stub(operands, kernel_names(plan.spec.op, bias=plan.spec.bias), launched)
    cubin, passed = assembled(plan), list[Any]()

    def given(source: str) -> bytes:
        passed.extend((one.name, one.names) for one in definitions(source))
        return cubin

    compile_cuda(given)
    rewrite_cuda(lambda source: source)
    with tvm.transform.PassContext(disabled_pass=["tirx.CommonSubexprElim"]):  # which would compute on the host what a kernel takes, and pass that
        executable = tvm.compile(tvm.IRModule({"main": stub}), target=target(plan.device))
    taken = [(kernel.name, kernel.names) for kernel in kernels]
    if passed != taken:
        raise BuildFailed(f"the host's code must pass what the kernels take, {taken}, got {passed}: TVM orders parameters otherwise than this version knows")
    export(executable, plan.device, path, [])
    return cubin


def _listing(plan: LayerPlan) -> str:
    """Return the CUDA source of the parts, one after the other, each under the channels that it computes."""
    found = []
    for one, compiled in zip(plan.placed, plan.compiled, strict=True):
        first = one.channel + one.part.offset
        found.append(f"// channels {first} to {first + one.part.channels - 1}: {one.part.choice.template}, {one.part.spec}\n{compiled.source}")
    return "\n".join(found)
