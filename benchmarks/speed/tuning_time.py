"""Measure where the time of tuning one angle goes: K=31 at 22.5 degrees over 128x56x56, 32 trials, into a CSV file and a table.

    python -m benchmarks.speed.tuning_time

Nothing is resumed and nothing is kept: the logs go to a folder that is removed.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from pathlib import Path

from tvm_orient.errors import OrientError
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.tuning.result import Outcome
from tvm_orient.tuning.tune import tune

from ..report.sheets import RESULTS

RESULT = RESULTS / "tuning-time-cpu.csv"
COLUMNS = ("spec", "device", "batch", "trials", "failed", "stage", "seconds", "share")
SPEC = ConvSpec("conv", 128, 56, 56, Taps.oriented(math.radians(22.5), 31))
TRIALS = 32
BATCH = 8  # images
WORDS = {
    "start": "start: wait until no other run holds the device",
    "build": "build: import the compiler, then schedule and compile every candidate",
    "measure": "measure: start the process that measures, run candidates with cold caches, then the winner and the default in turn",
    "verify": "verify: the winner against the float64 reference",
    "search": "search: propose candidates, fit the cost model, write the journal",
}


def measured() -> tuple[Outcome, float]:
    """Returns the outcome of one fresh run, and its seconds from call to return."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        (outcome,) = tune(SPEC, cpu_device(), trials=TRIALS, batch=BATCH, directory=Path(folder))
        return outcome, time.perf_counter() - begin


def rows(outcome: Outcome, seconds: float) -> list[dict[str, str | int]]:
    """Returns one row a stage and one for the total, in seconds."""
    stages = {"start": seconds - outcome.seconds, **outcome.stages, "total": seconds}
    same = {"spec": SPEC.key, "device": cpu_device().slug, "batch": BATCH, "trials": outcome.trials, "failed": outcome.failed}
    return [{**same, "stage": stage, "seconds": f"{value:.2f}", "share": f"{value / seconds:.3f}"} for stage, value in stages.items()]


def main() -> int:
    """Measure, write the CSV file and print the table."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    try:
        outcome, seconds = measured()
    except OrientError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 1
    found = rows(outcome, seconds)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    with RESULT.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print("| stage | seconds | share |\n| --- | ---: | ---: |")
    for row in found:
        print(f"| {WORDS.get(str(row['stage']), row['stage'])} | {row['seconds']} | {float(row['share']):.0%} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
