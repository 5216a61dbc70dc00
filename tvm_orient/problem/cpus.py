"""CPUs: which design a CPU is and which instructions it has, as its system reports them. Kernels are named by this, so it needs no compiler.

LLVM derives its own name for a CPU (mcpu) from vendor, family, model and instructions, and takes every instruction that such a model usually has for
granted. Hypervisors, containers of another architecture and kernel options hide some. So a target names each instruction set beside the model.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# LLVM's features by the words of Linux's cpuinfo: those that a compiler may use unasked. What x86-64 and AArch64 always have is left out
_X86 = {
    "pni": "sse3", "ssse3": "ssse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2 crc32", "popcnt": "popcnt", "cx16": "cx16", "lahf_lm": "sahf", "movbe": "movbe",
    "abm": "lzcnt", "bmi1": "bmi", "bmi2": "bmi2", "3dnowprefetch": "prfchw", "aes": "aes", "pclmulqdq": "pclmul", "sha_ni": "sha", "gfni": "gfni",
    "vaes": "vaes", "vpclmulqdq": "vpclmulqdq", "rdrand": "rdrnd", "rdseed": "rdseed", "adx": "adx", "rdpid": "rdpid", "clflushopt": "clflushopt",
    "clwb": "clwb", "cldemote": "cldemote", "movdiri": "movdiri", "movdir64b": "movdir64b", "rtm": "rtm", "sse4a": "sse4a", "fma4": "fma4", "xop": "xop",
    "tbm": "tbm", "lwp": "lwp", "f16c": "f16c", "fma": "fma", "avx": "avx", "avx2": "avx2", "avx_vnni": "avxvnni", "avx_ifma": "avxifma",
    "avx_vnni_int8": "avxvnniint8", "avx_vnni_int16": "avxvnniint16", "avx_ne_convert": "avxneconvert", "sha512": "sha512", "sm3": "sm3", "sm4": "sm4",
    "avx512f": "avx512f", "avx512cd": "avx512cd", "avx512dq": "avx512dq", "avx512bw": "avx512bw", "avx512vl": "avx512vl", "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi", "avx512_vbmi2": "avx512vbmi2", "avx512_vnni": "avx512vnni", "avx512_bitalg": "avx512bitalg",
    "avx512_vpopcntdq": "avx512vpopcntdq", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16", "avx512_vp2intersect": "avx512vp2intersect",
    "amx_tile": "amx-tile", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16", "amx_fp16": "amx-fp16", "amx_complex": "amx-complex",
}  # fmt: skip
_ARM = {
    "fphp": "fullfp16", "asimddp": "dotprod", "asimdfhm": "fp16fml", "atomics": "lse", "uscat": "lse2", "asimdrdm": "rdm", "jscvt": "jsconv",
    "fcma": "complxnum", "lrcpc": "rcpc", "ilrcpc": "rcpc-immo", "crc32": "crc", "aes": "aes", "sha2": "sha2", "sha3": "sha3", "sm4": "sm4",
    "frint": "fptoint", "flagm": "flagm", "flagm2": "altnzcv", "sb": "sb", "dcpop": "ccpp", "dcpodp": "ccdp", "bti": "bti", "paca": "pauth", "rng": "rand",
    "bf16": "bf16", "i8mm": "i8mm", "sve": "sve", "sve2": "sve2", "sve2p1": "sve2p1", "cssc": "cssc", "mops": "mops",
}  # fmt: skip
# features of x86-64 that no word of cpuinfo tells: never used
_UNTOLD = (
    "avx10.1", "avx10.2", "egpr", "ndd", "nf", "ccmp", "cf", "ppx", "push2pop2", "zu", "prefetchi", "cmpccxadd", "raoint", "movrs",
    "amx-avx512", "amx-fp8", "amx-movrs", "amx-tf32",
)  # fmt: skip
# the levels of the x86-64 ABI, each with what it has beside the level before
_V2 = ("cx16", "lahf_lm", "pni", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3 = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}
# (implementer, part) as Arm's and other makers' manuals number them; others are named by their numbers
_PARTS = {
    ("0x41", "0xd03"): "Cortex-A53", ("0x41", "0xd07"): "Cortex-A57", ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd84"): "Neoverse-V3", ("0x41", "0xd8e"): "Neoverse-N3", ("0xc0", "0xac3"): "Ampere-1", ("0xc0", "0xac4"): "Ampere-1A",
    ("0x46", "0x001"): "A64FX", ("0x48", "0xd01"): "Kunpeng-920",
}  # fmt: skip
_OTHERS = ("cpu", "uarch", "isa", "mvendorid", "marchid", "mimpid", "machine")  # fields that tell CPUs of other architectures apart


@dataclass(frozen=True)
class Cpu:
    """A CPU as its system reports it."""

    name: str  #: for people: a brand, or the names of its kinds of cores
    model: str  #: which design it is: vendor, family and model; implementer and part on ARM
    features: tuple[str, ...]  #: instruction sets in the words of cpuinfo, sorted; of those that decide what a compiler makes


def this_cpu() -> Cpu:
    """Return the CPU of this machine, from Linux's cpuinfo. Where that does not tell, its model names the machine, so that no two machines pass for one."""
    try:
        with CPUINFO.open(errors="replace") as lines:
            found = _x86(lines) if is_x86() else _other(lines)
    except OSError:
        found = None
    name = platform.machine()
    return found or Cpu(name, f"{name} of {platform.node()}", ())


