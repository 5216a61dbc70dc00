"""CUDA source whose loads at the edge of a plane are predicated: no branch, and no order between them.

As TVM prints it, a value that may lie outside the plane is loaded under an if. Where nvcc moves the address in there too it keeps the
branch, and a patch waits for one load after the other, some twenty instructions each.
"""

from __future__ import annotations

import re

_HELPER = """
#if defined(__CUDACC__)
__device__ __forceinline__ float tvm_orient_load(const float* from, bool inside) {
  float value = 0.0f;
  asm("{\\n.reg .pred inside;\\nsetp.ne.s32 inside, %2, 0;\\n@inside ld.global.nc.f32 %0, [%1];\\n}" : "+f"(value) : "l"(from), "r"((int)inside));
  return value;
}
#endif
"""
_GUARDED = re.compile(
    r"(?P<indent> *)float (?P<name>condval\w*);\n *if \((?P<inside>.*)\) \{\n"
    r" *(?P=name) = (?P<from>x_ptr)\[(?P<at>.*)\];\n *\} else \{\n *(?P=name) = 0x0p\+0f[^;]*;\n *\}\n *(?P<to>stage_local_ptr\[.*\]) = (?P=name);\n"
)


def predicated(source: str) -> str:
    """The source with every load of float32 from an image into a staged register predicated, but those of weight gradients.

    There nvcc would hoist the addresses of a whole patch beside its sums, and spill. The source must be for sm_80 or later.
    """
    if "dy_ptr" not in source:
        source = _GUARDED.sub(r"\g<indent>\g<to> = tvm_orient_load(\g<from> + (\g<at>), \g<inside>);\n", source)
    head, mark, rest = source.partition('extern "C"')
    return head + _HELPER + mark + rest  # in every source: several are compiled as one
