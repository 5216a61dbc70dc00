"""The data of a later task fetched ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...toolchain.tvm import load_tvm
from ..names import PREFETCH

_LINE = 64  # bytes that one prefetch brings


def prefetched(func: Any, itemsize: int, fetched: Callable[[Sequence[Any]], Sequence[tuple[Any, int, bool]]]) -> Any:
    """Returns the function with prefetches at the head of every turn of a loop that is annotated PREFETCH.

    itemsize: bytes of an element of the images.

    fetched(loops): from the variables of that loop and of those around it, outermost first: (first element as a load,
    elements, whether it will be written) of each run of memory to bring.
    """
    load_tvm()
    from tvm import tirx
    from tvm.s_tir import SBlockRealize

    from .visit import block_with

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
            return SBlockRealize(node.iter_values, node.predicate, block_with(node.block, body=visit(node.block.body, loops)))
        if not isinstance(node, tirx.For):
            return node
        inside = [*loops, node.loop_var]
        notes = dict(node.annotations)
        body = visit(node.body, inside)
        if notes.pop(PREFETCH, None) is not None:
            body = tirx.SeqStmt([*(fetch(*run) for run in fetched(inside)), body])
        return tirx.For(node.loop_var, node.min, node.extent, node.kind, body, node.thread_binding, notes)

    return func.with_body(visit(func.body, []))
