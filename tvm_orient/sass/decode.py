"""SASS as steps: the instructions of a kernel, decoded once from their text."""

from __future__ import annotations

import re
from typing import NamedTuple

_LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;", re.M)
ADDRESS = re.compile(r"\[([^\[\]]*)\]$")
_NOTE = re.compile(r"\(\*.*?\*\)")
SPACES = {"LDG": "global", "STG": "global", "LDS": "shared", "STS": "shared", "LDL": "local", "STL": "local"}


class Step(NamedTuple):
    """One decoded instruction: its guard ("" for none), opcode in parts, operands, and where a branch goes (index, or -1)."""

    guard: str
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    target: int


def steps(code: str) -> list[Step]:
    """The instructions of a kernel's disassembly, labels resolved."""
    labels: dict[str, int] = {}
    found: list[tuple[str, list[str], str]] = []
    for line in code.splitlines():
        label = re.match(r"^(\.L_x_\d+):", line)
        if label:
            labels[label[1]] = len(found)
            continue
        match = _LINE.match(line)
        if match:
            found.append((match[1] or "", match[2].split("."), _NOTE.sub("", match[3])))
    decoded = []
    for guard, opcode, text in found:
        jump = re.search(r"`\((\.L_x_\d+)\)", text)
        operands = tuple(part.strip() for part in text.split(",") if part.strip())
        decoded.append(Step(guard, tuple(opcode), operands, labels.get(jump[1], -1) if jump else -1))
    return decoded
