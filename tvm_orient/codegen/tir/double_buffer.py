"""Lets a block that passes over several tiles in turn copy the next one while it computes this one.

Rewrites a scheduled function of one angle group, before groups are merged. TVM's own pipeline writes what computes the last tile a second
time, which is thousands of instructions here. Instead staged buffers become rings of two tiles, and the copies of each turn are for the next;
where barriers are needed TVM finds out, and `async_copy` has those before a tile is read wait for the copies of that tile alone.
"""

from __future__ import annotations

from typing import Any

from ...errors import BuildFailed
from ...toolchain.tvm import load_tvm
from ..names import DOUBLE_BUFFER, GLOBAL, SHARED
from .rewrite import renamed


def pipelined(func: Any) -> Any:
    """Returns the function with the copies of a loop that is annotated DOUBLE_BUFFER one turn ahead of the rest.

    Copies are the nests of that loop that fill shared from global memory. A function without such a loop stays as it is.

    Raises:
        BuildFailed: a loop is annotated that copies nothing.
    """
    load_tvm()
    from tvm import tirx
    from tvm_ffi import structural_map

    rings: list[tuple[Any, Any]] = []
    one, no = tirx.const(1, "int32"), tirx.const(0, "int32")

    def ahead(loop: Any) -> Any:
        if DOUBLE_BUFFER not in loop.annotations:
            return loop
        nests, turn = [(nest, _filled(nest)) for nest in loop.body.seq], tirx.Var(DOUBLE_BUFFER, "int32")
        found = [(buffer, _ring(buffer, 2 * int(loop.annotations[DOUBLE_BUFFER]))) for _, buffer in nests if buffer is not None]
        if not found:
            raise BuildFailed(f"a loop that is annotated {DOUBLE_BUFFER} must copy tiles into shared memory, and none of its nests does: see its schedule")
        rings.extend(found)

        def copies(of: Any) -> list[Any]:
            return [renamed(nest, loop.loop_var, of) for nest, buffer in nests if buffer is not None]

        rest = [renamed(nest, loop.loop_var, turn) for nest, buffer in nests if buffer is None]
        following = copies(turn + one)
        guarded = tirx.IfThenElse(turn + 1 < loop.extent, following[0] if len(following) == 1 else tirx.SeqStmt(following), None)
        return tirx.SeqStmt([*copies(no), tirx.For(turn, no, loop.extent, tirx.ForKind.SERIAL, tirx.SeqStmt([guarded, *rest]))])

    body = structural_map(func.body, (tirx.For, ahead))
    return func.with_body(_in_rings(body, rings)) if rings else func


def _filled(nest: Any) -> Any:
    """Returns the shared buffer that a nest fills from global memory, or None."""
    load_tvm()
    from tvm.s_tir import SBlock
    from tvm_ffi import structural_map

    found: list[Any] = []

    def look(block: Any) -> Any:
        if block.writes[0].source.scope() == SHARED and all(region.source.scope() == GLOBAL for region in block.reads):
            found.append(block.writes[0].source)
        return block

    structural_map(nest, (SBlock, look))
    return found[0] if found else None


def _ring(buffer: Any, channels: int) -> Any:
    """Returns a buffer of as many channels, where those of a tile take the places of the tile before the last."""
    load_tvm()
    from tvm import tirx

    shape = list(buffer.shape)
    shape[_channels(buffer)] = channels
    return tirx.decl_buffer(shape, buffer.dtype, name=buffer.name, scope=SHARED)


def _channels(buffer: Any) -> int:
    """Returns the axis of channels: of weights the first, of images the second."""
    return 0 if len(buffer.shape) == 2 else 1


def _in_rings(body: Any, rings: list[tuple[Any, Any]]) -> Any:
    """Returns the body with every access to a staged buffer moved to its ring."""
    load_tvm()
    from tvm import tirx
    from tvm.s_tir import SBlockRealize

    from .visit import block_with, rebuffered

    def home(buffer: Any) -> Any:
        ring = next((ring for old, ring in rings if old.same_as(buffer)), None)
        if ring is None:
            return None
        axis = _channels(ring)
        return ring, lambda indices: [i % ring.shape[axis] if at == axis else i for at, i in enumerate(indices)]

    root = rebuffered(body, home).block
    buffers = [found[0] if (found := home(buffer)) else buffer for buffer in root.alloc_buffers]
    return SBlockRealize([], tirx.const(True, "bool"), block_with(root, alloc_buffers=buffers))
