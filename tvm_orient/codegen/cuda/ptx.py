"""Reads kernels in PTX, and writes the body of one as inline assembly of another kernel.

NVRTC spends most of its time before PTX: on a source of eight angles several times as much as on eight sources of one. So each angle is
compiled to PTX alone, once; a layer is a kernel that holds the bodies of its angles, which are assembled together. The assembler sees what it
would see of one source, and makes the same machine code of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import BuildFailed

_ENTRY = re.compile(r"^\.visible \.entry (\w+)\((.*?)\)\n(?:\.\w+ [\d, ]+\n)*\{\n(.*?)^\}\n", re.M | re.S)
_PARAMETER = re.compile(r"ld\.param\.(\w+)\s+(%\w+), \[(\w+)_param_(\d+)\];")
_SHARED = re.compile(r"^\s*\.shared \.align (\d+) \.b8 (\w+)\[(\d+)\];\n", re.M)
_COMMENT = re.compile(r"^\s*//.*\n|(?<=;)\s*//.*$", re.M)
_LABEL = re.compile(r"\$L__BB(\d+_\d+)")
_SYMBOL = re.compile(r"^(?:\.\w+\s+)*\.(?:global|const|shared|func)\s[^\n]*?(\w+)(?:\[\d*\])?(?: = [^;]*)?;", re.M)
_CALL = re.compile(r"(?<![\w.$%])call\b")
_BLOCK = "%ctaid.x"
SHARED_MEMORY = "tvm_orient_shared"  # symbol of the array that the bodies in a kernel have in common, since no two run in one block


@dataclass(frozen=True)
class SharedArray:
    """An array in shared memory: its symbol, alignment and size in bytes."""

    symbol: str
    alignment: int
    size: int


@dataclass(frozen=True)
class Kernel:
    """A kernel in PTX: its name, its body, and the arrays in shared memory that it declares."""

    name: str
    body: str
    shared: tuple[SharedArray, ...]


def kernels(text: str) -> list[Kernel]:
    """Returns the kernels that PTX defines, in order.

    Raises:
        BuildFailed: a kernel uses what is defined outside it, which its body alone does not hold.
    """
    outside = set(_SYMBOL.findall(_ENTRY.sub("", text)))
    found = []
    for name, _, body in _ENTRY.findall(text):
        body = _COMMENT.sub("", body)
        arrays = tuple(SharedArray(symbol, int(alignment), int(size)) for alignment, symbol, size in _SHARED.findall(body))
        used = sorted(outside.intersection(re.findall(r"\w+", body)))
        if used or _CALL.search(body):
            raise BuildFailed(
                f"a kernel in PTX must hold all that it uses, got {name}, which uses {', '.join(used) or 'a function'}: compile its layer as one source"
            )
        found.append(Kernel(name, body, arrays))
    return found


def inlined(kernel: Kernel, entry: str, parameters: Mapping[int, str], tag: str, *, keep_shared: bool = False) -> str:
    """Returns the body of a kernel as a block of PTX that stands in another kernel.

    Args:
        kernel: of a part.
        entry: name of the kernel that it is to stand in.
        parameters: what each of its parameters is there, by its number: a register, or a number; or the number of a parameter of the entry, after a #.
        tag: ends its labels, which then are the block's own.
        keep_shared: its arrays in shared memory are declared in the block; else they lie in SHARED_MEMORY, one after the other.
    """

    def given(match: re.Match[str]) -> str:
        kind, register, _, number = match.groups()
        place = parameters[int(number)]
        if place.startswith("#"):
            return f"ld.param.{kind} {register}, [{entry}_param_{place[1:]}];"
        return f"mov.{kind} {register}, {place};"

    body = _LABEL.sub(rf"$L__{tag}_\1", _PARAMETER.sub(given, kernel.body))
    if not keep_shared:
        body = _SHARED.sub("", body)
        for array, place in zip(kernel.shared, shared_places(kernel)[0], strict=True):
            body = re.sub(rf"\b{array.symbol}\b", f"{SHARED_MEMORY}+{place}", body)
    return "{\n" + body + "}\n"


def with_task(body: str, task: str) -> str:
    """Returns PTX whose number of a block is that of a task, which a register holds."""
    return body.replace(_BLOCK, task)


def shared_places(kernel: Kernel) -> tuple[list[int], int]:
    """Returns where in SHARED_MEMORY each array of a kernel begins, in bytes, and the bytes that all take."""
    places, end = [], 0
    for array in kernel.shared:
        places.append(-(-end // array.alignment) * array.alignment)
        end = places[-1] + array.size
    return places, end


def assembly(body: str, operands: bool) -> str:
    """Returns PTX as the string literals of an inline assembly statement.

    Args:
        operands: whether the statement has any; a % of a register is then written twice, and %0 is an operand.
    """
    if operands:
        body = re.sub(r"%(?!\d)", "%%", body)
    lines = [line.strip().replace("\\", "\\\\").replace('"', '\\"') for line in body.splitlines() if line.strip()]
    return "\n".join(f'"{line}\\n"' for line in lines)
