"""Reads staged half precision in CUDA source four values at a time: of neighbours in one thread each word is loaded once.

As TVM prints it, each value is a load of 16 bits, and nvcc joins none of them. Templates that stage images as they lie in memory
(`StageConfig.smem_native_dtype`) see to it that every thread's patch begins at a multiple of four values. A place in the stage is then such a
multiple and a constant, so that a value is a part, known at compile time, of eight aligned bytes.
"""

from __future__ import annotations

import re

from .. import names
from .rewritten import Rewritten

_HELPER = """
template <int PART> __device__ __forceinline__ float tvm_orient_value(const {type}* four);
#if defined(__CUDACC__)
template <int PART> __device__ __forceinline__ float tvm_orient_value(const {type}* four) {{
  const unsigned long long bits = *(const unsigned long long*)four;
  const unsigned two = PART & 2 ? bits >> 32 : bits;
  return {value};
}}
#endif
"""
_VALUE = {
    "half": "PART & 1 ? __high2float(*(const half2*)&two) : __low2float(*(const half2*)&two)",
    "nv_bfloat16": "__uint_as_float(PART & 1 ? two & 0xffff0000u : two << 16)",
}
_STAGES = re.compile(rf"__shared__ alignas\(\d+\) (half|nv_bfloat16) (\w*{names.STAGE_SHARED}\w*{names.POINTER})\[")
_PLACES = re.compile(rf"int ({names.COMMON_VALUE}\d+) = (.*);")
_SUM = re.compile(r"\((.*) \+ (\d+)\)")
_GROUP = 4  # values of half precision in what is loaded at once


def by_words(source: str) -> Rewritten:
    """Returns the source with every value of a staged image of half precision that is converted read as a part of an aligned group of four."""
    stages = {name: kind for kind, name in _STAGES.findall(source)}
    if not stages:
        return Rewritten(source, 0)
    places, parts, at = dict(_PLACES.findall(source)), [], 0
    reads = list(re.finditer(rf"\(\(float\)({'|'.join(stages)})\[", source))
    for read in reads:
        end = source.index("])", read.end())
        place = source[read.end() : end]
        place = places.get(place, place)
        found = _SUM.fullmatch(place)
        base, shift = (found[1], int(found[2])) if found else (place, 0)
        parts += [source[at : read.start()], f"{names.VALUE}<{shift % _GROUP}>({read[1]} + ({base} + {shift - shift % _GROUP}))"]
        at = end + 2
    head, mark, rest = "".join([*parts, source[at:]]).partition(names.KERNEL_MARK)
    helpers = (_HELPER.format(type=kind, value=_VALUE[kind]) for kind in sorted(set(stages.values())))
    return Rewritten(head + "".join(helpers) + mark + rest, len(reads))
