"""What the default CUDA kernels compile to for sm_90a: counts read from the SASS, into a CSV file and a table. Needs no GPU.

    python benchmarks/static.py          (minutes: every kernel is compiled by NVRTC)

The counts are of instructions that stand in the code, divided by the outputs of one thread: for conv the pixels of its
register patch; for conv_dw the pixels of one patch of its first pass. A loop's body counts once.
"""

from __future__ import annotations

import csv
import itertools
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tvm_orient import lower, nvrtc, sass
from tvm_orient.device import arch_device
from tvm_orient.errors import OrientError
from tvm_orient.spec import ConvSpec
from tvm_orient.taps import Taps

ARCH, CHANNELS = "sm_90a", 512
RESULT = Path(__file__).resolve().parent / "results" / f"static-{ARCH}.csv"
COLUMNS = (
    "op", "height", "kernel_size", "angle", "registers", "spills", "shared_bytes", "lds_per_output", "fma_per_output", "instructions_per_output", "decisions",
)  # fmt: skip
OPS, KERNEL_SIZES, HEIGHTS = ("conv", "conv_dw"), (31, 7), (56, 28, 14, 7)
ANGLES = (0.0, 22.5, 45.0, 67.5, 90.0)  # the other three of eight are their mirror images

Row = dict[str, str | int]


def measured(op: str, kernel_size: int, height: int, angle: float) -> Row:
    """The row of one kernel: a square plane, one angle in degrees, the choice that an untuned machine makes."""
    spec, device = ConvSpec(op, CHANNELS, height, height, Taps.oriented(math.radians(angle), kernel_size)), arch_device(ARCH)
    choices = lower.default_choices(spec, device)
    cubin = nvrtc.compile_cubin(lower.cuda_source(lower.scheduled(spec, device, choices), device), ARCH)
    kernel = next(k for k in sass.kernels(cubin) if k.name == "main_kernel")  # the second pass of conv_dw is another
    decisions = dict(choices[0].decisions)
    outputs = decisions["patch_h"] * decisions["patch_w"]
    return {
        "op": op, "height": height, "kernel_size": kernel_size, "angle": f"{angle:g}",
        "registers": kernel.registers, "spills": kernel.spills, "shared_bytes": kernel.shared,
        "lds_per_output": f"{kernel.count('LDS') / outputs:.2f}", "fma_per_output": f"{kernel.count('FFMA', 'FMUL') / outputs:.1f}",
        "instructions_per_output": f"{kernel.instructions / outputs:.1f}", "decisions": " ".join(f"{name}={value}" for name, value in decisions.items()),
    }  # fmt: skip


def table(rows: Sequence[Row], op: str, kernel_size: int) -> Iterator[str]:
    """Lines of a Markdown table of one op and K; a cell is shared loads / multiply-adds / instructions per output, and registers."""
    yield f"\n{op}, K={kernel_size}\n\n| plane | " + " | ".join(f"{angle:g} degrees" for angle in ANGLES) + " |\n| --- |" + " ---: |" * len(ANGLES)
    for height in HEIGHTS:
        here = [row for row in rows if (row["op"], row["kernel_size"], row["height"]) == (op, kernel_size, height)]
        cells = [f"{row['lds_per_output']} / {row['fma_per_output']} / {row['instructions_per_output']}, {row['registers']}" for row in here]
        yield f"| {height}x{height} | " + " | ".join(cells) + " |"


def main() -> int:
    """Compile, write the CSV file after each kernel, and print the tables."""
    rows: list[Row] = []
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    try:
        with RESULT.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            for op, kernel_size, height, angle in itertools.product(OPS, KERNEL_SIZES, HEIGHTS, ANGLES):
                rows.append(measured(op, kernel_size, height, angle))
                writer.writerow(rows[-1])
                file.flush()
    except OrientError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    for op, kernel_size in itertools.product(OPS, KERNEL_SIZES):
        print("\n".join(table(rows, op, kernel_size)))
    print(f"\nspills: {sum(int(row['spills']) for row in rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
