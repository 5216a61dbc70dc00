"""Counts what the passes over CUDA source must find, from the scheduled TIR that the source is generated of, before TVM prints it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...toolchain.tvm import load_tvm
from .. import names
from ..tir.visit import blocks

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm.ir import Call  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402

_IF_THEN_ELSE = tirx.if_then_else(tirx.Var("test", "bool"), tirx.const(1, "int32"), tirx.const(0, "int32")).op
_HALF = ("float16", "bfloat16")  # dtypes whose copies convert, or go by whole words


@dataclass(frozen=True)
class Promises:
    """The facts that a scheduled function promises about the CUDA source that it becomes."""

    weight_gradient: bool  #: it takes dy, which conv_dw alone does
    least: dict[str, int]  #: the least places that a pass changes, by the name of the pass


def promised(func: Any) -> Promises:
    """Returns what a scheduled function for CUDA promises.

    Of buffers that share a name, such as those of several angles, the first alone is counted: TVM gives others a number where it does not
    keep them in the memory of the first, and the passes do not look for numbers.
    """
    least, first = dict.fromkeys(("branches", "by_words", "batched", "predicated", "asynchronous"), 0), dict[str, Any]()
    every = list(blocks(func.body))
    for block, loops in every:
        target = block.writes[0].source if block.writes else None
        if target is None or not target.same_as(first.setdefault(target.name, target)) or (name := _pass_for(block, loops)) is None:
            continue
        words = name == "asynchronous" and block.name_hint == names.STAGE and target.dtype in _HALF
        if words and not _is_weighed(target, every):
            continue
        least[name] += 1
        least["by_words"] += words
    least["branches"] = _branches(func)
    return Promises(any(buffer.name == names.DY for buffer in _parameters(func)), {**least, "lean": 1, "declared": 1})


def signature(func: Any) -> str:
    """Returns how a message calls a kernel: its parameters with their shapes and dtypes."""
    buffers = [f"{buffer.name}: {buffer.dtype}{list(map(str, buffer.shape))}".replace("'", "") for buffer in _parameters(func)]
    return f"main({', '.join(buffers)})"


def _parameters(func: Any) -> list[Any]:
    """Returns the buffers that a kernel is given, in order."""
    return [param for param in func.params if isinstance(param.ty, tirx.BufferType)]


def _branches(func: Any) -> int:
    """Returns how many loops pick one angle group."""
    found = []

    def look(loop: Any) -> Any:
        found.append(loop.loop_var.name)
        return loop

    structural_map(func.body, (tirx.For, look))
    return found.count(names.BRANCH)


def _pass_for(block: Any, loops: tuple[Any, ...]) -> str | None:
    """Returns the pass that must find the copy that a block is, or None where the block is none or TVM prints its copy in more than one way."""
    if not isinstance(block.body, tirx.BufferStore) or block.init is not None or len(block.reads) != 1:
        return None
    source, target = block.reads[0].source, block.writes[0].source
    if source.scope() != names.GLOBAL:
        return None
    if target.scope() == names.LOCAL:
        return "predicated" if block.name_hint == names.STAGE and source.dtype == "float32" and _is_tested(block.body.value) else None
    if target.scope() != names.SHARED:
        return None
    lanes = int(loops[-1].extent) if loops[-1].kind == tirx.ForKind.VECTORIZED else 1
    if source.dtype == target.dtype and (source.dtype == "float32" or lanes > 1):
        return "asynchronous"
    return "batched" if source.dtype in _HALF and _in_turns(loops) else None


def _is_weighed(stage: Any, every: Sequence[tuple[Any, Any]]) -> bool:
    """Returns whether some block multiplies values of a stage by weights; where no tap lands inside none does, and TVM prints the stage otherwise."""
    for block, _ in every:
        read = [region.source for region in block.reads]
        if any(buffer.same_as(stage) for buffer in read) and any(buffer.name in (names.W, names.W_SHARED) for buffer in read):
            return True
    return False


def _is_tested(value: Any) -> bool:
    """Returns whether a value is taken only where a test holds."""
    return isinstance(value, Call) and value.op.same_as(_IF_THEN_ELSE)


def _in_turns(loops: tuple[Any, ...]) -> bool:
    """Returns whether a loop around a copy, and around nothing else, stays a loop in the source."""
    for loop in reversed(loops):
        if isinstance(loop.body, tirx.SeqStmt):
            return False
        if loop.kind == tirx.ForKind.SERIAL and isinstance(loop.extent, tirx.IntImm) and int(loop.extent) > 1:
            return True
    return False
