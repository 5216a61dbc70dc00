"""Device: what a kernel is generated for. Read from the machine, or made by hand for a GPU that is elsewhere."""

from __future__ import annotations

import ctypes
import functools
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .. import env
from ..errors import EnvironmentProblem, InvalidArgument
from . import cpus

# opt-in shared memory per block in bytes (CUDA programming guide, and CUDA 13's arch_traits.h), and SMs of the usual card: T4, A100, RTX A6000,
# AGX Orin, RTX 4090, H100 SXM, B200, B300, Jetson Thor, RTX 5090, GB10. Of 8.8 no card is known: as 8.7
_CAPABILITIES = {
    "75": (65536, 40), "80": (166912, 108), "86": (101376, 84), "87": (166912, 16), "88": (101376, 16), "89": (101376, 128), "90": (232448, 132),
    "100": (232448, 148), "103": (232448, 148), "110": (232448, 20), "120": (101376, 170), "121": (101376, 48),
}  # fmt: skip
_SPECIFIC = 90  # from here on an arch has a twin whose code runs on no other, such as sm_90a, which the driver's GPUs are called by
_ARCHS = {f"sm_{number}{a}": facts for number, facts in _CAPABILITIES.items() for a in (("", "a") if int(number) >= _SPECIFIC else ("",))}
# CUdevice_attribute numbers (cuda.h)
_SMS = 16  # CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
_OPTIN = 97  # CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, in bytes
_MAJOR = 75  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
_MINOR = 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR


@dataclass(frozen=True)
class Device:
    """The device that a kernel is generated for; `device_for`, `cpu_device`, `cuda_devices` and `arch_device` make one."""

    kind: str  #: "cpu" or "cuda"
    name: str  #: as the driver or the system gives it
    slug: str  #: the name in tuning logs and in the cache, a folder name
    arch: str  #: the instructions: sm_90a, avx2...
    units: int  #: SMs, or cores that this process may use
    shared_memory: int  #: opt-in bytes per block; 0 on a CPU
    vector_bytes: int  #: width of a CPU's SIMD registers, or of the widest GPU load
    index: int = 0  #: of the GPU in this machine
    model: str = ""  #: of a CPU: vendor, family and model, or the level of x86-64 that it stands for; kernels of others are not its own
    features: str = ""  #: of a CPU: the instruction sets that its kernels may use, in the words of Linux's cpuinfo, sorted

    @property
    def kin(self) -> str:
        """The slug without the number of cores: CPUs of one kin differ in that alone, and run the same kernels."""
        return kin_of(self.slug)


def kin_of(slug: str) -> str:
    """A slug without the number of cores, which those of CPUs end with."""
    return re.sub(r"^(cpu-.*)-\d+c$", r"\1", slug)


def slugify(name: str) -> str:
    """A device name as a folder name: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def cpu_device() -> Device:
    """This machine's CPU; where TVM_ORIENT_CPU names a level of x86-64, a CPU that has that level and no more.

    Raises:
        InvalidArgument: TVM_ORIENT_CPU names no level.
        EnvironmentProblem: this CPU lacks instructions of that level.
    """
    cpu, level = own_cpu(), env.cpu_level()
    if level is None:
        isa, width = _simd(cpu.features)
        slug = f"cpu-{slugify(cpus.short(cpu.name))}-{isa}-{cpus.cores()}c"
        return Device("cpu", cpu.name, slug, isa, cpus.cores(), 0, width, model=cpu.model, features=" ".join(cpu.features))
    if level not in cpus.LEVELS:
        raise InvalidArgument(f"TVM_ORIENT_CPU must be one of {', '.join(cpus.LEVELS)}, got {level!r}: unset it or choose one")
    device = _level_device(level)
    lacking = sorted(set(device.features.split()).difference(cpu.features))
    if lacking:
        raise EnvironmentProblem(f"TVM_ORIENT_CPU asks for {level}, and {cpu.name} lacks {', '.join(lacking)} of it: unset it, or choose a lower level")
    return device


@functools.cache
def own_cpu() -> cpus.Cpu:
    """Returns what this machine's CPU is and can do, whatever TVM_ORIENT_CPU says; read once."""
    return cpus.this_cpu()