def is_x86() -> bool:
    """Return whether this machine is an x86-64."""
    return platform.machine().lower() in ("x86_64", "amd64")


def _fields(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, value) of each line of cpuinfo."""
    for line in lines:
        name, _, value = line.partition(":")
        yield name.strip(), value.strip()


def _x86(lines: Iterable[str]) -> Cpu | None:
    """Return the CPU of the first core, since Linux gives every core the same flags, also where they are of several kinds; None where there are no flags."""
    core: dict[str, str] = {}
    for name, value in _fields(lines):
        core[name] = value
        if name == "flags":  # the last of those that count
            model = f"{core.get('vendor_id')} family {core.get('cpu family')} model {core.get('model')}"
            return Cpu(core.get("model name", model), model, _known(value, _X86))
    return None  # an emulator that shows the cpuinfo of what it runs on


def _other(lines: Iterable[str]) -> Cpu | None:
    """Return the CPU that the cpuinfo of another architecture describes, all its kinds of cores together; None where it tells nothing."""
    maker, features, brand = "", "", ""
    parts: set[tuple[str, str]] = set()
    words: dict[str, None] = {}
    for name, value in _fields(lines):
        if name == "CPU implementer":
            maker = value
        elif name == "CPU part":
            parts.add((maker, value))
        elif name == "Features":
            features = value
        elif name in _OTHERS:
            words[value] = None
        brand = value if name == "model name" else brand
    if parts:
        names = [_PARTS.get(part, f"ARM {' '.join(part)}") for part in sorted(parts)]
        return Cpu(" + ".join(names), " + ".join(f"implementer {maker} part {part}" for maker, part in sorted(parts)), _known(features, _ARM))
    return Cpu(brand or next(iter(words)), " ".join(words), ()) if words else None


def _known(words: str, table: dict[str, str]) -> tuple[str, ...]:
    """Return those words of cpuinfo that decide what a compiler makes, sorted."""
    return tuple(sorted(table.keys() & set(words.split())))


def attributes(features: Iterable[str]) -> list[str]:
    """Return LLVM's attributes (mattr) of a CPU with exactly these features, in the words of cpuinfo, whatever its model usually has: +avx2, -avx512f.

    The attributes that it lacks come last: in LLVM a feature brings along those that it is built on, and one that is taken away takes along those
    that are built on it.
    """
    has = set(features)
    there = {name: word in has for word, names in (_X86 if is_x86() else _ARM).items() for name in names.split()}
    there |= dict.fromkeys(_UNTOLD if is_x86() else (), False)
    return [f"+{name}" for name, here in there.items() if here] + [f"-{name}" for name, here in there.items() if not here]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def short(name: str) -> str:
    """Return a brand without marks, clock and core count: enough to tell models apart in a folder's name."""
    return re.sub(r"\((r|tm)\)|\bcpu\b|@.*|\b\d+-core processor\b", " ", name, flags=re.I)
