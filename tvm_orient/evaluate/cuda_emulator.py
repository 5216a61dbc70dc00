"""Generated CUDA source run on the CPU, block by block, with real barriers and shuffles: the block emulator.

Each CUDA thread is a fiber that runs until it meets a barrier or a shuffle. Threads run in ascending or in descending order: a
missing barrier gives different results, or NaN from shared memory that nobody has written. Also found: barriers that not all
threads reach, writes past a shared buffer, and vector accesses that are not aligned.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..codegen.cuda.cuda_text import Definition, definitions
from ..compiler import library
from ..errors import EnvironmentProblem, InvalidArgument, Unsupported
from ..problem.device import Device
from ..sass.checked_memory import Fault
from .cuda_emulator_text import KERNEL, PRELUDE

_SHARED = re.compile(r"__shared__ (?:alignas\(\d+\) )?(float|half|nv_bfloat16) (\w+)\[(\d+)\];")
_TYPE = re.compile(r"(\w+)\* __restrict__")
_GRID = re.compile(r'in T\.thread_binding\((.+?), thread="blockIdx\.x"\)')
_WALL = 64  # values of a shared buffer's type before and after it, which nobody may write
_MAX_BUFFERS = 16  # parameters that a kernel can take: the C++ around it has room for so many
_COMPILER_TIMEOUT_S = 300  # seconds
_FAULTS = {
    1: "a barrier that only some threads of a block reach",
    2: "a write past the end of a shared buffer",
    3: "a vector access that is not aligned",
    4: "a shuffle that only some threads of a warp reach",
}


@dataclass(frozen=True)
class Launch:
    """One kernel's launch: blocks, threads along x and y, the bound in its source, and the names of its buffers in order."""

    grid: int
    across: int
    down: int
    bound: int
    names: tuple[str, ...]


class Blocks:
    """Every kernel of a CUDA module that is scheduled for a fixed batch, compiled for the CPU with barriers and shuffles.

    Args:
        module: as `lower.scheduled` makes it with a batch.
        device: the GPU that it is scheduled for.
        source: CUDA source in the place of the module's own, with the same kernels.

    Raises:
        Unsupported: the kernels hold something that is not emulated; says what.
        EnvironmentProblem: there is no g++.
        BuildFailed: as `library.cuda_source`.
    """

    def __init__(self, module: Any, device: Device, source: str | None = None) -> None:
        sizes = _sizes(module)
        self.source = source or library.cuda_source(module, device)
        self.launches: list[Launch] = []
        texts, found = [PRELUDE], definitions(self.source)
        if len(found) != len(sizes):
            raise Unsupported(f"the block emulator launches one kernel for each nest of a module, and {len(sizes)} nests became {len(found)} kernels")
        for index, (one, size) in enumerate(zip(found, sizes, strict=True)):
            texts.append(_kernel(index, one))
            self.launches.append(Launch(*size, one.bound, one.names))
        self.library = _compiled("\n".join(texts))

    def __call__(self, *tensors: Tensor, names: tuple[str, ...], backwards: bool = False) -> None:
        """Runs the kernels one after the other; tensors are bound to the parameters by name, and the results are written into them.

        Args:
            names: of the tensors, in their order, as the kernels call them.
            backwards: threads run in descending order.

        Raises:
            Fault: a kernel breaks a rule of barriers, of shared memory or of alignment; or its blocks have more threads than its bound says.
            InvalidArgument: no tensor has the name of a parameter.
        """
        by_name = dict(zip(names, tensors, strict=True))
        for index, launch in enumerate(self.launches):
            absent = [name for name in launch.names if name not in by_name]
            if absent:
                raise InvalidArgument(f"kernel {index} takes {', '.join(launch.names)}, got no {', '.join(absent)}: name each of the tensors")
            threads = launch.across * launch.down
            if threads > launch.bound:
                raise Fault(f"kernel {index} is launched with {threads} threads a block, and its bound is {launch.bound}")
            given = (ctypes.c_void_p * _MAX_BUFFERS)(*(by_name[name].data_ptr() for name in launch.names))
            fault = self.library[f"run{index}"](launch.grid, launch.across, threads, int(backwards), given)
            if fault:
                raise Fault(f"kernel {index}: {_FAULTS[fault]}")


