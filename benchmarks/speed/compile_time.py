"""Measure where the time of compiling goes, stage by stage, and which stages take more for a whole layer in one module than for its angles apart.

    python -m benchmarks.speed.compile_time                          (half an hour; writes benchmarks/results/compile-time-cpu.csv)
    python -m benchmarks.speed.compile_time --target sm_90a          (an hour or two; compile-time-sm_90a.csv; no GPU is needed)
    python -m benchmarks.speed.compile_time --op conv --plane 14 --kernel-size 7 --out few.csv

All is compiled in this process, one after the other: one angle at 22.5 and at 67.5 degrees and a layer of eight, as the product does (apart: each angle by
itself, then assembled and linked), and that layer merged to one module. A row is a stage of a problem: seconds, exclusive of other stages. Passes of TVM
have their names, the ten that take longest; `benchmarks.report.page_tables` sums them up. A row replaces that of the same problem.
"""

from __future__ import annotations

import datetime
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch  # noqa: F401  (before tvm: it brings libcudart)
import typer

from tvm_orient.bench import grids
from tvm_orient.errors import OrientError
from tvm_orient.problem.device import Device, cpu_device, device_for
from tvm_orient.problem.spec import OPS, ConvSpec
from tvm_orient.sass import cubin
from tvm_orient.schedules.choices import Choice, default_choices

from ..report import sheets
from ..report.terminal import say

CHANNELS = 512
PLANES = (14, 56)  # pixels of a square plane
KERNEL_SIZES = (7, 31)  # taps
ANGLES = ((22.5,), (67.5,), grids.EIGHT)  # degrees
NAMED = 10  # passes of TVM that have rows of their own; the rest are one row
OTHER = "other passes"
TOTAL = "total"
KEY = ("op", "height", "kernel_size", "angles", "how", "stage")
COLUMNS = (*KEY, "seconds", "instructions", "channels", "device", "date")
# a small problem that is compiled first, so that nothing is loaded while it is timed
_FIRST = (8, 7, 7)

Seconds = Mapping[str, float]


def compiled(spec: ConvSpec, device: Device, how: str) -> tuple[Seconds, int]:
    """Returns the seconds of each stage that a problem's compiling takes, all of them under "total", and the number of instructions that it came to."""
    from tvm_orient.compiler.layer import compile_layer
    from tvm_orient.compiler.library import compile_library
    from tvm_orient.compiler.lower import scheduled

    from . import stopwatch

    _forget_estimates()
    with tempfile.TemporaryDirectory() as folder, stopwatch.watched(device.kind, how) as watch:
        path, start = Path(folder) / "kernel.so", time.perf_counter()
        with watch.stage(stopwatch.CHOOSE):
            choices: Sequence[Choice] = default_choices(spec, device)
        if how == "merged":
            code = next(iter(compile_library(scheduled(spec, device, choices), device, path).values()), b"")
        else:
            code = compile_layer(spec, device, choices, path).cubin
        seconds = time.perf_counter() - start
        found = sum(kernel.instructions for kernel in cubin.kernels(code)) if code else _instructions(path)
        return {**watch.seconds, TOTAL: seconds}, found


def _forget_estimates() -> None:
    """Empties the tables that schedules are chosen by, which a problem before may have filled."""
    for name, module in list(sys.modules.items()):
        if name.startswith("tvm_orient.schedules"):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _instructions(library: Path) -> int:
    """Returns the number of instructions in a library for a CPU, as objdump disassembles it."""
    text = subprocess.run(["objdump", "-d", "--no-show-raw-insn", str(library)], capture_output=True, text=True, check=True).stdout
    return sum(line.startswith(" ") and ":\t" in line for line in text.splitlines())


def rows(spec: ConvSpec, angles: Sequence[float], device: Device) -> Iterator[dict[str, Any]]:
    """Yields the rows of a problem; of a layer of several angles, compiled apart and merged."""
    from .stopwatch import PASS

    found = {how: compiled(spec, device, how) for how in (("apart", "merged") if len(angles) > 1 else ("apart",))}
    passes: dict[str, float] = {}
    for seconds, _ in found.values():
        for stage in (stage for stage in seconds if stage.startswith(PASS)):
            passes[stage] = passes.get(stage, 0.0) + seconds[stage]
    named = sorted(passes, key=lambda stage: -passes[stage])[:NAMED]
    problem = {"op": spec.op, "height": spec.height, "kernel_size": spec.kernel_size, "angles": " ".join(f"{angle:g}" for angle in angles)}
    made = {"channels": spec.channels, "device": f"{device.slug} by {cpu_device().slug}", "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    for how, (seconds, count) in found.items():
        shown = {stage: value for stage, value in seconds.items() if stage in named or not stage.startswith(PASS)}
        shown[OTHER] = sum(value for stage, value in seconds.items() if stage not in shown)
        for stage, value in sorted(shown.items(), key=lambda pair: -pair[1]):
            yield {**problem, "how": how, "stage": stage, "seconds": f"{value:.4f}", "instructions": count if stage == TOTAL else None, **made}


def main(
    target: Annotated[str, typer.Option(help="cpu, or an arch such as sm_90a")] = "cpu",
    op: Annotated[list[str] | None, typer.Option(help="only this op; may be repeated")] = None,
    plane: Annotated[list[int] | None, typer.Option(help="only this height and width; may be repeated")] = None,
    kernel_size: Annotated[list[int] | None, typer.Option(help="only this K; may be repeated")] = None,
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="where rows go, in place of those of the same problem")] = None,
) -> None:
    """Compile a grid of problems, and write the seconds of each stage."""
    try:
        device, path = device_for(target), out or sheets.RESULTS / f"compile-time-{target}.csv"
        if device.kind == "cuda":
            from tvm_orient.toolchain.driverless import pretend_driver

            pretend_driver()
        compiled(grids.spec("conv", _FIRST, 7, (0.0, 45.0)), device, "apart")
        for height, one, size, angles in itertools.product(plane or PLANES, op or OPS, kernel_size or KERNEL_SIZES, ANGLES):
            made = list(rows(grids.spec(one, (CHANNELS, height, height), size, angles), angles, device))
            sheets.add(path, COLUMNS, made, KEY)
            for row in made:
                if row["stage"] == TOTAL:
                    what = f"{one}, {height}x{height}, K={size}, {row['angles']} degrees, {row['how']}"
                    say(f"{what}: {float(row['seconds']):.2f} s, {row['instructions']} instructions")
    except OrientError as problem:
        say(f"error: {problem}")
        status = 1
    else:
        say(str(path))
        status = 0
    sys.stdout.flush()
    os._exit(status)  # exit handlers would ask a driver that may be a stand-in, and answers nothing


if __name__ == "__main__":
    typer.run(main)
