"""What schedule primitives cannot say: rows cut into whole vectors, and the data of a later task fetched ahead.

Both rewrite a scheduled function of one angle group, before groups are merged.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .tvmkit import load_tvm

AHEAD = "tvm_orient.ahead"  # annotation of the loop whose every turn fetches a piece of a later task
_MOST_PIECES = 16  # of one row, one after the other in the code
_LINE = 64  # bytes that one prefetch brings


def pieces(bounds: Sequence[int], widest: int) -> Iterator[tuple[int, int]]:
    """(start, width) of aligned vectors, powers of two, that cover a row and straddle none of its bounds."""
    for start, stop in itertools.pairwise(bounds):
        while start < stop:
            width = widest
            while start % width or start + width > stop:
                width //= 2
            yield start, width
            start += width


def runs(found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """(start, width, count) of pieces: a long run of equal ones is one, so that the code of a wide row stays short."""
    for width, group in itertools.groupby(found, key=lambda piece: piece[1]):
        same = list(group)
        if len(same) > _MOST_PIECES:
            yield same[0][0], width, len(same)
        else:
            yield from ((start, width, 1) for start, _ in same)


def renamed(body: Any, var: Any, place: Any) -> Any:
    """A second copy of what a loop runs: place instead of the loop's variable, and new variables instead of those defined inside."""
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
    """The function with what is stored at (row, column) of the chosen buffer, its last two axes, stored at place(row, column)."""
    load_tvm()
    from tvm import tirx
    from tvm.ir import Range, TensorRegion
    from tvm_ffi import structural_map

    def store(op: Any) -> Any:
        if not chosen(op.buffer):
            return op
        *outer, row, column = op.indices
        return tirx.BufferStore(op.buffer, op.value, [*outer, *place(row, column)])

    def region(op: Any) -> Any:
        if not chosen(op.source):
            return op
        return tirx.BufferRegion(op.source, [*op.region[:-2], *(Range(0, size) for size in op.source.shape[-2:])])

    return func.with_body(structural_map(func.body, [(tirx.BufferStore, store), (TensorRegion, region)]))


def cut(func: Any, block: str, axis: int, bounds: Sequence[int], widest: int) -> Any:
    """The function with the loop over an axis of a block replaced by one vector loop for each of its pieces.

    What is the same for a whole piece (whether its columns lie inside the plane, say) is then decided by the compiler.
    """
    load_tvm()
    from tvm import tirx
    from tvm.s_tir import SBlockRealize
    from tvm_ffi import structural_map

    def runs_along(loop: Any) -> bool:
        inner = loop.body
        while isinstance(inner, tirx.For):
            inner = inner.body
        return isinstance(inner, SBlockRealize) and inner.block.name_hint == block and inner.iter_values[axis].same_as(loop.loop_var)

    def change(loop: Any) -> Any:
        if not runs_along(loop):
            return loop
        parts = []
        for start, width, count in runs(pieces(bounds, widest)):
            lane, turn = tirx.Var("lane", "int32"), tirx.Var("turn", "int32")
            place = lane + start if count == 1 else turn * width + lane + start
            body = renamed(loop.body, loop.loop_var, place)
            kind = tirx.ForKind.VECTORIZED if width > 1 else tirx.ForKind.SERIAL
            part = tirx.For(lane, tirx.const(0, "int32"), tirx.const(width, "int32"), kind, body)
            parts.append(part if count == 1 else tirx.For(turn, tirx.const(0, "int32"), tirx.const(count, "int32"), tirx.ForKind.SERIAL, part))
        return tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]

    return func.with_body(structural_map(func.body, (tirx.For, change)))


def ahead(func: Any, itemsize: int, fetched: Callable[[Sequence[Any]], Sequence[tuple[Any, int, bool]]]) -> Any:
    """The function with prefetches at the head of every turn of the loop that is annotated AHEAD.

    fetched(loops): from the variables of that loop and of those around it, outermost first: (first element as a load,
    elements, whether it will be written) of each run of memory to bring.
    """
    load_tvm()
    from tvm import tirx
    from tvm.s_tir import SBlock, SBlockRealize

    def number(value: int) -> Any:
        return tirx.const(value, "int32")

    def fetch(first: Any, elements: int, written: bool) -> Any:
        line, step = tirx.Var("line", "int32"), _LINE // itemsize
        where = tirx.BufferLoad(first.source, [*first.indices[:-1], first.indices[-1] + line * step])
        call = tirx.call_llvm_intrin("void", "llvm.prefetch", tirx.address_of(where), number(int(written)), number(3), number(1))
        return tirx.For(line, number(0), number(-(-elements // step)), tirx.ForKind.SERIAL, tirx.Evaluate(call))

    def visit(node: Any, loops: list[Any]) -> Any:
        if isinstance(node, tirx.SeqStmt):
            return tirx.SeqStmt([visit(one, loops) for one in node.seq])
        if isinstance(node, SBlockRealize):
            b = node.block
            body = visit(b.body, loops)
            return SBlockRealize(
                node.iter_values,
                node.predicate,
                SBlock(b.iter_vars, b.reads, b.writes, b.name_hint, body, b.init, b.alloc_buffers, b.match_buffers, b.annotations),
            )
        if not isinstance(node, tirx.For):
            return node
        inside = [*loops, node.loop_var]
        notes = dict(node.annotations)
        body = visit(node.body, inside)
        if notes.pop(AHEAD, None) is not None:
            body = tirx.SeqStmt([*(fetch(*run) for run in fetched(inside)), body])
        return tirx.For(node.loop_var, node.min, node.extent, node.kind, body, node.thread_binding, notes)

    return func.with_body(visit(func.body, []))
