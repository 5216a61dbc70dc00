"""Hold the estimates that untuned choices rest on against kernels that were timed, and fit their constants to them anew.

    python -m benchmarks.static.fit benchmarks/results/nvidia-h200-trials.csv           how far the estimates are, and what their choices lose
    python -m benchmarks.static.fit --fit benchmarks/results/nvidia-h200-trials.csv     and which LOADED, ISSUED and FETCH would be nearest

A file of trials has a line for each kernel of one angle: its problem, its decisions and its time (`gpu.collect` writes it). An estimate is in clocks of
an SM for 32 outputs; to it is added what a launch takes by itself. Nothing is compiled, and no GPU is needed.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from tvm_orient.perf_model import block_cost
from tvm_orient.perf_model.gpu_specs import gpu_spec
from tvm_orient.problem.device import Device, arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.sass.bank_conflicts import WARP
from tvm_orient.schedules import registry

from ..report.terminal import say

_LAUNCH_US = 3.5  # between the events around a kernel that does nothing
_FAR = 0.4  # logarithm of measured over estimated beyond which a kernel counts no more: it meets something that the estimate does not know
_STEPS = (0.8, 0.9, 0.95, 1.05, 1.1, 1.25)  # by which a constant is moved
_CONSTANTS = ("LOADED", "ISSUED", "FETCH")


@dataclass(frozen=True)
class Trial:
    """One kernel that was timed: its problem of one angle, its choice, the images of a call, and microseconds."""

    spec: ConvSpec
    template: str
    decisions: Mapping[str, int]
    batch: int
    microseconds: float

    @property
    def problem(self) -> tuple[str, int]:
        """Return what trials are compared within."""
        return self.spec.key, self.batch


def trials(path: Path) -> list[Trial]:
    """Return the timed candidates of conv and conv_dx in a file of trials; conv_dw's second pass is not in its estimate."""
    found = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            spec = ConvSpec.from_key(row["spec"])
            if row["part"].startswith("candidates") and row["median_us"] and spec.op != "conv_dw":
                found.append(Trial(spec, row["template"], json.loads(row["decisions"]), int(row["batch"]), float(row["median_us"])))
    return found


def estimated(trial: Trial, device: Device) -> float:
    """Return the microseconds that the estimate of a trial comes to."""
    template, figure = registry.find(trial.template), gpu_spec(device.arch)
    clocks = template.estimate(trial.spec, device, template.config(trial.decisions))
    units = trial.spec.outputs * trial.batch / WARP / figure.sms
    code = block_cost.FETCH * clocks.code if isinstance(clocks, block_cost.Clocks) else 0.0
    alone = clocks.among(block_cost.ALONE) if isinstance(clocks, block_cost.Clocks) else clocks
    return _LAUNCH_US + 1e6 * (block_cost.soft_maximum(alone) * units + code) / figure.clock


def distance(every: Sequence[Trial], device: Device) -> float:
    """Return the mean of how far the estimates are, as a logarithm."""
    return float(np.mean([min(_FAR, abs(math.log(estimated(trial, device) / trial.microseconds))) for trial in every]))


def report(every: Sequence[Trial], device: Device) -> list[str]:
    """Return lines on how far the estimates are, and for each problem what the choice of the least estimate loses against the best that was timed."""
    ratios = [estimated(trial, device) / trial.microseconds for trial in every]
    low, middle, high = np.quantile(ratios, [0.1, 0.5, 0.9])
    lines = [f"{len(every)} kernels: estimated over measured {middle:.2f}, {low:.2f} to {high:.2f} in the middle eight tenths"]
    problems: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for trial, share in zip(every, ratios, strict=True):
        problems[trial.problem].append((share * trial.microseconds, trial.microseconds))
    losses = {key: min(found)[1] / min(time for _, time in found) for key, found in problems.items() if len(found) > 3}
    lines += [f"  {key}: the least estimate's takes {loss:.2f} of the best of {len(problems[key, batch])}" for (key, batch), loss in losses.items()]
    return lines


def fitted(every: Sequence[Trial], device: Device) -> dict[str, float]:
    """Return the constants that bring the estimates nearest, one moved at a time until none helps."""
    best = distance(every, device)
    improved = True
    while improved:
        improved = False
        for name, step in itertools.product(_CONSTANTS, _STEPS):
            before = getattr(block_cost, name)
            setattr(block_cost, name, before * step)
            if (found := distance(every, device)) < best - 1e-4:
                best, improved = found, True
            else:
                setattr(block_cost, name, before)
    return {name: getattr(block_cost, name) for name in _CONSTANTS}


def main(
    files: Annotated[list[Path], typer.Argument(metavar="CSV...", help="Files of trials, of one GPU.")],
    arch: Annotated[str, typer.Option(help="Whose figures the estimates use.")] = "sm_90a",
    fit: Annotated[bool, typer.Option("--fit", help="Fit the constants too, which takes minutes.")] = False,
) -> None:
    """Print how far the estimates that untuned choices rest on are from kernels that were timed."""
    every, device = [trial for path in files for trial in trials(path)], arch_device(arch)
    if not every:
        raise typer.BadParameter(f"a file of trials must have timed candidates of conv or conv_dx, got {', '.join(map(str, files))}")
    for line in report(every, device):
        say(line)
    if fit:
        say(", ".join(f"{name} {value:.3g}" for name, value in fitted(every, device).items()))
        for line in report(every, device):
            say(line)


if __name__ == "__main__":
    typer.run(main)
