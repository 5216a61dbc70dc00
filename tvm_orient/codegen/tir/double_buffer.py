"""A block that passes over several tiles in turn, and copies the next one while it computes this one.

Rewrites a scheduled function of one angle group, before groups are merged. TVM's own pipeline writes what computes the last tile a second
time, which is thousands of instructions here. Instead staged buffers become rings of two tiles, and the copies of each turn are for the next;
where barriers are needed TVM finds out, and `async_copy` has those before a tile is read wait for the copies of that tile alone.
"""

from __future__ import annotations

from typing import Any

from ...toolchain.tvm import load_tvm
from .rewrite import renamed

DOUBLE_BUFFER = "tvm_orient_ahead"  # annotation of a loop over tiles, its value the channels of a tile; and the loop's name in the source


def pipelined(func: Any) -> Any:
    """The function with the copies of the loop that is annotated AHEAD one turn ahead of the rest; they are its nests that fill shared from global memory."""
    load_tvm()
    from tvm import tirx
    from tvm_ffi import structural_map

    rings: list[tuple[Any, Any]] = []
    one, no = tirx.const(1, "int32"), tirx.const(0, "int32")

    def ahead(loop: Any) -> Any:
        if DOUBLE_BUFFER not in loop.annotations:
            return loop
        nests, turn = [(nest, _filled(nest)) for nest in loop.body.seq], tirx.Var(DOUBLE_BUFFER, "int32")
        rings.extend((buffer, _ring(buffer, 2 * int(loop.annotations[DOUBLE_BUFFER]))) for _, buffer in nests if buffer is not None)

        def copies(of: Any) -> list[Any]:
            return [renamed(nest, loop.loop_var, of) for nest, buffer in nests if buffer is not None]

        rest = [renamed(nest, loop.loop_var, turn) for nest, buffer in nests if buffer is None]
        following = copies(turn + one)
        guarded = tirx.IfThenElse(turn + 1 < loop.extent, following[0] if len(following) == 1 else tirx.SeqStmt(following), None)
        return tirx.SeqStmt([*copies(no), tirx.For(turn, no, loop.extent, tirx.ForKind.SERIAL, tirx.SeqStmt([guarded, *rest]))])

    body = structural_map(func.body, (tirx.For, ahead))
    return func.with_body(_in_rings(body, rings)) if rings else func


def _filled(nest: Any) -> Any:
    """The shared buffer that a nest fills from global memory, or None."""
    load_tvm()
    from tvm.s_tir import SBlock
    from tvm_ffi import structural_map

    found: list[Any] = []

    def look(block: Any) -> Any:
        if block.writes[0].source.scope() == "shared" and all(region.source.scope() == "global" for region in block.reads):
            found.append(block.writes[0].source)
        return block

    structural_map(nest, (SBlock, look))
    return found[0] if found else None


def _ring(buffer: Any, channels: int) -> Any:
    """A buffer of as many channels, where those of a tile take the places of the tile before the last."""
    load_tvm()
    from tvm import tirx

    shape = list(buffer.shape)
    shape[_channels(buffer)] = channels
    return tirx.decl_buffer(shape, buffer.dtype, name=buffer.name, scope="shared")


def _channels(buffer: Any) -> int:
    """The axis of channels: of weights the first, of images the second."""
    return 0 if len(buffer.shape) == 2 else 1


def _in_rings(body: Any, rings: list[tuple[Any, Any]]) -> Any:
    """The body with every access to a staged buffer moved to its ring."""
    load_tvm()
    from tvm import tirx
    from tvm.ir import Range, TensorLoad, TensorRegion
    from tvm.s_tir import SBlock, SBlockRealize
    from tvm_ffi import structural_map

    def ring(buffer: Any) -> Any:
        return next((ring for old, ring in rings if old.same_as(buffer)), buffer)

    def places(target: Any, indices: Any) -> list[Any]:
        axis = _channels(target)
        return [i % target.shape[axis] if at == axis else i for at, i in enumerate(indices)]

    def load(op: Any) -> Any:
        target = ring(op.source)
        return op if target.same_as(op.source) else tirx.BufferLoad(target, places(target, op.indices))

    def store(op: Any) -> Any:
        target = ring(op.buffer)
        return op if target.same_as(op.buffer) else tirx.BufferStore(target, op.value, places(target, op.indices))

    def region(op: Any) -> Any:
        target = ring(op.source)
        if target.same_as(op.source):
            return op
        starts = places(target, [r.min for r in op.region])
        return tirx.BufferRegion(target, [Range.from_min_extent(s, r.extent) for s, r in zip(starts, op.region, strict=True)])

    root = structural_map(body, [(TensorLoad, load), (tirx.BufferStore, store), (TensorRegion, region)]).block
    buffers = [ring(buffer) for buffer in root.alloc_buffers]
    block = SBlock(root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, buffers, root.match_buffers, root.annotations)
    return SBlockRealize([], tirx.const(True, "bool"), block)