def _level_device(level: str) -> Device:
    if not cpus.is_x86():
        raise EnvironmentProblem(f"kernels are linked for the architecture of this machine, {platform.machine()}, got {level}: build them on an x86-64")
    features = sorted(cpus.LEVELS[level])
    isa, width = _simd(features)
    return Device("cpu", level, f"cpu-{level}-{cpus.cores()}c", isa, cpus.cores(), 0, width, model=level, features=" ".join(features))


def _simd(features: Iterable[str]) -> tuple[str, int]:
    """The SIMD set of a CPU and the bytes of its registers."""
    return next(((isa, width) for isa, width in (("avx512f", 64), ("avx2", 32)) if isa in features), (platform.machine(), 16))


@functools.cache
def cuda_devices() -> tuple[Device, ...]:
    """Every CUDA GPU that the driver shows; empty where there is no driver or no GPU."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ()
    count = ctypes.c_int()
    if driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count)):
        return ()

    def attribute(number: int, handle: ctypes.c_int) -> int:
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), number, handle)
        return value.value

    found = []
    for index in range(count.value):
        handle, text = ctypes.c_int(), ctypes.create_string_buffer(256)
        driver.cuDeviceGet(ctypes.byref(handle), index)
        driver.cuDeviceGetName(text, 256, handle)
        name, major = text.value.decode(), attribute(_MAJOR, handle)
        arch = f"sm_{major}{attribute(_MINOR, handle)}" + ("a" if major >= 9 else "")
        found.append(Device("cuda", name, slugify(name), arch, attribute(_SMS, handle), attribute(_OPTIN, handle), 16, index))
    return tuple(found)


def archs() -> tuple[str, ...]:
    """Every arch that kernels can be generated for, as `arch_device` takes them, ascending."""
    return tuple(_ARCHS)


def capability(arch: str) -> tuple[int, int]:
    """The compute capability (major, minor) that a GPU's arch names: (9, 0) for sm_90a, for sm_90, and for 9.0 and 90 as records have had it.

    Raises:
        InvalidArgument: it names none.
    """
    match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)[af]?", arch)
    if match is None:
        raise InvalidArgument(f"a GPU's arch reads like sm_90a, got {arch!r}: see tvm_orient.problem.device.archs")
    return int(match[1]), int(match[2])


def same_instructions(one: str, other: str) -> bool:
    """Whether two arch words, of GPUs or of CPUs, name one set of instructions: GPUs are compared by capability, CPUs by the word."""
    try:
        return capability(one) == capability(other)
    except InvalidArgument:
        return one == other


def arch_device(arch: str) -> Device:
    """A GPU of that architecture, or a CPU of that level of x86-64 (x86-64-v3), that need not be here, for cross-building.

    Raises:
        InvalidArgument: an unknown arch.
        EnvironmentProblem: a level of x86-64, and this machine is none.
    """
    if arch in cpus.LEVELS:
        return _level_device(arch)
    if arch not in _ARCHS:
        raise InvalidArgument(f"unknown arch {arch!r}: choose one of {', '.join((*_ARCHS, *cpus.LEVELS))}")
    shared, sms = _ARCHS[arch]
    return Device("cuda", arch, arch.replace("_", "-"), arch, sms, shared, 16)


def recorded_device(slug: str, arch: str, units: int) -> Device:
    """The device that a tuning record was made on, by its slug, its compute capability or SIMD set, and its number of SMs or cores.

    Raises:
        InvalidArgument: an unknown arch.
    """
    if slug.startswith("cpu-"):
        return Device("cpu", slug, slug, arch, units, 0, _simd((arch,))[1])
    return replace(arch_device(arch), name=slug, slug=slug, units=units)


def device_for(target: str) -> Device:
    """The device that a word on a command line means: cpu, cuda, auto (a GPU where there is one) or sm_XX.

    Raises:
        InvalidArgument: another word.
        EnvironmentProblem: cuda was asked for and there is none.
    """
    if target.startswith("sm_"):
        return arch_device(target)
    if target not in ("cpu", "cuda", "auto"):
        raise InvalidArgument(f"target must be auto, cpu, cuda or an arch such as sm_90a, got {target!r}")
    gpus = cuda_devices() if target != "cpu" else ()
    if target == "cuda" and not gpus:
        raise EnvironmentProblem("no CUDA GPU on this machine: use --target cpu, or `tvm-orient build --arch sm_90a` to generate kernels for a GPU elsewhere")
    return gpus[0] if gpus else cpu_device()
