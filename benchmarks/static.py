"""What the default CUDA kernels execute and how fast they could be at best, read from their SASS: a CSV file for each arch and tables. Needs no GPU.

    python benchmarks/static.py [sm_80 sm_89 sm_90a] [--dtype float16]    (minutes: every kernel is compiled by NVRTC)
    python benchmarks/static.py stems [sm_80 sm_89 sm_90a]                (strided stems of the networks, to static-stems-ARCH.csv)
    python benchmarks/static.py layers [sm_80 sm_89 sm_90a]               (eight angles in one kernel, to static-layers-ARCH.csv, against static-ARCH.csv)
    python benchmarks/static.py stages [sm_80 sm_89 sm_90a]               (copies ahead against one tile a block, to static-stages-ARCH.csv)

Counts are of instructions that warps execute, per output: for conv an element of y, for conv_dw a pixel of dy. Clocks are those of an SM
for 32 outputs that each resource alone would need (`tvm_orient.perf_model.speed_of_light`); clocks_second is the second pass of conv_dw.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import page_tables

from tvm_orient.compiler.predict import Predicted, predict, predict_layer
from tvm_orient.errors import OrientError
from tvm_orient.problem.device import Device, arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import choices, registry

ARCHS, CHANNELS = ("sm_80", "sm_89", "sm_90a"), 512
RESOURCES = ("dram", "l2", "memory", "issue", "fma", "integer", "latency")
COLUMNS = (
    "op", "height", "kernel_size", "angle", "registers", "spills", "shared_bytes", "occupancy", "lds_per_output", "passes_per_output", "fma_per_output",
    "instructions_per_output", "bound", *(f"clocks_{name}" for name in RESOURCES), "clocks_second", "template", "decisions",
)  # fmt: skip
OPS, KERNEL_SIZES, HEIGHTS = ("conv", "conv_dw"), (31, 7), (56, 28, 14, 7)
STEMS, STEM_OPS, STEM_SIZES = (31, 15), ("conv", "conv_dx", "conv_dw"), (224, 112)  # kernel sizes, ops, heights: 64 channels, stride 2, both layouts
STEM_COLUMNS = ("layout", *COLUMNS)
_INSTRUCTION = 16  # bytes
LAYER_COLUMNS = (
    "op", "height", "kernel_size", "code_kb", "registers", "spills", "shared_bytes", "blocks", "bound", *(f"clocks_{name}" for name in RESOURCES),
    "clocks_second", "mean_angle",
)  # fmt: skip
STAGE_COLUMNS = ("height", "kernel_size", "angle", "template", "stages", "planes", "registers", "spills", "blocks", "bound", "clocks_bound", "clocks_latency")
ANGLES = (0.0, 22.5, 45.0, 67.5, 90.0)  # the other three of eight are their mirror images

Row = dict[str, str | int]


def named(arch: str, dtype: str = "float32") -> str:
    """What the files of an arch are called: one a dtype, whose name it has where that is not float32."""
    return arch if dtype == "float32" else f"{arch}-{dtype}"


def result(arch: str, dtype: str = "float32", kind: str = "") -> Path:
    """Where the CSV file of an arch is written; kind: one of KINDS or nothing."""
    return page_tables.path(named(arch, dtype), kind)


def measured(op: str, kernel_size: int, height: int, arch: str, dtype: str, channels: int = CHANNELS, stride: int = 1, layout: str = "nchw") -> list[Row]:
    """Rows of a square plane, one for each angle, for the choice that an untuned machine makes."""
    device = arch_device(arch)
    taps = [Taps.oriented(math.radians(angle), kernel_size) for angle in ANGLES]
    specs = [ConvSpec(op, channels, height, height, one, stride=stride, dtype=dtype, layout=layout) for one in taps]
    cases = [(spec, choices.default_choices(spec, device)[0]) for spec in specs]
    return [row(spec, angle, choice, found) for (spec, choice), angle, found in zip(cases, ANGLES, predict(cases, device), strict=True)]


def row(spec: ConvSpec, angle: float, choice: choices.Choice, found: Predicted) -> Row:
    """The row of one problem."""
    kernel, one = found.kernels[0], found.bounds[0]
    return {
        "op": spec.op, "height": spec.height, "kernel_size": spec.kernel_size, "angle": f"{angle:g}",
        "registers": kernel.registers, "spills": found.spills, "shared_bytes": kernel.shared, "occupancy": f"{one.occupancy:.2f}",
        "lds_per_output": f"{one.loads:.2f}", "passes_per_output": f"{one.wavefronts:.1f}", "fma_per_output": f"{one.fma:.1f}",
        "instructions_per_output": f"{one.instructions:.1f}", "bound": one.limiter, **{f"clocks_{name}": f"{one.clocks[name]:.1f}" for name in RESOURCES},
        "clocks_second": f"{found.clocks - one.limiter_clocks:.1f}", "template": choice.template,
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
    with result(arch, kind="stems").open("w", newline="") as file:
        writer = csv.DictWriter(file, STEM_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for layout, op, kernel_size, height in itertools.product(("nchw", "nhwc"), STEM_OPS, STEMS, STEM_SIZES):
            rows = measured(op, kernel_size, height, arch, "float32", 64, 2, layout)
            writer.writerows({"layout": layout, **row} for row in rows)
            file.flush()


def layers(arch: str) -> None:
    """Compile the eight angles of a layer as one kernel, for every plane, K and op of the grid; the CSV file grows with each."""
    device, single = arch_device(arch), page_tables.read(arch)
    with result(arch, kind="layers").open("w", newline="") as file:
        writer = csv.DictWriter(file, LAYER_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for op, kernel_size, height in itertools.product(OPS, KERNEL_SIZES, HEIGHTS):
            alone = [row for row in single if (row["op"], row["kernel_size"], row["height"]) == (op, str(kernel_size), str(height))]
            writer.writerow(layer(op, kernel_size, height, device, alone))
            file.flush()


def layer(op: str, kernel_size: int, height: int, device: Device, alone: Sequence[dict[str, str]]) -> Row:
    """The row of one layer; alone: those of its angles from 0 to 90 degrees."""
    spec = ConvSpec(op, CHANNELS, height, height, Taps.oriented([math.pi * i / 8 for i in range(8)], kernel_size))
    found = predict_layer(spec, choices.default_choices(spec, device), device)
    kernel = found[0].kernels[0]
    first, *others = ({name: fmean(one.bounds[i].clocks[name] for one in found) for name in RESOURCES} for i in range(len(found[0].bounds)))
    mean = fmean(float(row["clocks_" + row["bound"]]) + float(row["clocks_second"]) for row in [*alone, *alone[1:4]])  # mirrored ones take the same
    bound, second = max(first, key=lambda name: first[name]), sum(max(other.values()) for other in others)
    code = sum(one.instructions for one in found[0].kernels) * _INSTRUCTION // 1024
    numbers = (code, kernel.registers, found[0].spills, kernel.shared, found[0].bounds[0].blocks, bound, *(f"{first[name]:.1f}" for name in RESOURCES))
    return dict(zip(LAYER_COLUMNS, (op, height, kernel_size, *numbers, f"{second:.1f}", f"{mean:.1f}"), strict=True))


def stages(arch: str) -> None:
    """Compile conv as it is by default and with two stages, of as many planes as the ring leaves room for."""
    device = arch_device(arch)
    with result(arch, kind="stages").open("w", newline="") as file:
        writer = csv.DictWriter(file, STAGE_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for height, kernel_size, angle in itertools.product((56, 28, 14), KERNEL_SIZES, (22.5, 45.0)):
            spec = ConvSpec("conv", CHANNELS, height, height, Taps.oriented(math.radians(angle), kernel_size))
            template = registry.find(choices.default_choices(spec, device)[0].template)
            one = template.default(spec, device).decisions()
            in_turn = {"tiles_per_block": 2, "stages": 2, "weights_shared": 1}
            ahead = [{**one, **in_turn, "channels_per_block": n} for n in (16, 8, 4, 2, 1) if n <= one["channels_per_block"]]
            trials = [one, *[trial for trial in ahead if template.invalid(spec, device, trial) is None][:1]]
            for trial, found in zip(trials, predict([(spec, choices.Choice.of(template, template.config(trial))) for trial in trials], device), strict=True):
                (bound,) = found.bounds
                named = (
                    height,
                    kernel_size,
                    f"{angle:g}",
                    template.name,
                    trial["stages"],
                    trial["channels_per_block"],
                    found.kernels[0].registers,
                    found.spills,
                )
                clocks = (f"{bound.limiter_clocks:.1f}", f"{bound.clocks['latency']:.1f}")
                writer.writerow(dict(zip(STAGE_COLUMNS, (*named, bound.blocks, bound.limiter, *clocks), strict=True)))
            file.flush()


KINDS = {"stems": stems, "layers": layers, "stages": stages}


def main(words: Sequence[str]) -> int:
    """Write the CSV file of each arch and print its tables."""
    parser = argparse.ArgumentParser(description="Predict the default CUDA kernels from their SASS.")
    parser.add_argument("archs", nargs="*", default=ARCHS, metavar="arch", help="or one of stems, layers and stages, then archs")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    given = parser.parse_args(words)
    kind = given.archs[0] if given.archs[0] in KINDS else ""
    for arch in given.archs[bool(kind) :] or ARCHS:
        try:
            KINDS[kind](arch) if kind else write(arch, given.dtype)
        except OrientError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
        rows = page_tables.read(named(arch) if kind else named(arch, given.dtype), kind)
        print(f"\n{arch}\n")
        if kind:
            print("\n".join(page_tables.TABLES[kind](rows)))
        for op, kernel_size in () if kind else itertools.product(OPS, KERNEL_SIZES):
            print(f"{op}, K={kernel_size}\n\n" + "\n".join(page_tables.table(rows, op, str(kernel_size))) + "\n")
        print(f"\nspills: {sum(int(row['spills']) for row in rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
