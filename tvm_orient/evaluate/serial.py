"""The serial form of a CUDA schedule: the same loops and buffers, run on the CPU.

Thread bindings become loops and scopes become plain memory, so numerics, indices, predicates and staged regions are those of
the kernel. It cannot see barriers, races or launch extents.
"""

from __future__ import annotations

import re
from typing import Any

from ..toolchain.tvm import load_tvm


def serial_form(module: Any) -> Any:
    """A scheduled CUDA module as an LLVM function of the same parameters; unrolled loops stay loops, which compiles faster."""
    tvm = load_tvm()
    text = re.sub(r'T\.thread_binding\(([^,]+), thread="[a-zA-Z.]+"\)', r"T.serial(\1)", module.script())
    text = re.sub(r'scope="(shared|local|shared\.dyn)"', 'scope="global"', text).replace("T.unroll(", "T.serial(")
    return tvm.compile(tvm.script.from_source(text), target="llvm").mod["main"]
