"""CUDA source whose loads at the edge of a plane are predicated: no branch, and no order between them.

As TVM prints it, a value that may lie outside the plane is loaded under an if. Where nvcc moves the address in there too it keeps the
branch, and a patch waits for one load after the other, some twenty instructions each.
"""

from __future__ import annotations

import re

_GUARDED = re.compile(
    r"(?P<indent> *)float (?P<name>condval\w*);\n *if \((?P<inside>.*)\) \{\n"
    r" *(?P=name) = (?P<from>x_ptr)\[(?P<at>.*)\];\n *\} else \{\n *(?P=name) = 0x0p\+0f[^;]*;\n *\}\n *(?P<to>stage_local_ptr\[.*\]) = (?P=name);\n"
)


def predicated(source: str) -> str:
    """The source with every load of float32 from an image into a staged register predicated, but those of weight gradients.

    There nvcc would hoist the addresses of a whole patch beside its sums, and spill. The source must be for sm_80 or later.
    """
    if "dy_ptr" in source:
        return source
    return _GUARDED.sub(r"\g<indent>\g<to> = tvm_orient_load<float>(\g<from> + (\g<at>), \g<inside>);\n", source)
