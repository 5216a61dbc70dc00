"""Run the published benchmark's protocol as it stands, and the same with its two gaps closed, into a CSV file.

    python -m benchmarks.speed.published_protocol --target cuda        (minutes: rows that the file has are kept, so that it goes on where it was cut)

As it stands: N=64, C=512, float32, no bias, one angle for all channels; a host clock around forward, then around the mean's backward,
then around both; mean of 100 rounds after 10. Two things in it are labelled here. Its angles are written in degrees and read in radians, so
the column "ran" says what was timed: no vertical line among them. And x asks for no gradient, so backward is that of the weights alone.
The other half of the rows has true angles, and x asks for its gradient.
"""

from __future__ import annotations

import csv
import importlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from tvm_orient import functional, nn
from tvm_orient.bench import grids
from tvm_orient.bench.cell import provenance
from tvm_orient.bench.peers import published
from tvm_orient.errors import OrientError
from tvm_orient.evaluate.machine import finish
from tvm_orient.problem.device import Device, device_for

from ..report.sheets import RESULTS
from ..report.terminal import say

MODULE = "dwoconv1d_specialized"  # where the published module stands, beside its kernel
# methods, by the names that the table has for them
OURS = "tvm_orient"
THEIRS = "published_specialized"
HORIZONTAL = "PyTorch (1, K)"
PUBLISHED_MS = {  # milliseconds of an RTX 3090, by (side, K): PyTorch's horizontal convolution, the published kernel at any angle
    (14, 7): (0.4, 0.3), (14, 31): (1.1, 0.8), (28, 7): (1.4, 0.9), (28, 31): (3.8, 2.6), (56, 7): (5.5, 3.2), (56, 31): (15.0, 9.9),
}  # fmt: skip
COLUMNS = (
    "protocol", "method", "side", "channels", "batch", "kernel_size", "written", "ran", "gradient_of_x", "forward_ms", "backward_ms", "both_ms",
    "both_std_ms", "rtx3090_published_ms", "device", "hardware", "threads", "torch", "tvm", "version", "date",
)  # fmt: skip
Problem = tuple[bool, int, int, float, str]  # as it stands?, side, K, angle as written, method


def problems(quick: bool) -> Iterator[Problem]:
    """Yields every row: as it stands first, the largest plane first; the horizontal convolution has no angle, so it stands once."""
    sides, sizes, angles = ((14,), (7,), grids.WRITTEN[:2]) if quick else ((56, 28, 14), (31, 7), grids.WRITTEN)
    for stands in (True, False):
        for side in sides:
            for kernel_size in sizes:
                yield stands, side, kernel_size, 0.0, HORIZONTAL
                for angle in angles if stands or quick else grids.EIGHT:
                    yield from ((stands, side, kernel_size, angle, method) for method in ((OURS, THEIRS) if published.installed() else (OURS,)))


