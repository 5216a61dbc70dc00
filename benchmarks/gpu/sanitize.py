"""Run every template on small problems under compute-sanitizer: memcheck (accesses out of bounds), racecheck (hazards in shared memory).

    python -m benchmarks.gpu.sanitize                    (make gpu-sanitize)
    python -m benchmarks.gpu.sanitize --target cpu       the same problems on the CPU's templates, without the sanitizer

First every problem runs plainly and is compared with the reference, which also fills the cache of kernels; then a process of its own
repeats them under each tool. Where compute-sanitizer is not installed, that is said and the plain run decides.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import typer

from tvm_orient.bench.methods import sample
from tvm_orient.errors import OrientError, Unsupported
from tvm_orient.evaluate.machine import torch_device
from tvm_orient.evaluate.verified import Expected
from tvm_orient.problem.device import Device, device_for
from tvm_orient.problem.spec import LAYOUTS, OPS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import serving
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, generic_choices

from ..report.terminal import say
from . import sanitizer

ROOT = Path(__file__).resolve().parents[2]
_LINES = {"eight": [math.pi * i / 8 for i in range(8)], "diagonal": [math.pi / 4], "upright": [math.pi / 2], "flat": [0.0]}
# name: channels, height, width, taps, K, stride, padding, dtype; planes that no tile divides, halos wider than the plane, every dtype
PROBLEMS = {
    "eight angles": (16, 15, 14, "eight", 7, 1, "zeros", "float32"),
    "long": (4, 29, 30, "diagonal", 31, 1, "zeros", "float32"),
    "longer than the plane": (3, 7, 7, "upright", 31, 1, "zeros", "float32"),
    "stride": (4, 21, 18, "upright", 15, 2, "zeros", "float32"),
    "circular": (3, 10, 9, "flat", 7, 1, "circular", "float32"),
    "bfloat16": (8, 14, 14, "eight", 7, 1, "zeros", "bfloat16"),
    "float16": (2, 28, 28, "diagonal", 31, 1, "zeros", "float16"),
}  # fmt: skip
_AHEAD = {"tiles_per_block": 2, "stages": 2, "channels_per_block": 1}  # the copies of one tile while another is computed: where a race would be
Case = tuple[str, ConvSpec, tuple[Choice, ...]]


def cases(device: Device, deep: bool, only: Collection[str] = PROBLEMS.keys()) -> Iterator[Case]:
    """Yields (what, spec, choices) of every template of the device on every problem that it takes; deep: also each knob at each of its values."""
    for op, layout in itertools.product(OPS, LAYOUTS):
        for name in only:
            channels, height, width, lines, taps, stride, padding, dtype = PROBLEMS[name]
            spec = ConvSpec(op, channels, height, width, Taps.oriented(_LINES[lines], taps), stride=stride, padding_mode=padding, dtype=dtype, layout=layout)
            parts = [part for _, _, part in spec.parts()]
            for template in (template for template in registry.TEMPLATES if template.kind == device.kind):
                if any(template.declines(part, device) for part in parts):
                    continue
                yield f"{template.name}, {name}", spec, tuple(Choice.of(template, template.default(part, device)) for part in parts)
                ahead = [{**template.default(part, device).decisions(), **_AHEAD} for part in parts]
                if all(template.invalid(part, device, decisions) is None for part, decisions in zip(parts, ahead, strict=True)):
                    yield f"{template.name} copying ahead, {name}", spec, tuple(Choice.of(template, template.config(decisions)) for decisions in ahead)
                if not deep or len(parts) > 1:
                    continue
                default = template.default(spec, device).decisions()
                for knob, values in template.knobs(spec, device).items():
                    for value in values:
                        decisions = {**default, knob: value}
                        if value != default[knob] and template.invalid(spec, device, decisions) is None:
                            yield f"{template.name} {knob}={value}, {name}", spec, (Choice.of(template, template.config(decisions)),)
            if layout == "nchw":  # it knows no other
                yield f"generic, {name}", spec, generic_choices(spec, device)


def run(case: Case, device: Device, check: bool) -> str | None:
    """Runs one case at N=2; why its result is not the reference's, or None."""
    _, spec, choices = case
    operands = sample(spec, 2, torch_device(device))
    try:
        out = serving.load(spec, device, choices)(*operands)
    except Unsupported:  # float64 alone, say: not every kernel serves every problem
        return None
    if not check:
        return None
    return Expected(spec, *operands).verdict(out).wrong or None


