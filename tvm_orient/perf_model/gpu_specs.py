"""Figures of the GPUs that kernels are predicted for, each with its source, and how many blocks fit an SM."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidArgument


@dataclass(frozen=True)
class GpuSpec:
    """One GPU: bandwidth in bytes a second, SMs, clock in Hz, and per SM: bytes a clock from L2, FP32 lanes, bytes of shared memory, limits.

    latency: clocks until a load from DRAM arrives.
    """

    name: str
    bandwidth: float
    sms: int
    clock: float
    l2: float
    fp32_lanes: int
    shared_memory: int
    warps: int
    blocks: int
    latency: int

    @property
    def dram(self) -> float:
        """Bytes of DRAM a clock that an SM gets of what a copy achieves."""
        return ACHIEVED * self.bandwidth / self.sms / self.clock


# a copy reaches 16.4 bytes a clock an SM on an H200, 89 % of the maker's figure; taken over for the others
ACHIEVED = 0.89
# bandwidth, SMs and boost clock: the maker's data sheets (A100 SXM 80 GB, RTX 4090, H200 SXM). L2: 5120 bytes a clock for the whole
# chip (A100 white paper), taken over for the other two, for which the maker gives none. FP32 lanes (arithmetic throughput), shared
# memory, warps and blocks: CUDA programming guide, compute capabilities 8.0, 8.9, 9.0. Latency: 600 clocks, rounded up
# from what published pointer chases find (470 to 570)
GPU_SPECS = {
    "sm_80": GpuSpec("A100 SXM 80 GB", 2.039e12, 108, 1.41e9, 5120 / 108, 64, 164 * 1024, 64, 32, 600),
    "sm_89": GpuSpec("RTX 4090", 1.008e12, 128, 2.52e9, 5120 / 128, 128, 100 * 1024, 48, 24, 600),
    "sm_90a": GpuSpec("H200 SXM", 4.8e12, 132, 1.98e9, 5120 / 132, 128, 228 * 1024, 64, 32, 600),
}
ASSUMED = "sm_90a"  # for an arch that has none
BATCH = 64  # images of a prediction: weights and code are read once for all of them
REGISTERS, REGISTER_UNIT, SHARED_UNIT, RESERVED = 65536, 256, 128, 1024  # of an SM; allocated by warp; by block; kept by the driver


def has_gpu_spec(arch: str) -> bool:
    """Whether kernels for this arch can be predicted."""
    return arch in GPU_SPECS or f"{arch}a" in GPU_SPECS


def gpu_spec(arch: str) -> GpuSpec:
    """Of the GPU that stands for an arch.

    Raises:
        InvalidArgument: an arch without figures.
    """
    found = GPU_SPECS.get(arch) or GPU_SPECS.get(f"{arch}a")
    if found is None:
        raise InvalidArgument(f"no figures to predict with for {arch}: there are some for {', '.join(GPU_SPECS)}")
    return found


def nearest(arch: str) -> GpuSpec:
    """Of the GPU that stands for an arch; borrowed from another where none does, see `borrowed`."""
    return gpu_spec(arch if has_gpu_spec(arch) else ASSUMED)


def borrowed(arch: str) -> str:
    """That the figures of a GPU's arch are those of another, in words; empty where it has its own."""
    return "" if has_gpu_spec(arch) else f"no figures for {arch}: {ASSUMED}'s ({GPU_SPECS[ASSUMED].name}) assumed, so untuned choices may be far from the best"


def resident_blocks(figures: GpuSpec, threads: int, registers: int, shared: int) -> int:
    """Blocks that an SM holds at once (CUDA programming guide, "hardware multithreading"); 0 where one does not fit.

    threads, shared (bytes, without what the driver keeps): of a block. registers: of a thread.
    """
    warps = -(-threads // 32)
    by_warp = -(-registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = REGISTERS // by_warp // 4 * 4 // warps  # each quarter of the SM has a quarter of them
    by_shared = figures.shared_memory // (-(-(shared + RESERVED) // SHARED_UNIT) * SHARED_UNIT)
    return min(by_registers, by_shared, figures.warps // warps, figures.blocks)
