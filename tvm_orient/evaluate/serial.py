"""The serial form of a CUDA schedule: the same loops and buffers, run on the CPU.

Thread bindings become loops and scopes become plain memory, so numerics, indices, predicates and staged regions are those of
the kernel. It cannot see barriers, races or launch extents.
"""

from __future__ import annotations

import re
from typing import Any

from ..toolchain.tvm import load_tvm


def serial_form(module: Any) -> Any:
    """Returns a scheduled CUDA module as an LLVM function of the same parameters; unrolled loops stay loops, which compiles faster."""
    tvm = load_tvm()
    text = re.sub(r'T\.thread_binding\(([^,]+), thread="[a-zA-Z.]+"\)', r"T.serial(\1)", module.script())
    text = re.sub(r'scope="(shared|local|shared\.dyn)"', 'scope="global"', text).replace("T.unroll(", "T.serial(")
    parsed = tvm.script.from_source(text)
    return tvm.compile(_without_lets(parsed) if '"bfloat16"' in text else parsed, target="llvm").mod["main"]


def _without_lets(module: Any) -> Any:
    """Returns the module with every bound value written at each use of its name.

    Where the CPU has no bfloat16, TVM's BF16ComputeLegalize passes over the value of a Let: a bfloat16 in it is read as the whole number of its bits.
    """
    from tvm import IRModule, tirx
    from tvm_ffi import structural_map

    def written_out(let: Any) -> Any:
        return structural_map(let.body, (tirx.Var, lambda name: let.value if name.same_as(let.var) else name))

    func = module["main"]
    return IRModule({"main": func.with_body(structural_map(func.body, (tirx.Let, written_out)))})
