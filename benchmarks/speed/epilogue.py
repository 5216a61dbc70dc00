"""Measure what it saves to have bias and activation in the kernel: against the same kernel and a pass of torch's, plain and compiled, on the CPU here.

python -m benchmarks.speed.epilogue          (a minute on a quiet machine; writes benchmarks/results/epilogue-cpu.csv)
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.table import Table

from tvm_orient import ops
from tvm_orient.bench import grids
from tvm_orient.evaluate import reference, tolerance
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import serving

from ..report.sheets import RESULTS
from ..report.terminal import console, say

ROUNDS = 30  # timed calls of each
BATCH = 8  # images
RESULT = RESULTS / "epilogue-cpu.csv"
COLUMNS = ("layout", "channels", "height", "kernel_size", "activation", "fused_ms", "separate_ms", "compiled_ms")


def milliseconds(calls: dict[str, Callable[[], torch.Tensor]]) -> dict[str, float]:
    """Returns the median time of a call; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def measured(plain: ConvSpec, activation: str) -> dict[str, str | int]:
    """Returns the row of one problem, its three results checked first."""
    spec = dataclasses.replace(plain, bias=True, activation=activation)
    for one in (plain, spec):
        serving.kernel(one, cpu_device())
    torch.manual_seed(0)
    form = torch.channels_last if plain.layout == "nhwc" else torch.contiguous_format
    x = torch.randn(BATCH, spec.channels, spec.height, spec.width).contiguous(memory_format=form)
    w, b, options = torch.randn(spec.channels, spec.kernel_size), torch.randn(spec.channels), (spec.taps.key, spec.stride, "zeros")

    def separate() -> torch.Tensor:
        y = ops.conv(x, w, *options) + b.view(-1, 1, 1)
        return y if activation == "none" else getattr(F, activation)(y)

    calls = {
        "fused_ms": lambda: ops.conv_epilogue(x, w, b, activation, *options),
        "separate_ms": separate,
        "compiled_ms": torch.compile(separate, fullgraph=True),
    }
    expected, bound = reference.run(spec, x, w, b), tolerance.tolerance(spec, BATCH, x, w, b)
    for name, call in calls.items():
        error = float((call().double() - expected).abs().max())
        if not error <= 2 * bound:  # two roundings more where the epilogue is a pass of its own
            raise SystemExit(f"{spec}: {name} is off by {error:.3g}, at most {2 * bound:.3g}: no time for it")
    problem = {"layout": spec.layout, "channels": spec.channels, "height": spec.height, "kernel_size": spec.kernel_size, "activation": activation}
    torch.compiler.reset()
    return {**problem, **{name: f"{value:.3f}" for name, value in milliseconds(calls).items()}}


def main() -> None:
    """Measure, write the CSV file, print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    rows = []
    for layout, plane, activation in itertools.product(("nchw", "nhwc"), ((128, 56, 56), (512, 14, 14)), ("none", "relu", "silu", "gelu")):
        rows.append(measured(dataclasses.replace(grids.spec("conv", plane, 7), layout=layout), activation))
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    console.print(table)
    say(str(RESULT))


if __name__ == "__main__":
    main()