def model(problem: Problem, channels: int) -> torch.nn.Module:
    """Returns the module of a row, on the CPU."""
    stands, _, kernel_size, angle, method = problem
    if method == HORIZONTAL:
        return torch.nn.Conv2d(channels, channels, (1, kernel_size), padding=(0, kernel_size // 2), bias=False, groups=channels)
    kind: Any = nn.DepthwiseOrientedConv1d if method == OURS else importlib.import_module(MODULE).DepthwiseOrientedConv1d
    radians = angle if stands else math.radians(angle)  # as it stands, degrees go in where radians are read
    made: torch.nn.Module = kind(channels, channels, kernel_size, groups=channels, padding=kernel_size // 2, bias=False, angle=radians)
    return made


def timed(module: torch.nn.Module, x: torch.Tensor, device: Device, rounds: int, warmup: int) -> np.ndarray:
    """Returns (rounds, 3) milliseconds by the host's clock: forward, backward of the mean, both again in one."""

    def backward(y: torch.Tensor) -> None:
        (y.mean() * 1024).backward()
        for tensor in (*module.parameters(), x):
            tensor.grad = None
        finish(device)

    found = np.zeros((rounds, 3))
    for turn in range(-warmup, rounds):
        marks = [time.perf_counter()]
        y = module(x)
        finish(device)
        marks.append(time.perf_counter())
        backward(y)
        marks.append(time.perf_counter())
        backward(module(x))
        marks.append(time.perf_counter())
        if turn >= 0:
            found[turn] = 1e3 * np.diff(marks)
    return found


def measured(problem: Problem, device: Device, channels: int, batch: int, rounds: int, warmup: int) -> dict[str, Any]:
    """Returns the row of one problem."""
    stands, side, kernel_size, angle, method = problem
    where = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side, device=where).requires_grad_(not stands)
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
        module = model(problem, channels).to(where)
        if method == OURS:
            functional.warmup(module, x)  # kernels are made in the background otherwise, while the first rounds are timed
        times = timed(module, x, device, rounds, warmup)
    forward, back, both = times.mean(0)
    paper = PUBLISHED_MS.get((side, kernel_size), ("", ""))[0 if method == HORIZONTAL else 1] if stands and method != OURS else ""
    return {
        "protocol": "as it stands" if stands else "true angles, every gradient", "method": method, "side": side, "channels": channels, "batch": batch,
        "kernel_size": kernel_size, "written": f"{angle:g}", "ran": f"{math.degrees(angle) % 360 if stands else angle:.2f}", "gradient_of_x": not stands,
        "forward_ms": f"{forward:.4f}", "backward_ms": f"{back:.4f}", "both_ms": f"{both:.4f}", "both_std_ms": f"{times[:, 2].std():.4f}",
        "rtx3090_published_ms": paper, **provenance(device),
    }  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> list[str]:
    """Returns a Markdown table: the mean over angles of both passes, and its multiple of ours."""
    text = ["| protocol | plane | K | method | angles | forward + backward ms | over ours |", "| --- | --- | ---: | --- | ---: | ---: | ---: |"]
    groups: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    for row in rows:
        methods = groups.setdefault((str(row["protocol"]), str(row["side"]), str(row["kernel_size"])), {})
        methods.setdefault(str(row["method"]), []).append(float(row["both_ms"]))
    for (protocol, side, kernel_size), methods in groups.items():
        for method, times in methods.items():
            mean = sum(times) / len(times)
            ours = methods.get(OURS)
            over = f"{mean / (sum(ours) / len(ours)):.2f}" if ours else ""
            text.append(f"| {protocol} | {side}x{side} | {kernel_size} | {method} | {len(times)} | {mean:.3f} | {over} |")
    return text


def main(
    target: Annotated[str, typer.Option(help="cuda or cpu.")] = "cuda",
    quick: Annotated[bool, typer.Option("--quick", help="Two angles on one small plane, few rounds.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="Where to write.", show_default="benchmarks/results/<device>-protocol.csv")] = None,
) -> None:
    """Run the published benchmark's protocol: measure what the file lacks, a row at a time, and print the means."""
    try:
        device = device_for(target)
        path = out or RESULTS / f"{device.slug}-protocol.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = list(csv.DictReader(path.open(newline=""))) if path.exists() else []
        done = {(row["protocol"], row["side"], row["kernel_size"], row["written"], row["method"]) for row in rows}
        channels, batch, rounds, warmup = (8, 1, 3, 1) if quick else (512, 64, 100, 10)
        for problem in problems(quick):
            words = ("as it stands" if problem[0] else "true angles, every gradient", str(problem[1]), str(problem[2]), f"{problem[3]:g}", problem[4])
            if words in done:
                continue
            rows.append(measured(problem, device, channels, batch, rounds, warmup))
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                if len(rows) == 1:
                    writer.writeheader()
                writer.writerow(rows[-1])
        for line in summary(rows):
            say(line)
    except OrientError as problem:
        say(f"error: {problem}")
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
