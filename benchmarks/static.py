"""What the default CUDA kernels execute and how fast they could be at best, read from their SASS: a CSV file for each arch and tables. Needs no GPU.

    python benchmarks/static.py [sm_80 sm_89 sm_90a] [--dtype float16]    (minutes: every kernel is compiled by NVRTC)
    python benchmarks/static.py stems [sm_80 sm_89 sm_90a]                (strided stems of the networks, to static-stems-ARCH.csv)

Counts are of instructions that warps execute, per output: for conv an element of y, for conv_dw a pixel of dy. Clocks are those of an SM
for 32 outputs that each resource alone would need (`tvm_orient.bound`); clocks_second is the second pass of conv_dw.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import static_tables

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
STEMS, STEM_OPS, STEM_SIZES = (31, 15), ("conv", "conv_dx", "conv_dw"), (224, 112)  # kernel sizes, ops, heights: 64 channels, stride 2, both layouts
STEM_COLUMNS = ("layout", *COLUMNS)
ANGLES = (0.0, 22.5, 45.0, 67.5, 90.0)  # the other three of eight are their mirror images

Row = dict[str, str | int]


def result(arch: str, dtype: str = "float32", kind: str = "") -> Path:
    """Where the CSV file of an arch is written: one a dtype, whose name it has where that is not float32; kind: "stems-" or nothing."""
    return Path(__file__).resolve().parent / "results" / f"static-{kind}{arch}{'' if dtype == 'float32' else f'-{dtype}'}.csv"


def measured(op: str, kernel_size: int, height: int, arch: str, dtype: str, channels: int = CHANNELS, stride: int = 1, layout: str = "nchw") -> list[Row]:
    """Rows of a square plane, one for each angle, for the choice that an untuned machine makes."""
    device = arch_device(arch)
    taps = [Taps.oriented(math.radians(angle), kernel_size) for angle in ANGLES]
    specs = [ConvSpec(op, channels, height, height, one, (stride, stride), dtype=dtype, layout=layout) for one in taps]
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


def write(arch: str, dtype: str) -> None:
    """Compile everything for one arch; the CSV file grows with each plane."""
    result(arch).parent.mkdir(parents=True, exist_ok=True)
    with result(arch, dtype).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for op, kernel_size, height in itertools.product(OPS, KERNEL_SIZES, HEIGHTS):
            writer.writerows(measured(op, kernel_size, height, arch, dtype))
            file.flush()


def stems(arch: str) -> None:
    """Compile the stems for one arch; the CSV file grows with each problem."""
    with result(arch, kind="stems-").open("w", newline="") as file:
        writer = csv.DictWriter(file, STEM_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for layout, op, kernel_size, height in itertools.product(("nchw", "nhwc"), STEM_OPS, STEMS, STEM_SIZES):
            rows = measured(op, kernel_size, height, arch, "float32", 64, 2, layout)
            writer.writerows({"layout": layout, **row} for row in rows)
            file.flush()


def main(words: Sequence[str]) -> int:
    """Write the CSV file of each arch and print its tables."""
    parser = argparse.ArgumentParser(description="Predict the default CUDA kernels from their SASS.")
    parser.add_argument("archs", nargs="*", default=ARCHS, metavar="arch", help="or stems, then archs: the strided stems of the networks")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    given = parser.parse_args(words)
    only_stems = given.archs[:1] == ["stems"]
    for arch in (given.archs[1:] or ARCHS) if only_stems else given.archs:
        try:
            stems(arch) if only_stems else write(arch, given.dtype)
        except OrientError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
        rows = static_tables.read(result(arch, given.dtype).stem.removeprefix("static-"), stems=only_stems)
        print(f"\n{arch}\n")
        if only_stems:
            print("\n".join(static_tables.stem_table(rows)))
        for op, kernel_size in () if only_stems else itertools.product(OPS, KERNEL_SIZES):
            print(f"{op}, K={kernel_size}\n\n" + "\n".join(static_tables.table(rows, op, str(kernel_size))) + "\n")
        print(f"\nspills: {sum(int(row['spills']) for row in rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
