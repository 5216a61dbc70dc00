"""Stores outputs where they lie along the slope of the taps, and parts a block into warps that each know their own at compile time.

A column of a leaning plane moves with each row as the line of taps does, modulo the width (a row, with each column). What neighbours along it
read then lies along it too, so that a thread needs few values besides those at its own outputs.
"""

from __future__ import annotations

from typing import Any

from ...errors import BuildFailed
from ...toolchain.tvm import load_tvm
from ..names import OWN
from .rewrite import renamed
from .visit import blocks

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm_ffi import structural_map  # noqa: E402


def warp_specialized(func: Any, parts: int) -> Any:
    """Returns the scheduled function whose threads take one branch of `parts`, by their index: each has its part of the outputs as a constant.

    The loop over threads that computes OWN must be one over parts and, inside, planes.

    Raises:
        BuildFailed: no loop over threads computes OWN.
    """
    places = 0

    def split(loop: Any) -> Any:
        nonlocal places
        if loop.thread_binding is None or loop.thread_binding.thread_tag != "threadIdx.x" or not _computes(loop.body):
            return loop
        places += 1
        planes = int(loop.extent) // parts
        lane = loop.loop_var % planes
        branches = [tirx.IfThenElse(loop.loop_var // planes == part, renamed(loop.body, loop.loop_var, lane + part * planes), None) for part in range(parts)]
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, tirx.SeqStmt(branches), loop.thread_binding, loop.annotations)

    body = structural_map(func.body, (tirx.For, split))
    if not places:
        raise BuildFailed(f"threads must be parted by what they compute of block {OWN}, and no loop over threads computes it: see its schedule")
    return func.with_body(body)


def _computes(body: Any) -> bool:
    """Returns whether OWN is computed below a statement."""
    return any(block.name_hint == OWN for block, _ in blocks(body))
