"""What a cubin really does: registers, spills and instruction counts, read from its SASS."""

from __future__ import annotations

import collections
import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .errors import BuildFailed, EnvironmentProblem

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),.*$", re.M)
_REGISTER_COUNT = (4, 0x2F)  # (format, EIATTR_REGCOUNT) in .nv.info
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)", re.M)


@dataclass(frozen=True)
class Kernel:
    """Static facts of one kernel: registers a thread, bytes of static shared memory, and how often each opcode stands in it."""

    name: str
    registers: int
    shared: int
    opcodes: dict[str, int]

    def count(self, *prefixes: str) -> int:
        """Instructions whose opcode starts with one of the prefixes."""
        return sum(n for op, n in self.opcodes.items() if op.startswith(prefixes))

    @property
    def spills(self) -> int:
        """Loads and stores of local memory: 0 where everything stays in registers."""
        return self.count("LDL", "STL")

    @property
    def instructions(self) -> int:
        """All instructions but padding."""
        return sum(self.opcodes.values()) - self.count("NOP")


class _Section(NamedTuple):
    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int


def _disassembler() -> str:
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(root).glob("cu*/bin/nvdisasm"):
            return str(path)
    found = shutil.which("nvdisasm")
    if found is None:
        raise EnvironmentProblem("reading SASS needs nvdisasm, which is not installed: pip install nvidia-cuda-nvdisasm")
    return found


def kernels(cubin: bytes) -> list[Kernel]:
    """Every kernel of a cubin.

    Raises:
        EnvironmentProblem: nvdisasm is missing.
        BuildFailed: it does not read this cubin.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([_disassembler(), "-c", str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildFailed(f"nvdisasm does not read the cubin: {done.stderr.strip()[:500]}")
    return _parse(done.stdout, cubin)


def _parse(text: str, cubin: bytes) -> list[Kernel]:
    registers, shared = _resources(cubin)
    marks = list(_SECTION.finditer(text))
    found = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        name, body = mark.group(1), text[mark.end() : after.start() if after else None]
        found.append(Kernel(name, registers.get(name, 0), shared.get(name, 0), dict(collections.Counter(_OPCODE.findall(body)))))
    return found


def _resources(cubin: bytes) -> tuple[dict[str, int], dict[str, int]]:
    """Registers a thread and bytes of shared memory by kernel, from the ELF sections that the driver reads."""
    table, (count, names_at) = struct.unpack_from("<Q", cubin, 0x28)[0], struct.unpack_from("<HH", cubin, 0x3C)
    sections = [_Section(*struct.unpack_from("<IIQQQQII", cubin, table + 64 * i)) for i in range(count)]
    base = sections[names_at].offset
    named = {cubin[base + s.name : cubin.index(b"\0", base + s.name)].decode(): s for s in sections}
    shared = {name.removeprefix(".nv.shared."): s.size for name, s in named.items() if name.startswith(".nv.shared.")}
    by_symbol = {s.info & 0xFFFFFF: name.removeprefix(".text.") for name, s in named.items() if name.startswith(".text.")}
    registers, info = {}, named.get(".nv.info")
    position, stop = (info.offset, info.offset + info.size) if info else (0, 0)
    while position < stop:
        form, attribute, size = struct.unpack_from("<BBH", cubin, position)
        if (form, attribute) == _REGISTER_COUNT:
            symbol, number = struct.unpack_from("<II", cubin, position + 4)
            registers[by_symbol.get(symbol, "")] = number
        position += 4 + (size if form == 4 else 0)
    return registers, shared
