"""Device: the CPU or GPU that a kernel is generated for, read from the machine, or made by hand for one that is elsewhere."""

from __future__ import annotations

import ctypes
import functools
import platform
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from .. import env
from ..errors import EnvironmentProblem, InvalidArgument
from . import cpus


class _Card(NamedTuple):
    """The usual card of a compute capability."""

    shared_memory: int  #: opt-in bytes of a block (CUDA programming guide, and CUDA 13's arch_traits.h)
    sms: int


_CARDS = {  # by compute capability
    "75": _Card(65536, 40),  # T4
    "80": _Card(166912, 108),  # A100
    "86": _Card(101376, 84),  # RTX A6000
    "87": _Card(166912, 16),  # AGX Orin
    "88": _Card(101376, 16),  # no card is known: SMs as 8.7
    "89": _Card(101376, 128),  # RTX 4090
    "90": _Card(232448, 132),  # H100 SXM
    "100": _Card(232448, 148),  # B200
    "103": _Card(232448, 148),  # B300
    "110": _Card(232448, 20),  # Jetson Thor
    "120": _Card(101376, 170),  # RTX 5090
    "121": _Card(101376, 48),  # GB10
}
_MIN_SPECIFIC = 90  # from here on an arch has a twin whose code runs on no other, such as sm_90a, which the driver's GPUs are called by
_ARCHS = {f"sm_{number}{a}": card for number, card in _CARDS.items() for a in (("", "a") if int(number) >= _MIN_SPECIFIC else ("",))}
# CUdevice_attribute numbers (cuda.h)
_SMS = 16  # multiprocessors
_OPTIN_SHARED_MEMORY = 97  # bytes of shared memory that a block may ask for
_MAJOR = 75  # of the compute capability
_MINOR = 76  # of the compute capability
_GPU_VECTOR = 16  # bytes of the widest load of a GPU
_CPU_VECTORS = {"avx512f": 64, "avx2": 32}  # bytes of the SIMD registers of an instruction set, widest first
_MIN_VECTOR = 16  # bytes that every other CPU has


@dataclass(frozen=True)
class Device:
    """The CPU or GPU that a kernel is generated for; `device_for`, `cpu_device`, `cuda_devices` and `arch_device` make one."""

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
        """Return the slug without the number of cores: CPUs of one kin differ in that alone, and run the same kernels."""
        return kin_of(self.slug)


def kin_of(slug: str) -> str:
    """Return a slug without the number of cores, with which those of CPUs end."""
    return re.sub(r"^(cpu-.*)-\d+c$", r"\1", slug)


def slugify(name: str) -> str:
    """Return a device name as a folder name: lower case, words joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


@functools.cache
def cpu_device() -> Device:
    """Return this machine's CPU; where TVM_ORIENT_CPU names a level of x86-64, a CPU that has that level and no more.

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
    """Return what this machine's CPU is and can do, whatever TVM_ORIENT_CPU says; it is read once."""
    return cpus.this_cpu()


def _level_device(level: str) -> Device:
    """Return a CPU that has a level of x86-64 and no more.

    Raises:
        EnvironmentProblem: this machine is no x86-64.
    """
    if not cpus.is_x86():
        raise EnvironmentProblem(f"kernels are linked for the architecture of this machine, {platform.machine()}, got {level}: build them on an x86-64")
    features = sorted(cpus.LEVELS[level])
    isa, width = _simd(features)
    return Device("cpu", level, f"cpu-{level}-{cpus.cores()}c", isa, cpus.cores(), 0, width, model=level, features=" ".join(features))


def _simd(features: Iterable[str]) -> tuple[str, int]:
    """Return the widest SIMD set of a CPU with these features, and the bytes of its registers."""
    return next(((isa, width) for isa, width in _CPU_VECTORS.items() if isa in features), (platform.machine(), _MIN_VECTOR))


@functools.cache
def cuda_devices() -> tuple[Device, ...]:
    """Return every CUDA GPU that the driver shows, in its order; none where there is no driver or no GPU."""
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
        arch = f"sm_{major}{attribute(_MINOR, handle)}" + ("a" if 10 * major >= _MIN_SPECIFIC else "")
        found.append(Device("cuda", name, slugify(name), arch, attribute(_SMS, handle), attribute(_OPTIN_SHARED_MEMORY, handle), _GPU_VECTOR, index))
    return tuple(found)


def archs() -> tuple[str, ...]:
    """Return every arch of a GPU that kernels can be generated for, as `arch_device` takes them, ascending."""
    return tuple(_ARCHS)


def capability(arch: str) -> tuple[int, int]:
    """Return the compute capability (major, minor) that a GPU's arch names: (9, 0) for sm_90a, for sm_90, and for 9.0 and 90 as records have had it.

    Raises:
        InvalidArgument: it names none.
    """
    match = re.fullmatch(r"(?:sm_)?(\d+)\.?(\d)[af]?", arch)
    if match is None:
        raise InvalidArgument(f"a GPU's arch reads like sm_90a, got {arch!r}: see tvm_orient.problem.device.archs")
    return int(match[1]), int(match[2])


def same_instructions(one: str, other: str) -> bool:
    """Returns whether two arch words, of GPUs or of CPUs, name one set of instructions: GPUs are compared by capability, CPUs by the word."""
    try:
        return capability(one) == capability(other)
    except InvalidArgument:
        return one == other


def arch_device(arch: str) -> Device:
    """Return a GPU of that architecture, or a CPU of that level of x86-64 (x86-64-v3), that need not be here, for cross-building.

    Raises:
        InvalidArgument: an unknown arch.
        EnvironmentProblem: a level of x86-64, and this machine is none.
    """
    if arch in cpus.LEVELS:
        return _level_device(arch)
    if arch not in _ARCHS:
        raise InvalidArgument(f"unknown arch {arch!r}: choose one of {', '.join((*_ARCHS, *cpus.LEVELS))}")
    card = _ARCHS[arch]
    return Device("cuda", arch, arch.replace("_", "-"), arch, card.sms, card.shared_memory, _GPU_VECTOR)


def recorded_device(slug: str, arch: str, units: int) -> Device:
    """Return the device that a tuning record was made on, by its slug, its compute capability or SIMD set, and its number of SMs or cores.

    Raises:
        InvalidArgument: an unknown arch.
    """
    if slug.startswith("cpu-"):
        return Device("cpu", slug, slug, arch, units, 0, _simd((arch,))[1])
    return replace(arch_device(arch), name=slug, slug=slug, units=units)


def device_for(target: str) -> Device:
    """Return the device that a word on a command line means: cpu, cuda, auto (a GPU where there is one) or sm_XX.

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
