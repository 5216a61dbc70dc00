"""The time that a compiled kernel cannot beat, resource by resource, predicted from what its warps execute.

Unit: clocks of an SM for 32 outputs. Each resource alone would need that long; the largest is the bound. Nothing here is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..problem.device import capability
from ..problem.spec import ConvSpec
from ..sass import interpreter, trace
from ..sass.cubin import KernelFacts
from .gpu_specs import BATCH, RESERVED, gpu_spec, resident_blocks

_FMA = ("FFMA", "FMUL", "FADD", "HFMA2", "IMAD", "HADD2", "HMUL2")
_NEITHER = ("LDS", "STS", "LDG", "STG", "LDL", "STL", "LDC", "LDGSTS", "BRA", "BRX", "BSSY", "BSYNC", "BREAK", "EXIT", "BAR", "NOP", "S2R", "CALL", "WARPSYNC")
_SAYS_ALL = (9, 0)  # least compute capability whose cubins count what the driver keeps of shared memory


@dataclass(frozen=True)
class SpeedOfLight:
    """Prediction for one kernel.

    clocks: of an SM for 32 outputs, by resource: dram, l2 (halos and rewritten sectors included), memory (passes of shared memory
    and L1 together: one pipe), issue (4 warp instructions a clock), fma and integer (lanes of their pipes), latency (a block lives at
    least for its waits on DRAM and its own instructions one by one; the resident blocks overlap).
    occupancy: resident warps of the most. Per output: instructions, fma (with sums and products), loads (LDS), wavefronts (of memory).
    blocks: resident. rounds: waits of a warp for global memory.
    """

    clocks: dict[str, float]
    occupancy: float
    blocks: int
    instructions: float
    fma: float
    loads: float
    wavefronts: float
    rounds: float

    @property
    def limit(self) -> str:
        """The resource that needs longest."""
        return max(self.clocks, key=lambda name: self.clocks[name])

    @property
    def worst(self) -> float:
        """Clocks of that resource."""
        return self.clocks[self.limit]


def _waits(ran: trace.Trace, latency: float) -> float:
    """Clocks that a block waits for memory; copies that were sent ahead have been on their way for what it did and waited since."""
    waits: list[float] = []
    for one in range(ran.rounds):
        instructions, rounds = ran.ahead.get(one, (0, 0))
        waits.append(max(0.0, latency - instructions - sum(waits[one - rounds :])))
    return sum(waits)


@dataclass(frozen=True)
class Launch:
    """The launch of one kernel for BATCH images: blocks, threads of a block, indices of blocks that stand for all, and blocks of other angles beside them."""

    grid: int
    threads: int
    sample: Sequence[int]
    beside: int = 0


def counted_by_driver(arch: str) -> int:
    """Bytes of the shared memory that a cubin says a block has, and that are the driver's own: RESERVED from sm_90 on, none before."""
    return RESERVED if capability(arch) >= _SAYS_ALL else 0


def speed_of_light(kernel: KernelFacts, spec: ConvSpec, arch: str, launch: Launch, moved: int) -> SpeedOfLight:
    """Predict one kernel of those that compute spec (one angle, BATCH images).

    moved: bytes of DRAM that the kernel reads and writes at the least.

    Raises:
        InvalidArgument: an arch without figures. BuildFailed: see `interpreter.run`.
    """
    device, ran = gpu_spec(arch), interpreter.run(kernel, launch.threads, launch.sample, [BATCH])
    outputs = spec.outputs * BATCH / 32
    units = outputs / launch.grid * len(launch.sample)  # warps' worth of outputs that were run
    resident = max(1, resident_blocks(device, launch.threads, kernel.registers, max(0, kernel.shared - counted_by_driver(arch))))
    memory, total, fma = sum(ran.wavefronts.values()), ran.count(), ran.count(*_FMA)
    others = total - fma - ran.count(*_NEITHER) - sum(n for name, n in ran.warp_instructions.items() if name.startswith("U"))
    every = launch.grid + launch.beside
    life = _waits(ran, device.latency) + ran.instructions_of_a_warp
    clocks = {
        "dram": moved / outputs / device.dram,
        "l2": 32 * sum(ran.sectors.values()) / units / device.l2,
        "memory": memory / units,
        "issue": total / units / 4,
        "fma": fma / units * 32 / device.fp32_lanes,
        "integer": others / units * 32 / 64,
        "latency": life * max(1.0, every / device.sms / resident) * launch.grid / every * device.sms / outputs,
    }
    warps = -(-launch.threads // 32)
    occupancy, sums = min(resident * warps, device.warps) / device.warps, ran.count("FFMA", "FMUL", "FADD")
    return SpeedOfLight(clocks, occupancy, resident, total / units, sums / units, ran.count("LDS") / units, memory / units, ran.rounds)
