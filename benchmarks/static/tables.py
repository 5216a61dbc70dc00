"""Predict the default CUDA kernels from their machine code, into a CSV file for each arch and tables. Needs no GPU.

    python -m benchmarks.static.tables [sm_80 sm_89 sm_90a] [--dtype float16]    (minutes: every kernel is compiled by NVRTC)
    python -m benchmarks.static.tables stems [sm_80 sm_89 sm_90a]                (strided stems of the networks, to static-stems-ARCH.csv)
    python -m benchmarks.static.tables layers [sm_80 sm_89 sm_90a]               (eight angles in one kernel, to static-layers-ARCH.csv)
    python -m benchmarks.static.tables stages [sm_80 sm_89 sm_90a]               (copies ahead against one tile a block, to static-stages-ARCH.csv)

`tvm_orient.compiler.prediction_rows` says what the columns count. That of layers compares with static-ARCH.csv, which must be there.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean

from tvm_orient.compiler.predict import predict
from tvm_orient.compiler.prediction_rows import COLUMNS, LAYER_COLUMNS, Row, layer_row, prediction_rows
from tvm_orient.errors import OrientError
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import choices, registry

from ..report import page_tables

ARCHS = ("sm_80", "sm_89", "sm_90a")
CHANNELS = 512
OPS = ("conv", "conv_dw")
KERNEL_SIZES = (31, 7)  # taps
HEIGHTS = (56, 28, 14, 7)  # pixels of a square plane
# stems have 64 channels and stride 2, and are tabulated in both layouts
STEMS = (31, 15)  # kernel sizes, in taps
STEM_OPS = ("conv", "conv_dx", "conv_dw")
STEM_SIZES = (224, 112)  # heights, in pixels
STAGE_COLUMNS = ("height", "kernel_size", "angle", "template", "stages", "planes", "registers", "spills", "blocks", "bound", "clocks_bound", "clocks_latency")
ANGLES = (0.0, 22.5, 45.0, 67.5, 90.0)  # the other three of eight are their mirror images


def named(arch: str, dtype: str = "float32") -> str:
    """Return what the files of an arch are called: one a dtype, whose name it has where that is not float32."""
    return arch if dtype == "float32" else f"{arch}-{dtype}"


def measured(op: str, kernel_size: int, height: int, arch: str, dtype: str, channels: int = CHANNELS, stride: int = 1, layout: str = "nchw") -> list[Row]:
    """Return the rows of a square plane, one for each angle, for the choice that an untuned machine makes."""
    taps = [Taps.oriented(math.radians(angle), kernel_size) for angle in ANGLES]
    return prediction_rows([ConvSpec(op, channels, height, height, one, (stride, stride), dtype=dtype, layout=layout) for one in taps], arch_device(arch))


def write(path: Path, columns: Sequence[str], groups: Iterable[Iterable[Row]]) -> None:
    """Write a CSV file that grows with each group of rows, as the kernels of the next one take a while."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for rows in groups:
            writer.writerows(rows)
            file.flush()


def alone(arch: str, dtype: str) -> None:
    """Predict each angle by itself, for every plane, K and op of the grid."""
    problems = itertools.product(OPS, KERNEL_SIZES, HEIGHTS)
    write(page_tables.path(named(arch, dtype)), COLUMNS, (measured(*problem, arch, dtype) for problem in problems))


def stems(arch: str) -> None:
    """Predict the stems of the networks, in both layouts."""
    problems = itertools.product(("nchw", "nhwc"), STEM_OPS, STEMS, STEM_SIZES)
    groups = ([{"layout": layout, **row} for row in measured(*problem, arch, "float32", 64, 2, layout)] for layout, *problem in problems)
    write(page_tables.path(arch, "stems"), ("layout", *COLUMNS), groups)


def layers(arch: str) -> None:
    """Predict the eight angles of a layer as one kernel, beside the mean of its angles alone, for every plane, K and op of the grid."""
    device, single = arch_device(arch), page_tables.read(arch)

    def layer(op: str, kernel_size: int, height: int) -> Row:
        spec = ConvSpec(op, CHANNELS, height, height, Taps.oriented([math.pi * i / 8 for i in range(8)], kernel_size))
        angles = [row for row in single if (row["op"], row["kernel_size"], row["height"]) == (op, str(kernel_size), str(height))]
        mirrored = angles[1:4]  # of 22.5 to 67.5 degrees: their mirror images take the same
        mean = fmean(float(row["clocks_" + row["bound"]]) + float(row["clocks_second"]) for row in [*angles, *mirrored])
        return {**layer_row(spec, device), "mean_angle": f"{mean:.1f}"}

    groups = ([layer(*problem)] for problem in itertools.product(OPS, KERNEL_SIZES, HEIGHTS))
    write(page_tables.path(arch, "layers"), (*LAYER_COLUMNS, "mean_angle"), groups)


def stages(arch: str) -> None:
    """Predict conv as it is by default and with two stages, of as many planes as the ring leaves room for."""
    device = arch_device(arch)

    def staged(height: int, kernel_size: int, angle: float) -> list[Row]:
        spec = ConvSpec("conv", CHANNELS, height, height, Taps.oriented(math.radians(angle), kernel_size))
        template = registry.find(choices.default_choices(spec, device)[0].template)
        one = template.default(spec, device).decisions()
        in_turn = {"tiles_per_block": 2, "stages": 2, "weights_shared": 1}
        ahead = [{**one, **in_turn, "channels_per_block": n} for n in (16, 8, 4, 2, 1) if n <= one["channels_per_block"]]
        trials = [one, *[trial for trial in ahead if template.invalid(spec, device, trial) is None][:1]]
        rows = []
        for trial, found in zip(trials, predict([(spec, choices.Choice.of(template, template.config(trial))) for trial in trials], device), strict=True):
            (bound,) = found.bounds
            what = (height, kernel_size, f"{angle:g}", template.name, trial["stages"], trial["channels_per_block"], found.kernels[0].registers, found.spills)
            rows.append(
                dict(zip(STAGE_COLUMNS, (*what, bound.blocks, bound.limiter, f"{bound.limiter_clocks:.1f}", f"{bound.clocks['latency']:.1f}"), strict=True))
            )
        return rows

    groups = (staged(*problem) for problem in itertools.product((56, 28, 14), KERNEL_SIZES, (22.5, 45.0)))
    write(page_tables.path(arch, "stages"), STAGE_COLUMNS, groups)


KINDS = {"stems": stems, "layers": layers, "stages": stages}


def main(words: Sequence[str]) -> int:
    """Write the CSV file of each arch and print its tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("archs", nargs="*", default=ARCHS, metavar="arch", help="or one of stems, layers and stages, then archs")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16", "bfloat16"))
    given = parser.parse_args(words)
    kind = given.archs[0] if given.archs[0] in KINDS else ""
    for arch in given.archs[bool(kind) :] or ARCHS:
        try:
            KINDS[kind](arch) if kind else alone(arch, given.dtype)
        except OrientError as problem:
            print(f"error: {problem}", file=sys.stderr)
            return 1
        rows = page_tables.read(arch if kind else named(arch, given.dtype), kind)
        print(f"\n{arch}\n")
        if kind:
            print("\n".join(page_tables.TABLES[kind](rows)))
        for op, kernel_size in () if kind else itertools.product(OPS, KERNEL_SIZES):
            print(f"{op}, K={kernel_size}\n\n" + "\n".join(page_tables.table(rows, op, str(kernel_size))) + "\n")
        print(f"\nspills: {sum(int(row['spills']) for row in rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
