"""CUDA source whose copies into shared memory are asynchronous: every load of a block is on its way before any has arrived.

As TVM prints it, a thread loads a value, waits for it, and stores it, once for every turn of the staging loop: each turn waits for DRAM
again. cp.async goes past the registers, and writes zeros where the source lies outside the plane. Where a block copies one tile ahead
(`double_buffer`) it waits for the copies before those of its last turn.
"""

from __future__ import annotations

import re

from ..tir.double_buffer import DOUBLE_BUFFER

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
_FROM = rf"(?:{_WIDE}\((?P<wide>\w+_ptr \+ .*)\)|(?P<one>\w+_ptr)\[(?P<at>.*)\])"
_TO = rf"(?:{_WIDE}\((?P<to>\w+_shared_ptr \+ .*)\)|(?P<shared>\w+_shared_ptr)\[(?P<place>.*)\])"
_GUARDED = re.compile(
    r"(?P<indent> *)(?:float|half|nv_bfloat16)[24]? (?P<name>condval\w*);\n *if \((?P<inside>.*)\) \{\n"
    rf" *(?P=name) = {_FROM};\n *\}} else \{{\n *(?P=name) = {_ZERO};\n *\}}\n *{_TO} = (?P=name);\n"
)
_TYPED = re.compile(r"\((float|half|nv_bfloat16)([24])\*\)")
_PLAIN = re.compile(rf"(?m)^(?P<indent> *){_TO} = {_FROM};\n")
_HALF = re.compile(r"(?:half|nv_bfloat16)\* __restrict__ (\w+_ptr)")
_BARRIER, _COPY, _THREAD = "__syncthreads();", "tvm_orient_copy<", "((int)threadIdx.x)"
_TURNS = re.compile(rf"(?m)^(?P<indent> *)for \(int {DOUBLE_BUFFER}\w* = 0; .*\n(?:(?P=indent) +.*\n)+(?P=indent)\}}\n")


def asynchronous(source: str) -> str:
    """The source with every copy of whole words from global to shared memory made asynchronous, and awaited before each barrier that it needs.

    Copies of single values of other types, and those that convert, stay as they are. The source must be for sm_80 or later.
    """
    others = {"_shared_ptr", "_local_ptr", *_HALF.findall(source)}
    changed = _GUARDED.sub(lambda match: _copy(match, others), source)
    changed = _PLAIN.sub(lambda match: _copy(match, others), changed)
    if changed == source:
        return source
    parts, at = [], 0
    for turns in _TURNS.finditer(changed):
        parts += [_awaited(changed[at : turns.start()]), _but_last(turns)]
        at = turns.end()
    head, mark, rest = "".join([*parts, _awaited(changed[at:])]).partition('extern "C"')
    return head + _HELPER + mark + rest


def _awaited(text: str) -> str:
    return text.replace(_BARRIER, f"tvm_orient_arrived(); {_BARRIER}")


def _but_last(turns: re.Match[str]) -> str:
    """A loop over tiles whose turns copy the next one: a barrier after copies waits for all but those; others have nothing to wait for.

    The thread is hidden from nvcc, which else computes the addresses of all copies before the loop and keeps each in a register.
    """
    head, body = turns[0].split("\n", 1)
    *before, after = body.replace(_THREAD, "tvm_orient_thread").split(_BARRIER)
    if not any(_COPY in text for text in before):  # those that convert
        return _awaited(turns[0])
    waits = [f"{text}tvm_orient_sent(); tvm_orient_arrived_but_last(); " if _COPY in text else text for text in before]
    hidden = f"{turns['indent']}  const int tvm_orient_thread = tvm_orient_hidden((int)threadIdx.x);"
    return f"{turns['indent']}tvm_orient_sent();\n{head}\n{hidden}\n" + _BARRIER.join([*waits, after])


def _copy(match: re.Match[str], others: set[str]) -> str:
    """The copy made asynchronous; others: what the name of a pointer ends in whose values are not float32 in global memory.

    Half precision is copied so where it is stored as it was loaded, by whole words.
    """
    found = match.groupdict()
    source, target = found["wide"] or f"{found['one']} + ({found['at']})", found["to"] or f"{found['shared']} + ({found['place']})"
    types = _TYPED.findall(match[0])
    raw = found["wide"] and found["to"] and "float" not in {name for name, _ in types}
    if any(name in source for name in ({"_shared_ptr", "_local_ptr"} if raw else others)):
        return match[0]
    size = (2 if raw else 4) * int(types[0][1] if types else 1)
    return f"{found['indent']}tvm_orient_copy<{size}>({target}, {source}, {found.get('inside') or 'true'});\n"