def _kernel(index: int, one: Definition) -> str:
    """Returns the C++ of one kernel: its shared buffers stand outside, between walls, and are poisoned before each block.

    Raises:
        Unsupported: a shared buffer or parameters of another form than is emulated.
    """
    buffers = _SHARED.findall(one.body)
    body = _SHARED.sub("", one.body)
    if "__shared__" in body:
        raise Unsupported("the block emulator knows shared buffers of float, half and nv_bfloat16 with a fixed size, and this kernel has another")
    types = _TYPE.findall(one.parameters)
    if len(types) != len(one.names) or len(types) > _MAX_BUFFERS:
        raise Unsupported(f"the block emulator takes kernels of up to {_MAX_BUFFERS} buffers and no whole numbers, got ({one.parameters})")
    rooms = [f"static {t} {n}_room[{int(s) + 2 * _WALL}] __attribute__((aligned(256))); static {t}* const {n} = {n}_room + {_WALL};" for t, n, s in buffers]
    walls = [f"wall<{'unsigned' if t == 'float' else 'uint16_t'}>({n} - {_WALL}, {s}, check);" for t, n, s in buffers]
    arguments = [f"({t}*)arguments[{i}]" for i, t in enumerate(types)]
    return KERNEL % {
        "index": index, "params": one.parameters, "body": body, "shared": "\n".join(rooms), "walls": " ".join(walls), "arguments": ", ".join(arguments),
    }  # fmt: skip


def _sizes(module: Any) -> list[tuple[int, int, int]]:
    """Returns (blocks, threads along x, threads along y) of every nest of a scheduled module, as its text says.

    Raises:
        Unsupported: the number of blocks is a run-time number.
    """
    script = module.script()
    starts = list(_GRID.finditer(script))
    found = []
    for start, after in zip(starts, [*starts[1:], None], strict=True):
        if not start[1].isdigit():
            raise Unsupported(f"the block emulator takes kernels of a fixed size, got one of {start[1]} blocks, which it learns when it is called")
        nest = script[start.end() : after.start() if after else None]
        across, down = (max([1, *(int(v) for v in re.findall(rf'T\.thread_binding\((\d+), thread="threadIdx\.{axis}"\)', nest))]) for axis in "xy")
        found.append((int(start[1]), across, down))
    return found


def _compiled(text: str) -> ctypes.CDLL:
    """Returns the C++ as a loaded library.

    Raises:
        EnvironmentProblem: there is no g++, it did not end, or its library does not load.
        Unsupported: the text holds what the C++ around it does not define.
    """
    compiler = shutil.which("g++")
    if compiler is None:
        raise EnvironmentProblem("the block emulator compiles kernels for the CPU by g++, and there is none on PATH: install g++")
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "kernel.cpp", Path(folder) / "kernel.so"
        source.write_text(text)
        command = [compiler, "-std=c++17", "-O0", "-w", "-shared", "-fPIC", "-o", str(library), str(source)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_COMPILER_TIMEOUT_S)
        except subprocess.TimeoutExpired as problem:
            raise EnvironmentProblem(f"g++ did not compile the emulated kernel within {_COMPILER_TIMEOUT_S} s: check a smaller problem") from problem
        if done.returncode:
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:300])
            raise Unsupported(f"the block emulator does not know something in this kernel: {said.rpartition('error: ')[2]}")
        try:
            return ctypes.CDLL(str(library))
        except OSError as problem:
            raise EnvironmentProblem(f"the emulated kernel does not load ({problem}): set TMPDIR to a folder from which programs may be run") from problem
