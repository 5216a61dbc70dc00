"""Makes the function of a layer on a GPU whose kernels have bodies of another origin: TVM makes the host's code of it, and the kernels' parameters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from ...toolchain.tvm import load_tvm
from .. import names
from .fuse_groups import bound, main_function

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)

_RESULTS = {names.Y, names.PART}  # of those that a kernel takes, the ones that it may write


@dataclass(frozen=True)
class Launched:
    """One kernel: its blocks, an expression of the batch; threads of a block; and the names of its parameters."""

    blocks: Any
    threads: int
    names: Collection[str]


def launch_stub(operands: Sequence[tuple[Sequence[Any], str]], names_of: Sequence[str], launches: Sequence[Launched]) -> Any:
    """Returns a PrimFunc whose i-th kernel has the blocks, threads and parameters of the i-th launch, and reads each of them.

    Args:
        operands: (shape, dtype) of each, in parameter order; the first extent of the first is the batch.
        names_of: the names that kernels know them by.
        launches: first to last.
    """
    buffers = {name: tirx.decl_buffer(shape, dtype, name=name) for name, (shape, dtype) in zip(names_of, operands, strict=True)}
    n, nests = operands[0][0][0], []
    for launch in launches:
        written = next(name for name in launch.names if name in _RESULTS and (name == names.Y or names.Y not in launch.names))
        value = tirx.Cast("float32", n) if names.BATCH in launch.names else tirx.const(0, "float32")
        for name, buffer in buffers.items():
            if name in launch.names and name != written:
                value = value + tirx.Cast("float32", tirx.BufferLoad(buffer, _first(buffer)))
        target = buffers[written]
        store = tirx.BufferStore(target, tirx.Cast(target.dtype, value), _first(target))
        inner = bound(tirx.Var("thread", "int32"), "threadIdx.x", tirx.const(launch.threads, "int32"), store)
        nests.append(bound(tirx.Var("block", "int32"), "blockIdx.x", launch.blocks, inner))
    return main_function(list(buffers.values()), nests, [])


def _first(buffer: Any) -> list[Any]:
    """Returns the indices of a buffer's first element."""
    return [tirx.const(0, "int32") for _ in buffer.shape]
