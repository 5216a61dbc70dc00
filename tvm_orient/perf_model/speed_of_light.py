"""The time that a compiled kernel cannot beat, resource by resource, predicted from what its warps execute.

Unit: clocks of an SM for 32 outputs. Each resource alone would need that long; the one that needs longest limits the kernel. Nothing here
is measured. The word is Nsight Compute's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..problem.spec import ConvSpec
from ..sass import interpreter
from ..sass.bank_conflicts import WARP
from ..sass.cubin import KernelFacts
from ..sass.trace import Overlap, Trace
from .gpu_specs import BATCH, driver_shared_bytes, gpu_spec, resident_blocks

_FMA = ("FFMA", "FMUL", "FADD", "HFMA2", "IMAD", "HADD2", "HMUL2")  # opcodes of the pipe for multiply-adds
_SUMS = ("FFMA", "FMUL", "FADD")  # opcodes that compute float32
# opcodes that occupy neither that pipe nor the one for integers
_NEITHER = ("LDS", "STS", "LDG", "STG", "LDL", "STL", "LDC", "LDGSTS", "BRA", "BRX", "BSSY", "BSYNC", "BREAK", "EXIT", "BAR", "NOP", "S2R", "CALL", "WARPSYNC")
_SCHEDULERS = 4  # warp instructions that an SM issues a clock
_INTEGER_LANES = 64  # of an SM


@dataclass(frozen=True)
class SpeedOfLight:
    """The prediction for one kernel.

    Attributes:
        clocks: of an SM for 32 outputs, by resource. dram: the bytes that must move. l2: sectors, halos and those written more than once included.
            memory: wavefronts of shared memory and L1 together, which are one pipe. issue: all warp instructions, 4 a clock. fma and integer: the
            lanes of their pipes. latency: a block lives at least for its waits on DRAM and its own instructions one by one; resident blocks overlap.
        occupancy: resident warps, as a share of what an SM can hold.
        blocks: resident on an SM.
        instructions: of an output.
        fma: float32 multiply-adds, sums and products of an output.
        loads: of shared memory of an output (LDS).
        wavefronts: of shared memory and L1, of an output.
        exposed_waits: times that a warp waits for global memory.
    """

    clocks: dict[str, float]
    occupancy: float
    blocks: int
    instructions: float
    fma: float
    loads: float
    wavefronts: float
    exposed_waits: float

    @property
    def limiter(self) -> str:
        """Return the resource that needs longest."""
        return max(self.clocks, key=lambda name: self.clocks[name])

    @property
    def limiter_clocks(self) -> float:
        """Return the clocks that the limiter needs: of an SM for 32 outputs."""
        return self.clocks[self.limiter]


@dataclass(frozen=True)
class Launch:
    """How one kernel is launched for BATCH images.

    Attributes:
        grid: its blocks.
        threads: of a block.
        sample: the indices of the blocks that are run, which stand for all.
        beside: blocks of other angles in the same launch.
    """

    grid: int
    threads: int
    sample: Sequence[int]
    beside: int = 0


def speed_of_light(kernel: KernelFacts, spec: ConvSpec, arch: str, launch: Launch, moved: int) -> SpeedOfLight:
    """Predict one kernel of those that compute a spec.

    Args:
        kernel: as `cubin.kernels` reads it.
        spec: of one angle.
        arch: of the GPU, such as sm_90a.
        launch: for BATCH images.
        moved: bytes that the kernel must read from DRAM and write to it.

    Raises:
        InvalidArgument: an arch without figures.
        BuildFailed: as `interpreter.run`.
    """
    gpu = gpu_spec(arch)
    ran = interpreter.run(kernel, launch.threads, launch.sample, [BATCH])
    outputs = spec.outputs * BATCH / WARP
    units = outputs / launch.grid * len(launch.sample)  # warps' worth of outputs that were run
    resident = max(1, resident_blocks(gpu, launch.threads, kernel.registers, max(0, kernel.shared - driver_shared_bytes(arch))))
    wavefronts, total, fma = sum(ran.wavefronts.values()), ran.count(), ran.count(*_FMA)
    integer = total - fma - ran.count(*_NEITHER) - sum(n for name, n in ran.warp_instructions.items() if name.startswith("U"))
    every = launch.grid + launch.beside
    life = _waited(ran, gpu.latency) + ran.instructions_of_a_warp
    clocks = {
        "dram": moved / outputs / gpu.dram,
        "l2": 32 * sum(ran.sectors.values()) / units / gpu.l2,
        "memory": wavefronts / units,
        "issue": total / units / _SCHEDULERS,
        "fma": fma / units * WARP / gpu.fp32_lanes,
        "integer": integer / units * WARP / _INTEGER_LANES,
        "latency": life * max(1.0, every / gpu.sms / resident) * launch.grid / every * gpu.sms / outputs,
    }
    warps = -(-launch.threads // WARP)
    return SpeedOfLight(
        clocks=clocks,
        occupancy=min(resident * warps, gpu.warps) / gpu.warps,
        blocks=resident,
        instructions=total / units,
        fma=ran.count(*_SUMS) / units,
        loads=ran.count("LDS") / units,
        wavefronts=wavefronts / units,
        exposed_waits=ran.exposed_waits,
    )


def _waited(ran: Trace, latency: float) -> float:
    """Return the clocks that a block waits for memory; copies that were sent ahead have been on their way for what it did and waited since."""
    waits: list[float] = []
    for one in range(ran.exposed_waits):
        overlap = ran.overlaps.get(one, Overlap(0, 0))
        waits.append(max(0.0, latency - overlap.instructions - sum(waits[one - overlap.exposed_waits :])))
    return sum(waits)
