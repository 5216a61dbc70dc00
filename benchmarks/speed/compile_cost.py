"""Measure the CPU seconds that compiling a kernel takes, by its distinct offsets: what `tvm_orient.kernels.compile_cost` is fitted to.

    python -m benchmarks.speed.compile_cost [--target sm_90a] [--dtype float32] [--layout nchw]

Prints a line a kernel: op, dtype, layout, K, angles, distinct offsets, CPU seconds, what was foreseen. Kernels are compiled one after the other in this
process, by parts as ever, which takes ten minutes; a busy machine changes CPU seconds by a third or so. No GPU is needed.
"""

from __future__ import annotations

import itertools
import math
import os
import resource
import tempfile
from pathlib import Path
from typing import Annotated

import torch  # noqa: F401  (before tvm: it brings libcudart)
import typer

from tvm_orient.kernels import compile_cost
from tvm_orient.kernels.compile_process import make
from tvm_orient.problem.device import device_for
from tvm_orient.problem.spec import OPS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules.choices import default_choices
from tvm_orient.toolchain.driverless import pretend_driver

_CASES = [(7, 1), (7, 8), (15, 4), (15, 16), (31, 1), (31, 8), (31, 16), (63, 4)]  # (K, angles)
_FORMS = [("float32", "nchw"), ("float32", "nhwc"), ("bfloat16", "nchw")]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those that it waited for, such as the linker."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main(
    target: Annotated[str, typer.Option(help="cpu, cuda or an arch")] = "cpu",
    plane: Annotated[int, typer.Option(help="height and width")] = 28,
    dtype: Annotated[str | None, typer.Option(help="only this dtype")] = None,
    layout: Annotated[str | None, typer.Option(help="only this layout")] = None,
) -> None:
    """Print the CPU seconds that compiling each kernel takes, beside what was foreseen."""
    device, channels = device_for(target), 64
    if device.kind == "cuda":
        pretend_driver()
    forms = [form for form in _FORMS if dtype in (None, form[0]) and layout in (None, form[1])]
    for first, (op, form, (size, count)) in enumerate(itertools.product(OPS, forms, _CASES)):
        taps = Taps.oriented([math.pi * (i + 0.3) / count for i in range(count)], size)
        spec = ConvSpec(op, channels, plane, plane, taps, dtype=form[0], layout=form[1])
        with tempfile.TemporaryDirectory() as folder:
            if not first:
                make(spec, device, default_choices(spec, device), Path(folder))  # imports TVM, and compiles the launcher
            start = cpu_seconds()
            make(spec, device, default_choices(spec, device), Path(folder))
            took = cpu_seconds() - start
        what = f"{op:8}{spec.dtype:9}{spec.layout:5} K={size:<3} angles={count:<3} offsets={compile_cost.offsets(spec):<5}"
        print(f"{what} {took:6.2f} s, foreseen {compile_cost.seconds(spec, device):6.2f} s", flush=True)
    os._exit(0)  # exit handlers would ask a driver that may be a stand-in, and answers nothing


if __name__ == "__main__":
    typer.run(main)