def plainly(device: Device, deep: bool, only: Collection[str], check: bool = True) -> int:
    """Runs every case; the number of those that are wrong."""
    wrong = count = 0
    for case in cases(device, deep, only):
        count += 1
        try:
            reason = run(case, device, check)
        except OrientError as problem:
            reason = f"failed: {problem}"
        if reason is not None:
            wrong += 1
            say(f"wrong: {case[1].op}, {case[0]}: {reason}")
    say(f"cases: {count} on {device.slug}, {wrong} wrong")
    return wrong


def under(program: str, tool: str, device: Device, deep: bool, only: Collection[str], folder: Path, seconds: float) -> tuple[bool | None, str]:
    """Returns (clean, what the tool came to) of all cases under one tool; None where it could not run."""
    cases_of = [*(["--deep"] if deep else []), *(f"--only={name}" for name in only)]
    command = [sys.executable, "-P", "-m", "benchmarks.gpu.sanitize", "--target", device.kind, "--inside", *cases_of]
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(places)}
    return sanitizer.under(program, tool, command, folder / f"sanitizer-{tool}.log", seconds, given)


def main(
    target: Annotated[str, typer.Option(help="cuda, or cpu for its own templates.")] = "cuda",
    deep: Annotated[bool, typer.Option("--deep", help="Every knob of every template at every value too.")] = False,
    only: Annotated[list[str] | None, typer.Option(metavar="PROBLEM", help=f"Only this problem; may be given again. {', '.join(PROBLEMS)}.")] = None,
    tools: Annotated[str, typer.Option(help="Which of the sanitizer's tools.")] = ",".join(sanitizer.TOOLS),
    named: Annotated[Path | None, typer.Option("--sanitizer", help="The program, instead of the one on PATH or in CUDA's folders.")] = None,
    seconds: Annotated[float, typer.Option(help="Most for one tool.")] = 600.0,
    logs: Annotated[Path, typer.Option(metavar="DIR", help="Where the tools' output goes.")] = Path(),
    inside: Annotated[bool, typer.Option("--inside", hidden=True)] = False,
) -> None:
    """Run every template on small problems, plainly and under compute-sanitizer; exit with 1 where one is wrong or a tool finds something."""
    if unknown := set(only or ()) - set(PROBLEMS):
        raise typer.BadParameter(f"only must be among {', '.join(PROBLEMS)}, got {min(unknown)!r}")
    try:
        device, chosen = device_for(target), only or list(PROBLEMS)
        if inside:
            raise typer.Exit(1 if plainly(device, deep, chosen, check=False) else 0)
        bad = plainly(device, deep, chosen)
        program = sanitizer.find(named)
        if program is None or (device.kind == "cpu" and named is None):
            say("skipped: compute-sanitizer " + ("is for CUDA kernels" if device.kind == "cpu" else "is neither on PATH nor in a folder of CUDA"))
            raise typer.Exit(1 if bad else 0)
        logs.mkdir(parents=True, exist_ok=True)
        for tool in tools.split(","):
            clean, text = under(program, tool, device, deep, chosen, logs, seconds)
            say(f"{tool}: {'clean' if clean else 'skipped' if clean is None else 'FOUND'}: {text}")
            bad += clean is False
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem
    raise typer.Exit(1 if bad else 0)


if __name__ == "__main__":
    typer.run(main)
