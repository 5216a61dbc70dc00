"""Outputs of a plane along the slope of its taps: where they lie, and a block of warps that each know their own at compile time.

A column of a leaning plane moves with each row as the line of taps does, modulo the width (a row, with each column). What neighbours along it
read then lies along it too, so that a thread needs few values besides those at its own outputs.
"""

from __future__ import annotations

from typing import Any

from ...toolchain.tvm import load_tvm
from .rewrite import renamed

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm.s_tir import SBlock  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402

OWN = "own"  # block of what is stored by place on a leaning plane until `in_place` moves it


def by_warp(func: Any, parts: int) -> Any:
    """The scheduled function whose threads take one branch of `parts`, by their index: each has its part of the outputs as a constant.

    The loop over threads that computes OWN must be one over parts and, inside, planes.
    """

    def split(loop: Any) -> Any:
        if loop.thread_binding is None or loop.thread_binding.thread_tag != "threadIdx.x" or not _computes(loop.body):
            return loop
        planes = int(loop.extent) // parts
        lane = loop.loop_var % planes
        branches = [tirx.IfThenElse(loop.loop_var // planes == part, renamed(loop.body, loop.loop_var, lane + part * planes), None) for part in range(parts)]
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, tirx.SeqStmt(branches), loop.thread_binding, loop.annotations)

    return func.with_body(structural_map(func.body, (tirx.For, split)))


def _computes(body: Any) -> bool:
    found: list[Any] = []

    def look(block: Any) -> Any:
        found.append(block.name_hint)
        return block

    structural_map(body, (SBlock, look))
    return OWN in found
