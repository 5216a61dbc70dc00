"""Rows cut into whole vectors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ...errors import BuildFailed
from ...toolchain.tvm import load_tvm
from .rewrite import renamed

_MAX_PIECES = 16  # pieces of one row that stand one after the other in the code


def pieces(bounds: Sequence[int], widest: int) -> Iterator[tuple[int, int]]:
    """Yields (start, width), in elements, of aligned vectors, powers of two, that cover a row and straddle none of its bounds."""
    for start, stop in itertools.pairwise(bounds):
        while start < stop:
            width = widest
            while start % width or start + width > stop:
                width //= 2
            yield start, width
            start += width


def runs(found: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yields (start, width, count) of pieces: a long run of equal ones is one, so that the code of a wide row stays short."""
    for width, group in itertools.groupby(found, key=lambda piece: piece[1]):
        same = list(group)
        if len(same) > _MAX_PIECES:
            yield same[0][0], width, len(same)
        else:
            yield from ((start, width, 1) for start, _ in same)


def cut(func: Any, block: str, axis: int, bounds: Sequence[int], widest: int) -> Any:
    """Returns the function with the loop over an axis of a block replaced by one vector loop for each of its pieces.

    What is the same for a whole piece (whether its columns lie inside the plane, say) is then decided by the compiler.

    Raises:
        BuildFailed: no loop runs along that axis of a block of that name.
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

    places = 0

    def change(loop: Any) -> Any:
        nonlocal places
        if not runs_along(loop):
            return loop
        places += 1
        parts = []
        for start, width, count in runs(pieces(bounds, widest)):
            lane, turn = tirx.Var("lane", "int32"), tirx.Var("turn", "int32")
            place = lane + start if count == 1 else turn * width + lane + start
            body = renamed(loop.body, loop.loop_var, place)
            kind = tirx.ForKind.VECTORIZED if width > 1 else tirx.ForKind.SERIAL
            part = tirx.For(lane, tirx.const(0, "int32"), tirx.const(width, "int32"), kind, body)
            parts.append(part if count == 1 else tirx.For(turn, tirx.const(0, "int32"), tirx.const(count, "int32"), tirx.ForKind.SERIAL, part))
        return tirx.SeqStmt(parts) if len(parts) > 1 else parts[0]

    body = structural_map(func.body, (tirx.For, change))
    if not places:
        raise BuildFailed(f"axis {axis} of block {block} must be cut into vectors, and no loop runs along it: see that the schedule keeps that loop")
    return func.with_body(body)
