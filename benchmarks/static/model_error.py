"""Compare the static model with what a GPU did: predicted time of the untuned kernels over the measured one, from a CSV file of `speed.run`.

    python -m benchmarks.static.model_error benchmarks/results/nvidia-h200.csv          (minutes: every kernel is compiled and traced; needs no GPU)

Single angles only: what the model predicts is one angle. Warm or cold, the median of each cell's untuned kernel is taken from the cold state.
A prediction is a bound, so that a share above 1 says that the model is wrong, and one below it that something else takes time.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from rich.table import Table

from tvm_orient.bench.rows import DEFAULT, Row, read_csv
from tvm_orient.compiler.predict import predict
from tvm_orient.errors import OrientError
from tvm_orient.perf_model.gpu_specs import gpu_spec, has_gpu_spec
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.schedules import choices

from ..report import sheets
from ..report.terminal import console, say

COLUMNS = ("spec", "batch", "arch", "bound", "predicted_ms", "measured_ms", "share")
_AT_ONCE = 8  # kernels in one source


def seconds(clocks: float, spec: ConvSpec, batch: int, arch: str) -> float:
    """Time of a whole problem from clocks of an SM for 32 outputs."""
    figure = gpu_spec(arch)
    return clocks * spec.outputs * batch / 32 / figure.sms / figure.clock


def wanted(rows: list[Row]) -> list[Row]:
    """Return the untuned kernels of one angle that were timed with cold caches."""
    return [row for row in rows if row.method == DEFAULT and row.cache == "cold" and row.median_ms and len(ConvSpec.from_key(row.spec).parts()) == 1]


def compared(rows: list[Row], arch: str) -> list[dict[str, str | int]]:
    """Returns a line a row: the prediction for its spec by the choice that is the default now, beside what was measured."""
    device, lines = arch_device(arch), []
    for first in range(0, len(rows), _AT_ONCE):
        some = rows[first : first + _AT_ONCE]
        specs = [ConvSpec.from_key(row.spec) for row in some]
        found = predict([(spec, choices.default_choices(spec, device)[0]) for spec in specs], device)
        for row, spec, one in zip(some, specs, found, strict=True):
            if one.bounds and row.median_ms:
                predicted = 1e3 * seconds(one.clocks, spec, row.batch, arch)
                share = {"predicted_ms": f"{predicted:.4f}", "measured_ms": f"{row.median_ms:.4f}", "share": f"{predicted / row.median_ms:.3f}"}
                lines.append({"spec": row.spec, "batch": row.batch, "arch": arch, "bound": one.bounds[0].limiter, **share})
    return lines


def compare(path: str, arch: str = "sm_90a") -> int:
    """Compare, print, and write <file>-prediction.csv beside the file; return the exit status: 1 where there is nothing to compare."""
    try:
        rows = wanted(read_csv(Path(path)))
        if not rows or not has_gpu_spec(arch):
            say(f"nothing to compare in {path}: no untuned kernel of one angle was timed there, or {arch} has no figures")
            return 1
        lines = compared(rows, arch)
    except OrientError as problem:
        say(f"error: {problem}")
        return 1
    target = Path(path).with_name(f"{Path(path).stem}-prediction.csv")
    sheets.write(target, COLUMNS, lines)
    table = Table(*COLUMNS)
    for line in sorted(lines, key=lambda line: float(line["share"])):
        table.add_row(*(str(line[name]) for name in COLUMNS))
    console.print(table)
    shares = [float(line["share"]) for line in lines]
    say(f"{target}: {len(shares)} kernels, predicted over measured: median {statistics.median(shares):.2f}, from {min(shares):.2f} to {max(shares):.2f}")
    return 0


def main() -> int:
    """Compare the file that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", metavar="CSV", help="what benchmarks.speed.run wrote, or a GPU run")
    parser.add_argument("arch", nargs="?", default="sm_90a", help="whose figures the model uses, such as sm_80; sm_90a where none is given")
    given = parser.parse_args()
    return compare(given.file, given.arch)


if __name__ == "__main__":
    raise SystemExit(main())
