"""Makes functions for the CPU of one angle group, a part of a layer, and the function of the layer that calls those of its parts.

A part is compiled alone, so that its code serves every layer that has it. Its functions compute one task each, are called as C calls
functions, and take the addresses of the operands, the number of images, and the number of the task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from ...toolchain.tvm import load_tvm
from .. import names
from .fuse_groups import Group, main_function, nests_of, rebased

load_tvm()

from tvm import DataType, tirx  # noqa: E402  (after the version guard)
from tvm.ir import PointerType, PrimType  # noqa: E402
from tvm.s_tir import SBlock, SBlockRealize  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402

_C_CALL = 1  # CallingConv of a function that is public and that TVM does not wrap: see tvm.tirx.build
_STATUS = "int32"  # dtype of what a call of a function gives, which is nothing
_MAX_STACK = 1024  # bytes of an array from which on TVM asks the system for its memory, in each call


@dataclass(frozen=True)
class Branch:
    """The tasks of a nest of a layer that one part computes.

    Attributes:
        tasks: how many.
        call: makes the statement that computes one, of the number that it has in the part.
    """

    tasks: Any
    call: Callable[[Any], Any]


def part_functions(group: Group, shapes: Sequence[Sequence[Any]], symbol: str) -> list[Any]:
    """Returns a PrimFunc for each nest of a part, called <symbol>_0, <symbol>_1 and so on.

    Args:
        group: the part, scheduled; where its operands begin in the buffers.
        shapes: of the buffers whose addresses are given, in parameter order; the batch is a variable.
        symbol: of the object file.
    """
    found = []
    for index, nest in enumerate(nests_of(group.func)):
        params = group.func.params
        data = [tirx.Var(param.name, PointerType(PrimType(param.dtype), names.GLOBAL)) for param in params]
        buffers = [tirx.decl_buffer(shape, param.dtype, name=param.name) for shape, param in zip(shapes, params, strict=True)]
        task = tirx.Var(names.TASK, "int32")
        known = tirx.max(task, tirx.const(0, "int32"))  # TVM knows it of a loop's variable, and not of a parameter
        one = tirx.For(nest.loop_var, known, tirx.const(1, "int32"), tirx.ForKind.SERIAL, rebased(nest, group, buffers).body)
        root = SBlock([], [], [], "root", one, None, list(group.func.body.block.alloc_buffers), [], {})
        declared = [tirx.DeclBuffer(buffer, data=given) for buffer, given in zip(buffers, data, strict=True)]
        body = tirx.SeqStmt([*declared, SBlockRealize([], tirx.const(True, "bool"), root)])
        func = tirx.PrimFunc([*data, shapes[0][0], task], body)
        func = func.with_attr("global_symbol", f"{symbol}_{index}").with_attr("calling_conv", _C_CALL)
        found.append(func.with_attr("tirx.noalias", True).with_attr("s_tir", True))
    return found


def with_scratch(func: Any) -> tuple[Any, tuple[int, ...]]:
    """Returns a lowered function whose large arrays are the caller's, as further parameters, and the size of each in bytes.

    The caller has them once for many tasks. TVM would ask the system for them in each call.
    """
    params: list[Any] = []
    sizes: list[int] = []

    def change(alloc: Any) -> Any:
        buffer = alloc.buffer
        size = math.prod(int(extent) for extent in buffer.shape) * -(-DataType(buffer.dtype).bits * DataType(buffer.dtype).lanes // 8)
        if size < _MAX_STACK:
            return alloc
        params.append(tirx.Var(buffer.name, PointerType(PrimType(buffer.dtype), names.GLOBAL)))
        sizes.append(size)
        return tirx.DeclBuffer(buffer, data=params[-1])

    body = structural_map(func.body, (tirx.AllocBuffer, change))
    return tirx.PrimFunc([*func.params, *params], body, func.ret_type, func.attrs), tuple(sizes)


def called(symbol: str, operands: Sequence[tuple[Any, Any]], n: Any, scratch: Sequence[Any]) -> Callable[[Any], Any]:
    """Returns what makes the call of a part's function.

    Args:
        symbol: of the function.
        operands: (buffer of the layer, number of elements in it before the address that is given), in parameter order.
        n: images.
        scratch: the buffers that it is lent, as `scratch_for` makes them.
    """

    def call(task: Any) -> Any:
        given = [tirx.address_of(tirx.BufferLoad(buffer, _at(buffer, before))) for buffer, before in operands]
        return tirx.Evaluate(tirx.call_extern(_STATUS, symbol, *given, n, task, *(buffer.data for buffer in scratch)))

    return call


def scratch_for(sizes: Sequence[Sequence[int]]) -> list[Any]:
    """Returns the buffers of bytes that functions are lent, one after the other: the i-th is as large as the i-th array of any of them.

    Args:
        sizes: of the arrays of each function, in bytes.
    """
    return [tirx.decl_buffer((max(every),), "uint8", name=f"scratch{index}") for index, every in enumerate(zip_longest(*sizes, fillvalue=0))]


def _at(buffer: Any, before: Any) -> list[Any]:
    """Returns the indices of the element that so many lie before: all of them along the last axis, which TVM adds up to one number."""
    zero = tirx.const(0, "int32")
    return [*(zero for _ in buffer.shape[1:]), zero + before]


def layer_function(buffers: Sequence[Any], nests: Sequence[tuple[Sequence[Any], Sequence[Branch]]]) -> Any:
    """Returns the PrimFunc of a layer, which runs the nests one after the other, and the tasks of all branches of a nest in parallel.

    Args:
        buffers: its parameters.
        nests: the scratch of each, of which every thread has its own, and its branches.
    """
    loops = []
    for _, branches in nests:
        task, total = tirx.Var(names.TASK, "int32"), tirx.const(0, "int32")
        starts = []
        for branch in branches:
            starts.append(total)
            total = total + branch.tasks
        loops.append(tirx.For(task, tirx.const(0, "int32"), total, tirx.ForKind.PARALLEL, _searched(task, starts, branches)))
    return main_function(buffers, loops, [buffer for scratch, _ in nests for buffer in scratch])


def _searched(task: Any, starts: Sequence[Any], branches: Sequence[Branch]) -> Any:
    """Returns the statement that finds the branch of a task by halves, and calls it."""
    if len(branches) == 1:
        return branches[0].call(task - starts[0])
    half = len(branches) // 2
    return tirx.IfThenElse(task < starts[half], _searched(task, starts[:half], branches[:half]), _searched(task, starts[half:], branches[half:]))
