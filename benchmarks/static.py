"""What the default CUDA kernels execute and how fast they could be at best, read from their SASS: a CSV file for each arch and tables. Needs no GPU.

    python benchmarks/static.py [sm_80 sm_89 sm_90a] [--dtype float16]          (minutes: every kernel is compiled by NVRTC)

Counts are of instructions that warps execute, per output: for conv an element of y, for conv_dw a pixel of dy. Clocks are those of an SM
for 32 outputs that each resource alone would need (`tvm_orient.bound`); clocks_second is the second pass of conv_dw.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tvm_orient import lower
from tvm_orient.device import arch_device
from tvm_orient.errors import OrientError
from tvm_orient.predict import Predicted, predict
from tvm_orient.spec import ConvSpec
from tvm_orient.taps import Taps

ARCHS, CHANNELS = ("sm_80", "sm_89", "sm_90a"), 512
RESOURCES = ("dram", "l2", "memory", "issue", "fma", "integer", "latency")
COLUMNS = (
    "op", "height", "kernel_size", "angle", "registers", "spills", "shared_bytes", "occupancy", "lds_per_output", "passes_per_output", "fma_per_output",
    "instructions_per_output", "bound", *(f"clocks_{name}" for name in RESOURCES), "clocks_second", "template", "decisions",
)  # fmt: skip
OPS, KERNEL_SIZES, HEIGHTS = ("conv", "conv_dw"), (31, 7), (56, 28, 14, 7)
ANGLES = (0.0, 22.5, 45.0, 67.5, 90.0)  # the other three of eight are their mirror images

Row = dict[str, str | int]


def result(arch: str, dtype: str = "float32") -> Path:
    """Where the CSV file of an arch is written: one a dtype, whose name it has where that is not float32."""
    return Path(__file__).resolve().parent / "results" / f"static-{arch}{'' if dtype == 'float32' else f'-{dtype}'}.csv"


def measured(op: str, kernel_size: int, height: int, arch: str, dtype: str) -> list[Row]:
    """Rows of a square plane, one for each angle, for the choice that an untuned machine makes."""
    device = arch_device(arch)
    specs = [ConvSpec(op, CHANNELS, height, height, Taps.oriented(math.radians(angle), kernel_size), dtype=dtype) for angle in ANGLES]
    cases = [(spec, lower.default_choices(spec, device)[0]) for spec in specs]
    return [row(spec, angle, choice, found) for (spec, choice), angle, found in zip(cases, ANGLES, predict(cases, device), strict=True)]


def row(spec: ConvSpec, angle: float, choice: lower.Choice, found: Predicted) -> Row:
    """The row of one problem."""
    kernel, one = found.kernels[0], found.bounds[0]
    return {
        "op": spec.op, "height": spec.height, "kernel_size": spec.kernel_size, "angle": f"{angle:g}",
        "registers": kernel.registers, "spills": found.spills, "shared_bytes": kernel.shared, "occupancy": f"{one.occupancy:.2f}",
        "lds_per_output": f"{one.loads:.2f}", "passes_per_output": f"{one.wavefronts:.1f}", "fma_per_output": f"{one.fma:.1f}",
        "instructions_per_output": f"{one.instructions:.1f}", "bound": one.limit, **{f"clocks_{name}": f"{one.clocks[name]:.1f}" for name in RESOURCES},
        "clocks_second": f"{found.clocks - one.worst:.1f}", "template": choice.template,
        "decisions": " ".join(f"{name}={value}" for name, value in choice.decisions),
    }  # fmt: skip


def table(rows: Sequence[Row], op: str, kernel_size: int) -> Iterator[str]:
    """Lines of a Markdown table of one op and K; a cell is the bound in clocks and its resource, and registers."""
    yield f"\n{op}, K={kernel_size}\n\n| plane | " + " | ".join(f"{angle:g} degrees" for angle in ANGLES) + " |\n| --- |" + " ---: |" * len(ANGLES)
    for height in HEIGHTS:
        here = [row for row in rows if (row["op"], row["kernel_size"], row["height"]) == (op, kernel_size, height)]
        cells = [f"{row['clocks_' + str(row['bound'])]} {row['bound']}, {row['registers']}" for row in here]
        yield f"| {height}x{height} | " + " | ".join(cells) + " |"


def write(arch: str, dtype: str) -> list[Row]:
    """Compile everything for one arch; the CSV file grows with each plane."""
    rows: list[Row] = []
    result(arch).parent.mkdir(parents=True, exist_ok=True)
    with result(arch, dtype).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for op, kernel_size, height in itertools.product(OPS, KERNEL_SIZES, HEIGHTS):
            new = measured(op, kernel_size, height, arch, dtype)
            writer.writerows(new)
            file.flush()
            rows += new
    return rows


def main(words: Sequence[str]) -> int:
    """Write the CSV file of each arch and print its tables."""
    parser = argparse.ArgumentParser(description="Predict the default CUDA kernels from their SASS.")
    parser.add_argument("archs", nargs="*", default=ARCHS, metavar="arch")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    given = parser.parse_args(words)
    for arch in given.archs:
        try:
            rows = write(arch, given.dtype)
        except OrientError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
        print(f"\n{arch}")
        for op, kernel_size in itertools.product(OPS, KERNEL_SIZES):
            print("\n".join(table(rows, op, kernel_size)))
        print(f"\nspills: {sum(int(row['spills']) for row in rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
