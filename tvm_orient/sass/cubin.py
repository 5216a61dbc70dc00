"""Static facts of the kernels in a cubin: registers, shared memory, spills, instruction counts and the code itself, as ptxas left them."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import BuildFailed, EnvironmentProblem

_SECTION = re.compile(r"^\s*\.section\s+\.text\.(\w+),.*$", re.M)
# attributes of .nv.info sections as (format, number); a value of format 4 has a size of its own
_SIZED = 4
_REGISTER_COUNT = (_SIZED, 0x2F)  # EIATTR_REGCOUNT in .nv.info
_PARAMETER_BANK = (_SIZED, 0x0A)  # EIATTR_PARAM_CBANK in .nv.info.<kernel>: where the parameters begin
_PARAMETER = (_SIZED, 0x17)  # EIATTR_KPARAM_INFO in .nv.info.<kernel>: one parameter
_SYMBOL = 0xFFFFFF  # mask of a section's info field that holds the number of its symbol
_SECTION_ENTRY = 64  # bytes of an entry of an ELF file's table of sections
_OPCODE = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9_.]*)", re.M)


@dataclass(frozen=True)
class KernelFacts:
    """Static facts of one kernel.

    Attributes:
        name: of the kernel.
        registers: of a thread.
        shared: bytes of static shared memory of a block, with what the driver keeps (see `gpu_specs.driver_shared_bytes`).
        opcodes: how often each opcode stands in the code, by its whole name.
        code: the disassembly.
        parameters: (place in constant bank 0, bytes) of each parameter, in order.
        constants: what its other constant banks hold.
    """

    name: str
    registers: int
    shared: int
    opcodes: dict[str, int]
    code: str = ""
    parameters: tuple[tuple[int, int], ...] = ()
    constants: dict[int, bytes] = dataclasses.field(default_factory=dict)

    def count(self, *prefixes: str) -> int:
        """Return how many instructions have an opcode that starts with one of the prefixes."""
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
    """An entry of an ELF file's table of sections, in its order."""

    name: int
    kind: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int


def _disassembler() -> str:
    """Return the path of nvdisasm: of the wheel, or of a toolkit on PATH."""
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(root).glob("cu*/bin/nvdisasm"):
            return str(path)
    found = shutil.which("nvdisasm")
    if found is None:
        raise EnvironmentProblem("reading SASS needs nvdisasm, which is not installed: pip install nvidia-cuda-nvdisasm")
    return found


def kernels(cubin: bytes) -> list[KernelFacts]:
    """Return the facts of every kernel of a cubin, in the order of its disassembly.

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


def _parse(text: str, cubin: bytes) -> list[KernelFacts]:
    """Return the facts of every kernel from a cubin and its disassembly."""
    sections = _sections(cubin)
    registers = _registers(cubin, sections)
    marks = list(_SECTION.finditer(text))
    found = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        name, body = mark.group(1), text[mark.end() : after.start() if after else None]
        shared = sections.get(f".nv.shared.{name}")
        opcodes = dict(collections.Counter(_OPCODE.findall(body)))
        banks = {b: _bytes(cubin, sections[at]) for b in range(2, 5) if (at := f".nv.constant{b}.{name}") in sections}
        found.append(KernelFacts(name, registers.get(name, 0), shared.size if shared else 0, opcodes, body, _parameters(cubin, sections, name), banks))
    return found


def _sections(cubin: bytes) -> dict[str, _Section]:
    """Return the sections of the ELF file by name."""
    (table,) = struct.unpack_from("<Q", cubin, 0x28)  # e_shoff of the header
    count, names_at = struct.unpack_from("<HH", cubin, 0x3C)  # e_shnum and e_shstrndx
    sections = [_Section(*struct.unpack_from("<IIQQQQII", cubin, table + _SECTION_ENTRY * i)) for i in range(count)]
    base = sections[names_at].offset
    return {cubin[base + s.name : cubin.index(b"\0", base + s.name)].decode(): s for s in sections}


def _bytes(cubin: bytes, section: _Section) -> bytes:
    """Return what a section holds."""
    return cubin[section.offset : section.offset + section.size]


def _attributes(cubin: bytes, section: _Section | None) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield ((format, number), value) of each attribute of a .nv.info section, which the driver reads; nothing where there is none."""
    position, stop = (section.offset, section.offset + section.size) if section else (0, 0)
    while position < stop:
        form, attribute, size = struct.unpack_from("<BBH", cubin, position)
        size = size if form == _SIZED else 0
        yield (form, attribute), cubin[position + 4 : position + 4 + size]
        position += 4 + size


def _registers(cubin: bytes, sections: dict[str, _Section]) -> dict[str, int]:
    """Return the registers of a thread by kernel."""
    by_symbol = {s.info & _SYMBOL: name.removeprefix(".text.") for name, s in sections.items() if name.startswith(".text.")}
    pairs = [struct.unpack("<II", value) for what, value in _attributes(cubin, sections.get(".nv.info")) if what == _REGISTER_COUNT]
    return {by_symbol.get(symbol, ""): number for symbol, number in pairs}


def _parameters(cubin: bytes, sections: dict[str, _Section], kernel: str) -> tuple[tuple[int, int], ...]:
    """Return (place in constant bank 0, bytes) of each parameter of a kernel, in order."""
    base, found = 0, []
    for what, value in _attributes(cubin, sections.get(f".nv.info.{kernel}")):
        if what == _PARAMETER_BANK:
            base = struct.unpack_from("<H", value, 4)[0]
        elif what == _PARAMETER:
            found.append((struct.unpack_from("<H", value, 6)[0], struct.unpack_from("<I", value, 8)[0] >> 18))
    return tuple(sorted((base + offset, size) for offset, size in found))
