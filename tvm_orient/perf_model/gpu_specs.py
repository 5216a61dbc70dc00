"""Data of the GPUs that kernels are predicted for, each with its source, and how many blocks fit an SM."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InvalidArgument
from ..problem.device import capability
from ..sass.bank_conflicts import WARP

# share of the maker's bandwidth that a copy achieves: it reaches 16.4 bytes a clock an SM on an H200; taken over for the others
ACHIEVED = 0.89


@dataclass(frozen=True)
class GpuSpec:
    """One GPU; whatever is not of the whole GPU is of one SM."""

    name: str  #: as its maker calls it
    bandwidth: float  #: bytes a second of DRAM, of the whole GPU, by the data sheet
    sms: int  #: how many SMs it has
    clock: float  #: boost clock in Hz
    l2: float  #: bytes a clock from L2
    fp32_lanes: int  #: multiply-adds of float32 a clock
    shared_memory: int  #: bytes of shared memory
    warps: int  #: warps that it can hold at once
    blocks: int  #: blocks that it can hold at once
    latency: int  #: clocks until a load from DRAM arrives

    @property
    def dram(self) -> float:
        """Return the bytes of DRAM a clock that an SM gets of what a copy achieves."""
        return ACHIEVED * self.bandwidth / self.sms / self.clock


# bandwidth, SMs and boost clock: the maker's data sheets (A100 SXM 80 GB, RTX 4090, H200 SXM). L2: 5120 bytes a clock for the whole
# chip (A100 white paper), taken over for the other two, for which the maker gives none. FP32 lanes (arithmetic throughput), shared
# memory, warps and blocks: CUDA programming guide, compute capabilities 8.0, 8.9, 9.0. Latency: 600 clocks, rounded up
# from what published pointer chases find (470 to 570)
GPU_SPECS = {
    "sm_80": GpuSpec(
        name="A100 SXM 80 GB",
        bandwidth=2.039e12,
        sms=108,
        clock=1.41e9,
        l2=5120 / 108,
        fp32_lanes=64,
        shared_memory=164 * 1024,
        warps=64,
        blocks=32,
        latency=600,
    ),
    "sm_89": GpuSpec(
        name="RTX 4090",
        bandwidth=1.008e12,
        sms=128,
        clock=2.52e9,
        l2=5120 / 128,
        fp32_lanes=128,
        shared_memory=100 * 1024,
        warps=48,
        blocks=24,
        latency=600,
    ),
    "sm_90a": GpuSpec(
        name="H200 SXM",
        bandwidth=4.8e12,
        sms=132,
        clock=1.98e9,
        l2=5120 / 132,
        fp32_lanes=128,
        shared_memory=228 * 1024,
        warps=64,
        blocks=32,
        latency=600,
    ),
}
ASSUMED = "sm_90a"  # the arch whose figures stand in for those of an arch that has none
BATCH = 64  # images of a prediction: weights and code are read once for all of them

# allocation on an SM, the same for every compute capability from 8.0 on (CUDA programming guide)
_REGISTERS = 65536  # 32-bit registers of an SM
_QUARTERS = 4  # parts of an SM, each with a quarter of the registers and of the warps
_REGISTER_UNIT = 256  # registers by which a warp gets them
_SHARED_UNIT = 128  # bytes by which a block gets shared memory
_DRIVER_SHARED = 1024  # bytes of shared memory that the driver keeps for itself in every block
_DRIVER_SHARED_COUNTED = (9, 0)  # compute capability from which on the section of a cubin counts these bytes too


def has_gpu_spec(arch: str) -> bool:
    """Return whether kernels for an arch such as sm_90a or sm_90 can be predicted with figures of its own."""
    return arch in GPU_SPECS or f"{arch}a" in GPU_SPECS


def gpu_spec(arch: str) -> GpuSpec:
    """Return the GPU that stands for an arch such as sm_90a or sm_90.

    Raises:
        InvalidArgument: an arch without figures.
    """
    found = GPU_SPECS.get(arch) or GPU_SPECS.get(f"{arch}a")
    if found is None:
        raise InvalidArgument(f"no figures to predict with for {arch}: there are some for {', '.join(GPU_SPECS)}")
    return found


def nearest(arch: str) -> GpuSpec:
    """Return the GPU that stands for an arch, or the assumed one where none does: `borrowed` says so in words."""
    return gpu_spec(arch if has_gpu_spec(arch) else ASSUMED)


def borrowed(arch: str) -> str:
    """Return a note that the figures for an arch are those of another GPU; empty where it has its own."""
    return "" if has_gpu_spec(arch) else f"no figures for {arch}: {ASSUMED}'s ({GPU_SPECS[ASSUMED].name}) assumed, so untuned choices may be far from the best"


def driver_shared_bytes(arch: str) -> int:
    """Return how many bytes of the static shared memory of a cubin for an arch are the driver's own; `resident_blocks` wants the rest."""
    return _DRIVER_SHARED if capability(arch) >= _DRIVER_SHARED_COUNTED else 0


def resident_blocks(gpu: GpuSpec, threads: int, registers: int, shared: int) -> int:
    """Return how many blocks an SM holds at once (CUDA programming guide, "hardware multithreading"); 0 where one does not fit.

    Args:
        gpu: whose SM it is.
        threads: of a block.
        registers: of a thread.
        shared: bytes of shared memory of a block, without what the driver keeps.
    """
    warps = -(-threads // WARP)
    by_warp = -(-registers * WARP // _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = _REGISTERS // by_warp // _QUARTERS * _QUARTERS // warps
    by_shared = gpu.shared_memory // (-(-(shared + _DRIVER_SHARED) // _SHARED_UNIT) * _SHARED_UNIT)
    return min(by_registers, by_shared, gpu.warps // warps, gpu.blocks)
