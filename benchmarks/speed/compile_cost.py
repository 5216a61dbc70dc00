"""Measure the CPU seconds that compiling a kernel takes, by its distinct offsets: what `tvm_orient.kernels.compile_cost` is fitted to.

    python -m benchmarks.speed.compile_cost [--target sm_90a]

Prints a line a kernel: op, dtype, layout, K, angles, distinct offsets, CPU seconds, what was foreseen. Kernels are compiled one after the other in this
process, which takes ten minutes; a busy machine changes CPU seconds by a third or so. For CUDA a kernel is compiled to a cubin, which no GPU is needed for.
"""

from __future__ import annotations

import itertools
import math
import resource
import tempfile
from pathlib import Path
from typing import Annotated

import torch  # noqa: F401  (before tvm: it brings libcudart)
import typer

from tvm_orient.compiler.library import cuda_source
from tvm_orient.compiler.lower import scheduled
from tvm_orient.kernels import compile_cost
from tvm_orient.kernels.compile_process import make
from tvm_orient.problem.device import Device, device_for
from tvm_orient.problem.spec import OPS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules.choices import default_choices
from tvm_orient.toolchain import nvrtc

_CASES = [(7, 1), (7, 8), (15, 4), (15, 16), (31, 1), (31, 8), (31, 16), (63, 4)]  # (K, angles)
_FORMS = [("float32", "nchw"), ("float32", "nhwc"), ("bfloat16", "nchw")]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of those that it waited for, such as the linker."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def compiled(spec: ConvSpec, device: Device, folder: Path) -> None:
    """Compile what a call of the problem would wait for."""
    choices = default_choices(spec, device)
    if device.kind == "cpu":
        make(spec, device, choices, folder)
    else:
        nvrtc.compile_cubin(cuda_source(scheduled(spec, device, choices), device), device.arch)


def main(target: Annotated[str, typer.Option(help="cpu, cuda or an arch")] = "cpu", plane: Annotated[int, typer.Option(help="height and width")] = 28) -> None:
    """Print the CPU seconds that compiling each kernel takes, beside what was foreseen."""
    device, channels = device_for(target), 64
    for first, (op, (dtype, layout), (size, count)) in enumerate(itertools.product(OPS, _FORMS, _CASES)):
        spec = ConvSpec(op, channels, plane, plane, Taps.oriented([math.pi * (i + 0.3) / count for i in range(count)], size), dtype=dtype, layout=layout)
        with tempfile.TemporaryDirectory() as folder:
            if not first:
                compiled(spec, device, Path(folder))  # imports TVM, and compiles the launcher
            start = cpu_seconds()
            compiled(spec, device, Path(folder))
            took = cpu_seconds() - start
        what = f"{op:8}{dtype:9}{layout:5} K={size:<3} angles={count:<3} offsets={compile_cost.offsets(spec):<5}"
        print(f"{what} {took:6.2f} s, foreseen {compile_cost.seconds(spec, device):6.2f} s", flush=True)


if __name__ == "__main__":
    typer.run(main)
