"""Tells what a register patch and a block cost before anything is compiled; templates rank their choices by it.

`tvm_orient.perf_model.speed_of_light` reads the same from machine code; `python -m benchmarks.static.fit` holds the costs against kernels that were timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..sass.bank_conflicts import WARP, wavefronts
from .gpu_specs import GpuSpec, resident_blocks

ISSUE = 1.3  # clocks between two instructions of one warp, where nothing else hides what they wait for
# fitted to 134 kernels that were timed on an H200 (benchmarks/static/fit.py)
ISSUED = 2.8  # warp instructions a clock that an SM gets through at most, of 4: operands of one register bank stall the rest
LOADED = 5.0  # times `GpuSpec.latency` that a load of a busy GPU takes, start and end of its block included
FETCH = 10.0  # clocks that an SM waits for each instruction of straight-line code when it runs it first in a launch
# 18 layers of eight angles on an H200 took at most 1.1 times as long as their angles alone up to 124 KB of code, and 1.3 to 2.1 times from 150 KB on
CODE_CACHE = 7400.0  # instructions of a launch that an SM keeps
_COPY = 6  # instructions of one asynchronous copy, its address and its test included
_UNROLLED_COPY = 8  # instructions in the code of one copy
_MAX_COPIES = 128  # copies that are unrolled
_ENTRY = 40  # instructions of a thread outside its loops
_MARGIN = 16  # registers for addresses and what is on its way
_ADDRESS_SHARE = 0.7  # part of a copy's instructions that are integer arithmetic
_INTEGER_LANES = 64  # integer operations a clock of an SM
_MAX_REGISTERS = 255  # registers of a thread
ALONE = (1, 1, 0)  # threads, registers of a thread and shared bytes that a block takes at least where an angle is a layer of its own
BLOCK = (128, 128, 36864)  # the same of a merged kernel, whose angles share the largest
_FLOAT = 4  # bytes of a float32
_SOFT = 8  # exponent of the norm that stands for the largest: of two equal bounds the one with more slack elsewhere is better


def shared_wavefronts(base: Any, words: int) -> float:
    """Returns the wavefronts that a warp takes, on average, for one access to shared memory.

    Args:
        base: (lanes,) whole numbers, the float at which the access of each lane begins; the last warp may have fewer than 32 lanes.
        words: floats that a lane accesses, side by side.
    """
    return _wavefronts_of_a_warp(base, words, through_cache=False)


def global_wavefronts(base: Any, words: int) -> float:
    """Returns what `shared_wavefronts` does for an access to global memory, where a wavefront also looks up no more than one line of 128 bytes."""
    return _wavefronts_of_a_warp(base, words, through_cache=True)


def _wavefronts_of_a_warp(base: Any, words: int, *, through_cache: bool) -> float:
    lanes = -(-len(base) // WARP) * WARP
    address = np.zeros(lanes, np.int64)
    active = np.zeros(lanes, bool)
    address[: len(base)] = base * _FLOAT
    active[: len(base)] = True
    return wavefronts(address, _FLOAT * words, active, through_cache) / (lanes // WARP)


class Clocks(dict[str, float]):
    """Clocks of an SM for 32 outputs by resource, as `clocks` gives them, and what of a choice counts in a layer of several angles.

    Attributes:
        block: threads, registers of a thread and shared bytes of a block.
        code: instructions of a thread's code.
    """

    def __init__(self, by_resource: dict[str, float], device: GpuSpec, block: tuple[int, int, int], lives: float, code: float) -> None:
        super().__init__(by_resource)
        self.block, self.code, self._device, self._lives = block, code, device, lives

    def among(self, least: tuple[int, int, int]) -> Clocks:
        """Returns the clocks of the same choice where a block takes at least so many threads, registers and shared bytes.

        Fewer blocks are then resident, and hide less of their lives.
        """
        resident = max(1, resident_blocks(self._device, *(max(own, most) for own, most in zip(self.block, least, strict=True))))
        return Clocks({**self, "latency": self._lives / resident}, self._device, self.block, self._lives, self.code)


def soft_maximum(clocks: Mapping[str, float]) -> float:
    """Returns a number near the largest, a little more where others come close."""
    top = max(clocks.values())
    return float(top * sum((value / top) ** _SOFT for value in clocks.values()) ** (1 / _SOFT))


@dataclass(frozen=True)
class ThreadWork:
    """The instructions that a thread of a block executes for one tile."""

    products: float  #: multiply-adds
    others: float  #: instructions that are neither multiply-adds nor copies
    copies: float = 0  #: copies into shared memory
    copy: float = _COPY  #: instructions of one copy
    branches: int = 1  #: parts of a block's code of which each warp executes one, with multiply-adds of its own


@dataclass(frozen=True)
class BlockLoad:
    """The load that one block of a kernel is to an SM; all but `threads`, `shared_cache` and `registers` is of one tile."""

    threads: int  #: of the block
    outputs: float  #: that are wanted
    shared: int  #: bytes of shared memory
    registers: int  #: values of a thread that are alive at once
    memory: float  #: wavefronts of the pipe that shared memory and L1 are
    dram: float  #: bytes moved to and from DRAM
    l2: float  #: bytes moved to and from the L2 cache
    work: ThreadWork  #: of each thread
    waits: float = 2  #: times that the block waits for memory
    tiles: int = 1  #: that the block computes in turn, each copied while those before it are computed


def clocks(device: GpuSpec, load: BlockLoad, least: tuple[int, int, int] = BLOCK) -> Clocks:
    """Returns the clocks of an SM for 32 outputs, by resource as in `speed_of_light.SpeedOfLight`, of a kernel of such blocks.

    Args:
        least: threads, registers and shared bytes that a block takes at least: BLOCK as part of a layer of several angles, else ALONE.
    """
    work, tiles = load.work, load.tiles
    warps = -(-load.threads // WARP)
    units = load.outputs / WARP
    total = work.products + work.others + work.copies * work.copy + _ENTRY
    block = (load.threads, min(_MAX_REGISTERS, load.registers + _MARGIN), load.shared)
    wait = LOADED * device.latency
    own = (load.waits - 1) * wait + ISSUE * total  # of a tile that is there
    life = wait + own + (tiles - 1) * max(own, (wait + own) / 2)  # a tile's copies go out when the last but one is done
    by_resource = {
        "dram": load.dram / units / device.dram,
        "l2": load.l2 / units / device.l2,
        "memory": load.memory / units,
        "issue": total * warps / units / ISSUED,
        "fma": work.products * warps / units * WARP / device.fp32_lanes,
        "integer": (work.copies * work.copy * _ADDRESS_SHARE + _ENTRY) * warps / units * WARP / _INTEGER_LANES,
    }
    code = work.branches * (work.products + work.others) + min(work.copies, _MAX_COPIES) * _UNROLLED_COPY + _ENTRY
    return Clocks(by_resource, device, block, life / tiles / units, code).among(least)
