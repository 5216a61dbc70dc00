"""How the threads of a CUDA block fill a shared buffer together."""

from __future__ import annotations

import math
from typing import Any

from tvm_orient.codegen.cuda.batched_loads import MAX_UNROLLED_TURNS, batches
from tvm_orient.sass.bank_conflicts import WARP

from .tiling import most_dividing, parted

_COPY_BY_ROWS = 4  # instructions of a copy of half precision, besides a conversion for each value, where turns are unrolled
_COPY_IN_LOOP = 20  # the same where turns are a loop
_VECTOR = 4  # values that a lane moves at once


def in_turn(sch: Any, channels: Any, channels_per_block: int, tiles_per_block: int, stages: int) -> Any:
    """Splits the loop over channels in three, over blocks, tiles of a block and planes of a tile; for `double_buffer` where stages overlap."""
    from tvm_orient.codegen.names import DOUBLE_BUFFER

    turns, planes = parted(int(sch.get(channels).extent), channels_per_block, tiles_per_block)
    block, turn, plane = sch.split(channels, [None, turns, planes])
    if stages > 1 and turns > 1:
        sch.annotate(turn, DOUBLE_BUFFER, planes)
    return block, turn, plane


def apart(plane_skew: int) -> tuple[int, int]:
    """Returns how planes lie in shared memory by their skew: (second) values apart, but for multiples of (first), so that lanes of several meet in no bank.

    Small skews are for lanes in consecutive planes, others for lanes that go on in the next plane where they end in one.
    """
    return (max(1, 2 * plane_skew) if plane_skew <= _VECTOR else WARP, plane_skew)


def cooperate(sch: Any, block: Any, threads: int, vector: int, around: int = 1, scope: str = "shared") -> None:
    """Lets all threads of the block fill a shared buffer together, in so many loops, the innermost axis as one vector where it is one."""
    if scope == "shared":
        sch.set_scope(block, 0, scope)
    *loops, last = sch.get_loops(block)[around:]
    loop = sch.fuse(*loops) if vector > 1 else sch.fuse(*loops, last)
    _, thread = sch.split(loop, [None, threads])
    sch.bind(thread, "threadIdx.x")
    if vector > 1:
        sch.vectorize(last)


def by_rows(planes: int, rows: int, across: int, threads: int) -> tuple[int, int, int]:
    """Returns (planes at once, rows at once, turns) by which `cooperate_by_rows` copies planes of rows of `across` vectors; no rows where one is too long."""
    at_once = threads // across
    if at_once == 0:
        return 1, 0, -(-planes * rows * across // threads)
    if at_once >= rows:
        together = most_dividing(planes, at_once // rows)
        return together, rows, planes // together
    even = -(-rows // -(-rows // at_once))
    while rows % even and math.gcd(rows, even) > 1:  # TVM would stage the rows of a last turn that do not exist
        even -= 1
    return 1, even, planes * -(-rows // even)


def copied_by_rows(vector: int, *turns: int) -> tuple[int, int]:
    """Returns (instructions of a copy, waits for memory) where images of half precision are staged in so many turns each.

    Where turns are unrolled the loads of all batches are on their way at once: they are neither volatile nor behind a branch.
    """
    copy = vector + (_COPY_BY_ROWS if max(turns) <= MAX_UNROLLED_TURNS else _COPY_IN_LOOP)
    return copy, 1 + sum(min(1, count) if count <= MAX_UNROLLED_TURNS else batches(count, vector) for count in turns)


def cooperate_by_rows(sch: Any, block: Any, threads: int, vector: int, around: int = 1, scope: str = "shared", unroll: bool = False) -> None:
    """Lets all threads of the block fill a buffer of planes (n, plane, row, ..., column) together; a thread keeps its place in a row in every turn.

    So a turn only adds constants to an address, where `cooperate` divides. Threads that do not fill a row idle.

    Args:
        scope: of the buffer that is filled.
        unroll: the turns, where they are few.
    """
    n, plane, row, *columns = sch.get_loops(block)[around:]
    last = columns.pop() if vector > 1 else None
    across = math.prod(int(sch.get(loop).extent) for loop in columns)
    planes, rows, *_ = by_rows(int(sch.get(plane).extent), int(sch.get(row).extent), across, threads)
    if not rows:
        cooperate(sch, block, threads, vector, around, scope)
        return
    if scope == "shared":
        sch.set_scope(block, 0, scope)
    turn, plane = sch.split(plane, [None, planes])
    step, row = sch.split(row, [None, rows])
    sch.reorder(turn, step, plane, row)
    turns = sch.fuse(n, turn, step)
    if unroll and int(sch.get(turns).extent) <= MAX_UNROLLED_TURNS:
        sch.unroll(turns)
    sch.bind(sch.fuse(plane, row, *columns), "threadIdx.x")
    if last is not None:
        sch.vectorize(last)
