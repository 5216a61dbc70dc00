"""Parts of layers that are made without compiling, and what keeps them in a process of its own: `python -m tests.support.parts FOLDER`."""

from __future__ import annotations

import dataclasses
import itertools
import sys
import tempfile
from pathlib import Path

from tvm_orient.compiler.parts import CompiledPart, Part, PartLaunch
from tvm_orient.kernels.part_cache import PartCache
from tvm_orient.problem.device import Device, arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules.choices import Choice

DEVICE: Device = arch_device("sm_90a")
PART = Part(ConvSpec("conv", 8, 5, 6, Taps.oriented([0.0], 3)), 4, 0, Choice("patch", 2, (("patch_h", 4),)))
COMPILED = CompiledPart((PartLaunch(1, 2, 96, ("w", "x", "y", "n")),), None, b".version 9.0\n" * 1000, "// a source\n")
_KEPT = 4  # parts that the process keeps in turn


def part(number: int) -> Part:
    """Another part for each number."""
    return dataclasses.replace(PART, offset=number)


def file(folder: Path, compiled: CompiledPart = COMPILED) -> Path:
    """The file of a compiled part, as a compiler leaves it."""
    path = folder / "made.part"
    path.write_bytes(compiled.payload)
    return path


def keep_for_ever(directory: Path) -> None:
    """Keeps parts in a cache again and again; what it says on its standard output comes after the first."""
    cache, large = PartCache(directory), dataclasses.replace(COMPILED, code=COMPILED.code * 50)
    with tempfile.TemporaryDirectory() as folder:
        made = file(Path(folder), large)
        for number in itertools.cycle(range(_KEPT)):
            cache.keep(part(number), DEVICE, made)
            print("kept", flush=True)


if __name__ == "__main__":
    keep_for_ever(Path(sys.argv[1]))
