"""Merges scheduled angle groups into one function: one launch per layer, each angle with its own schedule.

Each group's function computes its own channels; here its loads and stores move to the layer's buffers, and the i-th
loop nests of all groups become one nest over the sum of their tasks. A serial loop of extent 0 or 1 picks the group,
since TVM refuses barriers under an if; on CUDA the branches then share one shared-memory allocation, and the source says if.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...toolchain.tvm import load_tvm
from ..names import BRANCH, SKIP_RENORMALIZE
from .visit import rebuffered

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm.s_tir import SBlock, SBlockRealize  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402


@dataclass(frozen=True)
class Group:
    """One angle group of a layer, scheduled."""

    func: Any  #: PrimFunc over the channels of the group
    origins: tuple[tuple[int, ...], ...]  #: for each of its parameters the index in the layer's buffer at which it begins


def merge(groups: Sequence[Group], shapes: Sequence[Sequence[Any]], kind: str) -> Any:
    """Returns one PrimFunc over the layer's buffers, whose shapes are given in parameter order.

    kind "cpu": the outermost loop of each nest runs over independent tasks and is made parallel here. kind "cuda": it is
    bound to blockIdx.x, with threadIdx.x loops inside; a group of fewer threads lets the rest idle.
    """
    params = groups[0].func.params
    buffers = [tirx.decl_buffer(shape, param.dtype, name=param.name) for param, shape in zip(params, shapes, strict=True)]
    nests = [[rebased(nest, group, buffers) for nest in nests_of(group.func)] for group in groups]
    body = [_one_nest([n[i] for n in nests], kind) for i in range(len(nests[0]))]
    allocs = [buffer for group in groups for buffer in group.func.body.block.alloc_buffers]
    func = main_function(buffers, body, allocs)
    return func.with_attr(SKIP_RENORMALIZE, True) if any(SKIP_RENORMALIZE in group.func.attrs for group in groups) else func


def main_function(buffers: Sequence[Any], nests: Sequence[Any], allocs: Sequence[Any]) -> Any:
    """Returns the PrimFunc of a layer, called main.

    Args:
        buffers: its parameters.
        nests: what it runs, first to last.
        allocs: buffers of its own.
    """
    root = SBlock([], [], [], "root", nests[0] if len(nests) == 1 else tirx.SeqStmt(nests), None, allocs, [], {})
    func = tirx.PrimFunc(list(buffers), SBlockRealize([], tirx.const(True, "bool"), root))
    return func.with_attr("global_symbol", "main").with_attr("tirx.noalias", True).with_attr("s_tir", True)


def bound(loop_var: Any, tag: str, extent: Any, body: Any) -> Any:
    """Returns a loop from 0 that is bound to an index of the launch, such as "blockIdx.x"."""
    index = tirx.IterVar(None, tirx.Var(tag, "int32"), tirx.IterVar.ThreadIndex, tag)
    return tirx.For(loop_var, tirx.const(0, "int32"), extent, tirx.ForKind.THREAD_BINDING, body, thread_binding=index)


def nests_of(func: Any) -> list[Any]:
    """Returns the outermost loop nests of a function, first to last."""
    body = func.body.block.body
    return list(body.seq) if isinstance(body, tirx.SeqStmt) else [body]


def rebased(nest: Any, group: Group, buffers: Sequence[Any]) -> Any:
    """Returns the nest with every access to a parameter of the group moved to the layer's buffer."""
    params = list(group.func.params)

    def home(buffer: Any) -> Any:
        index = next((i for i, param in enumerate(params) if buffer.same_as(param)), None)
        if index is None:
            return None
        return buffers[index], lambda positions: [p + o if o else p for p, o in zip(positions, group.origins[index], strict=True)]

    return rebuffered(nest, home)


def _one_nest(nests: Sequence[Any], kind: str) -> Any:
    """Returns the nest that runs the tasks of all these nests, one for each group."""
    cuda = kind == "cuda"
    threads = max(_threads(nest) for nest in nests) if cuda else 0
    branches: list[Any] = []
    task, total = tirx.Var("task", "int32"), tirx.const(0, "int32")
    yes, no = tirx.const(1, "int32"), tirx.const(0, "int32")
    for nest in nests:
        own = tirx.Var(BRANCH, "int32")
        nest = structural_map(nest, (tirx.Var, lambda v, old=nest.loop_var, own=own: own if v.same_as(old) else v)) if cuda and len(nests) > 1 else nest
        start, total = total, total + nest.extent
        mine = yes if len(nests) == 1 else tirx.if_then_else(tirx.all(task >= start, task < total), yes, no)
        first = tirx.max(task - start, no) if cuda and branches else task - start  # never negative, so that buffers are cut to one task's part
        branches.append(tirx.For(nest.loop_var, first, mine, tirx.ForKind.SERIAL, _widen(nest.body, threads) if cuda else nest.body))
    body = branches[0] if len(branches) == 1 else tirx.SeqStmt(branches)
    if not cuda:
        return tirx.For(task, no, total, tirx.ForKind.PARALLEL, body)
    return bound(task, "blockIdx.x", total, body)


def _is_thread_loop(loop: Any) -> bool:
    """Returns whether a loop is over the threads of a block."""
    return loop.thread_binding is not None and loop.thread_binding.thread_tag == "threadIdx.x"


def _threads(nest: Any) -> int:
    """Returns the threads of the largest block in a nest."""
    found = [1]

    def look(loop: Any) -> Any:
        if _is_thread_loop(loop):
            found.append(int(loop.extent))
        return loop

    structural_map(nest, (tirx.For, look))
    return max(found)


def _widen(nest: Any, threads: int) -> Any:
    """Returns the nest with every threadIdx.x loop at `threads`, the body guarded where it had fewer."""

    def change(loop: Any) -> Any:
        if not _is_thread_loop(loop) or int(loop.extent) == threads:
            return loop
        guarded = tirx.IfThenElse(loop.loop_var < loop.extent, loop.body, None)
        return tirx.For(loop.loop_var, loop.min, tirx.const(threads, "int32"), loop.kind, guarded, loop.thread_binding, loop.annotations)

    return structural_map(nest, (tirx.For, change))
