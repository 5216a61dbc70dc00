"""Walks over scheduled TIR and rebuilds parts of it: what several rewrites do alike."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from ...toolchain.tvm import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm.ir import Range, TensorLoad, TensorRegion  # noqa: E402
from tvm.s_tir import SBlock, SBlockRealize  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402

Home = Callable[[Any], tuple[Any, Callable[[Sequence[Any]], list[Any]]] | None]


def block_with(block: Any, *, body: Any = None, reads: Sequence[Any] | None = None, alloc_buffers: Sequence[Any] | None = None) -> Any:
    """Returns the block with another body, other reads or other buffers of its own, where they are given."""
    return SBlock(
        block.iter_vars,
        block.reads if reads is None else reads,
        block.writes,
        block.name_hint,
        block.body if body is None else body,
        block.init,
        block.alloc_buffers if alloc_buffers is None else alloc_buffers,
        block.match_buffers,
        block.annotations,
    )


def rebuffered(node: Any, home: Home) -> Any:
    """Returns the statement with every load, store and region of some buffers moved to others.

    home(buffer): the buffer to use instead and the function from old indices to new ones, or None for a buffer that stays.
    """

    def load(op: Any) -> Any:
        found = home(op.source)
        return op if found is None else tirx.BufferLoad(found[0], found[1](op.indices))

    def store(op: Any) -> Any:
        found = home(op.buffer)
        return op if found is None else tirx.BufferStore(found[0], op.value, found[1](op.indices))

    def region(op: Any) -> Any:
        found = home(op.source)
        if found is None:
            return op
        starts = found[1]([r.min for r in op.region])
        return tirx.BufferRegion(found[0], [Range.from_min_extent(s, r.extent) for s, r in zip(starts, op.region, strict=True)])

    return structural_map(node, [(TensorLoad, load), (tirx.BufferStore, store), (TensorRegion, region)])


def blocks(node: Any, loops: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Yields every block below a statement with the loops around it, outermost first; expressions are not looked into."""
    if isinstance(node, tirx.SeqStmt):
        for one in node.seq:
            yield from blocks(one, loops)
    elif isinstance(node, tirx.For):
        yield from blocks(node.body, (*loops, node))
    elif isinstance(node, tirx.IfThenElse):
        yield from blocks(node.then_case, loops)
        if node.else_case is not None:
            yield from blocks(node.else_case, loops)
    elif isinstance(node, SBlockRealize):
        yield node.block, loops
        yield from blocks(node.block.body, loops)


def annotated(func: Any, keys: Collection[str]) -> set[str]:
    """Returns those of the keys that annotate a loop around some block of a function."""
    return {key for _, loops in blocks(func.body) for loop in loops for key in loop.annotations if key in keys}
