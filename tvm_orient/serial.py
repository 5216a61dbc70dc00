"""The serial form of a CUDA schedule: the same loops and buffers, run on the CPU.

Thread bindings become loops and scopes become plain memory, so numerics, indices, predicates and staged regions are those of
the kernel. It cannot see barriers, races or launch extents.
"""

from __future__ import annotations

from typing import Any

from .tvmkit import load_tvm

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm_ffi import structural_map  # noqa: E402


def serial_form(module: Any) -> Any:
    """A scheduled CUDA module as an LLVM function of the same parameters."""
    import re

    import tvm

    text = re.sub(r'T\.thread_binding\(([^,]+), thread="[a-zA-Z.]+"\)', r"T.serial(\1)", module.script())
    text = re.sub(r'scope="(shared|local|shared\.dyn)"', 'scope="global"', text)
    return tvm.compile(tvm.script.from_source(text), target="llvm").mod["main"]
