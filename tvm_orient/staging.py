"""CUDA source whose copies into shared memory are asynchronous: every load of a block is on its way before any has arrived.

As TVM prints it, a thread loads a value, waits for it, and stores it, once for every turn of the staging loop: each turn waits for DRAM
again. cp.async goes past the registers, and writes zeros where the source lies outside the plane.
"""

from __future__ import annotations

import re

_HELPER = """
#if defined(__CUDACC__)
template <int BYTES> __device__ __forceinline__ void tvm_orient_copy(float* to, const float* from, bool inside) {
  const unsigned place = __cvta_generic_to_shared(to);
  const int bytes = inside ? BYTES : 0;
  if (BYTES == 16) asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" :: "r"(place), "l"(from), "r"(bytes) : "memory");
  else asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" :: "r"(place), "l"(from), "n"(BYTES), "r"(bytes) : "memory");
}
__device__ __forceinline__ void tvm_orient_arrived() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif
"""
_ZERO = r"(?:make_float[24]\((?:0x0p\+0f[^,()]*,? ?)+\)|0x0p\+0f[^;]*)"
_FROM = r"(?:\*\(float[24]\*\)\((?P<wide>\w+_ptr \+ .*)\)|(?P<one>\w+_ptr)\[(?P<at>.*)\])"
_TO = r"(?:\*\(float[24]\*\)\((?P<to>\w+_shared_ptr \+ .*)\)|(?P<shared>\w+_shared_ptr)\[(?P<place>.*)\])"
_GUARDED = re.compile(
    r"(?P<indent> *)float(?P<lanes>[24]?) (?P<name>condval\w*);\n *if \((?P<inside>.*)\) \{\n"
    rf" *(?P=name) = {_FROM};\n *\}} else \{{\n *(?P=name) = {_ZERO};\n *\}}\n *{_TO} = (?P=name);\n"
)
_PLAIN = re.compile(rf"(?m)^(?P<indent> *){_TO} = {_FROM};\n")
_HALF = re.compile(r"(?:half|nv_bfloat16)\* __restrict__ (\w+_ptr)")
_BARRIER = "__syncthreads();"


def asynchronous(source: str) -> str:
    """The source with every copy of float32 from global to shared memory made asynchronous, and awaited before each barrier.

    Copies of other types, and those that convert, stay as they are. The source must be for sm_80 or later.
    """
    others = {"_shared_ptr", "_local_ptr", *_HALF.findall(source)}
    changed = _GUARDED.sub(lambda match: _copy(match, others), source)
    changed = _PLAIN.sub(lambda match: _copy(match, others), changed)
    if changed == source:
        return source
    changed = changed.replace(_BARRIER, f"tvm_orient_arrived(); {_BARRIER}")
    head, mark, rest = changed.partition('extern "C"')
    return head + _HELPER + mark + rest


def _copy(match: re.Match[str], others: set[str]) -> str:
    """The copy made asynchronous; others: what the name of a pointer ends in whose values are not float32 in global memory."""
    found = match.groupdict()
    source = found["wide"] or f"{found['one']} + ({found['at']})"
    if any(name in source for name in others):
        return match[0]
    target = found["to"] or f"{found['shared']} + ({found['place']})"
    size = 4 * int(found.get("lanes") or (re.search(r"\(float([24])\*\)", match[0]) or [0, 1])[1])
    return f"{found['indent']}tvm_orient_copy<{size}>({target}, {source}, {found.get('inside') or 'true'});\n"
