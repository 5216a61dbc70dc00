"""Rewrites what schedule primitives cannot say: cuts rows into whole vectors, and fetches the data of a later task ahead.

Both take a scheduled function of one angle group, before groups are merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import BuildFailed
from ...toolchain.tvm import load_tvm


def renamed(body: Any, var: Any, place: Any) -> Any:
    """Returns a second copy of what a loop runs: place instead of the loop's variable, and new variables instead of those defined inside."""
    load_tvm()
    from tvm import tirx
    from tvm.s_tir import SBlock
    from tvm_ffi import structural_map

    names = [(var, place)]

    def define(node: Any) -> Any:
        defined = [v.var for v in node.iter_vars] if isinstance(node, SBlock) else [node.loop_var if isinstance(node, tirx.For) else node.var]
        names.extend((old, tirx.Var(old.name, old.ty)) for old in defined)
        return node

    structural_map(body, [(tirx.For, define), (SBlock, define), (tirx.Let, define)])
    return structural_map(body, (tirx.Var, lambda v: next((new for old, new in names if v.same_as(old)), v)))


def moved(func: Any, chosen: Callable[[Any], bool], place: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
    """Returns the function with what is stored at (row, column) of the chosen buffer, its last two axes, stored at place(row, column).

    Raises:
        BuildFailed: nothing is stored in the chosen buffer.
    """
    load_tvm()
    from tvm import tirx
    from tvm.ir import Range, TensorRegion
    from tvm_ffi import structural_map

    places = 0

    def store(op: Any) -> Any:
        nonlocal places
        if not chosen(op.buffer):
            return op
        places += 1
        *outer, row, column = op.indices
        return tirx.BufferStore(op.buffer, op.value, [*outer, *place(row, column)])

    def region(op: Any) -> Any:
        if not chosen(op.source):
            return op
        return tirx.BufferRegion(op.source, [*op.region[:-2], *(Range(0, size) for size in op.source.shape[-2:])])

    body = structural_map(func.body, [(tirx.BufferStore, store), (TensorRegion, region)])
    if not places:
        raise BuildFailed("a store must be moved to its place in the plane, and no store is in the chosen buffer: see that its name is the one in names.py")
    return func.with_body(body)
