"""Makes copies into shared memory in CUDA source asynchronous: every load of a block is on its way before any has arrived.

As TVM prints it, a thread loads a value, waits for it, and stores it, once for every turn of the staging loop: each turn waits for DRAM
again. cp.async goes past the registers, and writes zeros where the source lies outside the plane. Where a block copies one tile ahead
(`double_buffer`) it waits for the copies before those of its last turn.
"""

from __future__ import annotations

import re

from .. import names
from .rewritten import Rewritten

_HELPER = """
#if defined(__CUDACC__)
template <int BYTES> __device__ __forceinline__ void tvm_orient_copy(void* to, const void* from, bool inside) {
  const unsigned place = __cvta_generic_to_shared(to);
  const int bytes = inside ? BYTES : 0;
  if (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(place), "l"(from), "r"(bytes) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" :: "r"(place), "l"(from), "n"(BYTES), "r"(bytes) : "memory");
}
__device__ __forceinline__ void tvm_orient_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }
__device__ __forceinline__ void tvm_orient_sent() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void tvm_orient_arrived_but_last() { asm volatile("cp.async.wait_group 1;" ::: "memory"); }
__device__ __forceinline__ int tvm_orient_hidden(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
#endif
"""
_ZERO = r"(?:make_\w+[24]\(.*\)|0x0p\+0f[^;]*)"
_WIDE = r"\*\((?:float|half|nv_bfloat16)[24]\*\)"
_ANY = rf"\w+{names.POINTER}"  # name of a buffer
_SHARED = rf"\w+{names.SHARED_POINTER}"  # name of a buffer in shared memory
_FROM = rf"(?:{_WIDE}\((?P<wide>{_ANY} \+ .*)\)|(?P<one>{_ANY})\[(?P<at>.*)\])"
_TO = rf"(?:{_WIDE}\((?P<to>{_SHARED} \+ .*)\)|(?P<shared>{_SHARED})\[(?P<place>.*)\])"
_GUARDED = re.compile(
    rf"(?P<indent> *)(?:float|half|nv_bfloat16)[24]? (?P<name>{names.CONDITION_VALUE}\w*);\n *if \((?P<inside>.*)\) \{{\n"
    rf" *(?P=name) = {_FROM};\n *\}} else \{{\n *(?P=name) = {_ZERO};\n *\}}\n *{_TO} = (?P=name);\n"
)
_TYPED = re.compile(r"\((float|half|nv_bfloat16)([24])\*\)")
_PLAIN = re.compile(rf"(?m)^(?P<indent> *){_TO} = {_FROM};\n")
_HALF = re.compile(rf"(?:half|nv_bfloat16)\* __restrict__ ({_ANY})")
_ON_CHIP = {names.SHARED_POINTER, names.LOCAL_POINTER}  # ends of the names of buffers that are not in global memory
_COPY = f"{names.COPY}<"
_TURNS = re.compile(rf"(?m)^(?P<indent> *)for \(int {names.DOUBLE_BUFFER}\w* = 0; .*\n(?:(?P=indent) +.*\n)+(?P=indent)\}}\n")


def asynchronous(source: str) -> Rewritten:
    """Returns the source with every copy of whole words from global to shared memory asynchronous, and awaited before each barrier that needs it.

    Copies of single values of other types, and those that convert, stay as they are. The source must be for sm_80 or later. Places are
    copies.
    """
    others, places = _ON_CHIP | set(_HALF.findall(source)), 0

    def change(match: re.Match[str]) -> str:
        nonlocal places
        copy = _copy(match, others)
        places += copy is not None
        return match[0] if copy is None else copy

    changed = _PLAIN.sub(change, _GUARDED.sub(change, source))
    if not places:
        return Rewritten(source, 0)
    parts, at = [], 0
    for turns in _TURNS.finditer(changed):
        parts += [_awaited(changed[at : turns.start()]), _but_last(turns)]
        at = turns.end()
    head, mark, rest = "".join([*parts, _awaited(changed[at:])]).partition(names.KERNEL_MARK)
    return Rewritten(head + _HELPER + mark + rest, places)


def _awaited(text: str) -> str:
    """Returns the text with a wait for all copies before each barrier."""
    return text.replace(names.BARRIER, f"{names.ARRIVED}(); {names.BARRIER}")


def _but_last(turns: re.Match[str]) -> str:
    """Returns a loop over tiles whose turns copy the next one: a barrier after copies waits for all but those; others have nothing to wait for.

    The thread is hidden from nvcc, which else computes the addresses of all copies before the loop and keeps each in a register.
    """
    head, body = turns[0].split("\n", 1)
    *before, after = body.replace(names.THREAD, names.HIDDEN_THREAD).split(names.BARRIER)
    if not any(_COPY in text for text in before):  # those that convert
        return _awaited(turns[0])
    waits = [f"{text}{names.SENT}(); {names.ARRIVED_BUT_LAST}(); " if _COPY in text else text for text in before]
    hidden = f"{turns['indent']}  const int {names.HIDDEN_THREAD} = {names.HIDDEN}((int)threadIdx.x);"
    return f"{turns['indent']}{names.SENT}();\n{head}\n{hidden}\n" + names.BARRIER.join([*waits, after])


def _copy(match: re.Match[str], others: set[str]) -> str | None:
    """Returns the copy made asynchronous; None where it stays.

    others: what the name of a pointer ends in whose values are not float32 in global memory. Half precision is copied so where it is
    stored as it was loaded, by whole words.
    """
    found = match.groupdict()
    source, target = found["wide"] or f"{found['one']} + ({found['at']})", found["to"] or f"{found['shared']} + ({found['place']})"
    types = _TYPED.findall(match[0])
    raw = found["wide"] and found["to"] and "float" not in {name for name, _ in types}
    if any(name in source for name in (_ON_CHIP if raw else others)):
        return None
    size = (2 if raw else 4) * int(types[0][1] if types else 1)
    return f"{found['indent']}{_COPY}{size}>({target}, {source}, {found.get('inside') or 'true'});\n"
