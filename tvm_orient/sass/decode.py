"""SASS as steps: the instructions of a kernel, decoded once from their text, and what an opcode alone says of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_LINE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;", re.M)
_NOTE = re.compile(r"\(\*.*?\*\)")
_PREDICATE = re.compile(r"!?U?P\w+")
ADDRESS = re.compile(r"\[([^\[\]]*)\]$")  # an operand that is an address ends so
CONSTANT = re.compile(r"c\[0x(\w+)\]\[(?:(U?R\w+)\+?)?(?:(-?0x\w+))?\]")  # an operand in a constant bank: the bank, a register, an offset in bytes
_WORD = 4  # bytes
SPACES = {"LDG": "global", "STG": "global", "LDS": "shared", "STS": "shared", "LDL": "local", "STL": "local"}  # memory that an opcode reaches
# opcodes that change no value: lanes meet again at the lowest address among them, whatever these say
IDLE = {"NEVER", "BSSY", "BSYNC", "BREAK", "WARPSYNC", "NOP", "BAR", "YIELD", "ERRBAR", "MEMBAR", "CCTL"}
SINKS = ("RZ", "URZ", "PT", "UPT")  # registers and predicates that lose what is written to them
INSTRUCTION_BYTES = 16  # bytes of code that an instruction takes


class Step(NamedTuple):
    """One decoded instruction.

    Attributes:
        guard: the predicate that it is executed under, such as "!P0"; empty for none.
        opcode: the opcode in parts: ("LDG", "E", "128").
        operands: the operands as nvdisasm prints them, in order.
        target: the index of the instruction that a branch goes to; -1 for none.
    """

    guard: str
    opcode: tuple[str, ...]
    operands: tuple[str, ...]
    target: int

    def __str__(self) -> str:
        """Return the instruction as nvdisasm prints it, without its address."""
        return " ".join(filter(None, (f"@{self.guard}" if self.guard else "", ".".join(self.opcode), ", ".join(self.operands))))

    @property
    def addresses(self) -> tuple[str, ...]:
        """Operands that are addresses: two of a copy, one of any other access."""
        return tuple(operand for operand in self.operands if ADDRESS.search(operand))

    @property
    def conditions(self) -> tuple[str, ...]:
        """Operands that are predicates: the conditions of a branch beside its guard."""
        return tuple(operand for operand in self.operands if _PREDICATE.fullmatch(operand))


def steps(code: str) -> list[Step]:
    """Return the instructions of a kernel's disassembly (`KernelFacts.code`) in order, labels resolved to indices."""
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


def bytes_per_lane(opcode: Sequence[str]) -> int:
    """Return how many bytes a lane moves by a load, a store or a copy, from the parts of its opcode: 1, 2, 4, 8 or 16."""
    for part, size in (("U16", 2), ("S16", 2), ("U8", 1), ("S8", 1), ("16", 2)):
        if part in opcode:
            return size
    return next((int(part) // 8 for part in reversed(opcode) if part in ("64", "128")), 4)


def written_registers(opcode: Sequence[str], operands: Sequence[str]) -> list[str]:
    """Return the registers that an instruction writes through its first operand, in ascending order: as many as the width in its opcode says.

    A predicate is one. The list is empty where the first operand is no register, or one that loses what is written to it.
    """
    match = re.fullmatch(r"(U?[RP])(\d+)", operands[0].removesuffix(".reuse")) if operands else None
    if match is None:
        return []
    if match[1].endswith("P"):
        return [match[0]]
    count = next((int(part) // 32 for part in reversed(opcode) if part in ("64", "128")), 2 if "WIDE" in opcode or opcode[0] == "CS2R" else 1)
    return [f"{match[1]}{int(match[2]) + i}" for i in range(count)]


def accessed_registers(step: Step) -> list[str]:
    """Return the registers that a load fills or a store reads, in ascending order: one for each word of 4 bytes that a lane moves."""
    addresses = step.addresses
    others = [operand for operand in step.operands if operand not in addresses]
    return written_registers((step.opcode[0], str(max(32, bytes_per_lane(step.opcode) * 8))), others)


def next_register(register: str) -> str:
    """Return the name of the register after this one, which holds the high word of a pair; what is no register comes back as it is."""
    match = re.fullmatch(r"(U?R)(\d+)", register)
    return f"{match[1]}{int(match[2]) + 1}" if match else register


def high_word(text: str) -> str:
    """Return the operand that holds the high word of a 64-bit operand; "RZ" for one that is a number or a zero register."""
    text = text.removesuffix(".reuse")
    constant = CONSTANT.fullmatch(text)
    if constant:
        register = f"{constant[2]}+" if constant[2] else ""
        return f"c[0x{constant[1]}][{register}{int(constant[3] or '0', 16) + _WORD:#x}]"
    return next_register(text) if re.fullmatch(r"U?R\d+", text) else "RZ"
