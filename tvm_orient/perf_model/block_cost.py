"""What a register patch costs before anything is compiled: loads, passes of the memory pipe, registers. Templates rank their choices by it.

`tvm_orient.perf_model.speed_of_light` reads the same from machine code; `python -m benchmarks.static.fit` holds the costs against kernels that were timed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..sass.bank_conflicts import WARP, wavefronts
from .gpu_specs import GpuSpec, resident_blocks

ISSUE = 1.3  # clocks between two instructions of one warp, where nothing else hides what they wait for
# fitted to 134 kernels that were timed on an H200 (benchmarks/static/fit.py)
ISSUED = 2.8  # warp instructions a clock that an SM gets through at most, of 4: operands of one register bank stall the rest
LOADED = 5.0  # times `Figures.latency` that a load of a busy GPU takes, start and end of its block included
FETCH = 10.0  # clocks that an SM waits for each instruction of straight-line code when it runs it first in a launch
# 18 layers of eight angles on an H200 took at most 1.1 times as long as their angles alone up to 124 KB of code, and 1.3 to 2.1 times from 150 KB on
CODE_CACHE = 7400.0  # instructions of a launch that an SM keeps
_COPY = 6  # instructions of one asynchronous copy, its address and its test included
_UNROLLED_COPY, _MOST_COPIES = 8, 128  # instructions in the code of one copy; copies that are unrolled at most
_ENTRY = 40  # instructions of a thread outside its loops
_MARGIN = 16  # registers for addresses and what is on its way
ALONE = (1, 1, 0)
BLOCK = (128, 128, 36864)  # threads, registers of a thread and shared bytes that a merged kernel has at least: its angles share the largest
_SOFT = 8  # exponent of the norm that stands for the largest: of two equal bounds the one with more slack elsewhere is better


def passes(base: Any, words: int, lines: bool = False) -> float:
    """Passes a warp of one access of `words` floats by lanes at these offsets, on average."""
    lanes = -(-len(base) // WARP) * WARP
    address, active = np.zeros(lanes, np.int64), np.zeros(lanes, bool)
    address[: len(base)], active[: len(base)] = base * 4, True
    return wavefronts(address, 4 * words, active, lines) / (lanes // WARP)


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
        """The same choice where a block takes at least so many threads, registers and shared bytes: fewer are resident, and hide less of their lives."""
        resident = max(1, resident_blocks(self._device, *(max(own, most) for own, most in zip(self.block, least, strict=True))))
        return Clocks({**self, "latency": self._lives / resident}, self._device, self.block, self._lives, self.code)


def soft_maximum(clocks: Mapping[str, float]) -> float:
    """Near the largest, a little more where others come close."""
    top = max(clocks.values())
    return float(top * sum((value / top) ** _SOFT for value in clocks.values()) ** (1 / _SOFT))


def clocks(
    device: GpuSpec,
    threads: int,
    outputs: float,
    shared: int,
    registers: int,
    memory: float,
    products: float,
    others: float,
    copies: float,
    dram: float,
    l2: float,
    copy: float = _COPY,
    waits: float = 2,
    least: tuple[int, int, int] = BLOCK,
    tiles: int = 1,
    branches: int = 1,
) -> Clocks:
    """Clocks of an SM for 32 outputs, by resource as in `speed_of_light.SpeedOfLight`.

    outputs: of a block. shared: its bytes. memory: passes of a block. products, others, copies: multiply-adds, other instructions
    and copies of a thread. dram, l2: bytes of a block. copy: instructions of a copy. waits: of a block for memory.
    least: threads, registers and shared bytes that a block takes at least: BLOCK as part of a layer of several angles, else ALONE.
    tiles: that a block computes in turn, each copied while those before it are computed; all but `shared_cache` is then of a tile.
    branches: of a block's code, where each warp has its own multiply-adds.
    """
    warps = -(-threads // WARP)
    units = outputs / WARP
    total = products + others + copies * copy + _ENTRY
    block = (threads, min(255, registers + _MARGIN), shared)
    wait = LOADED * device.latency
    own = (waits - 1) * wait + ISSUE * total  # of a tile that is there
    life = wait + own + (tiles - 1) * max(own, (wait + own) / 2)  # a tile's copies go out when the last but one is done
    by_resource = {
        "dram": dram / units / device.dram,
        "l2": l2 / units / device.l2,
        "memory": memory / units,
        "issue": total * warps / units / ISSUED,
        "fma": products * warps / units * WARP / device.fp32_lanes,
        "integer": (copies * copy * 0.7 + _ENTRY) * warps / units * WARP / 64,
    }
    code = branches * (products + others) + min(copies, _MOST_COPIES) * _UNROLLED_COPY + _ENTRY
    return Clocks(by_resource, device, block, life / tiles / units, code).among(least)
