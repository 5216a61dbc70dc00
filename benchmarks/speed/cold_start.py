"""Measure cold starts: how long a network waits, from an empty cache of kernels, until it runs as fast as it can.

    python -m benchmarks.speed.cold_start                                  (ten minutes; benchmarks/results/cold-start-cpu.csv)
    python -m benchmarks.speed.cold_start --target sm_90a                  (builds alone, no GPU is needed; cold-start-sm_90a.csv)
    python -m benchmarks.speed.cold_start --network digits                 (rows of the same file)

Each part runs in a process of its own (`benchmarks.speed.cold_network`), on caches and logs that are removed afterwards. On a CPU: a program that trains from
an empty cache; the same on generic kernels alone; warmup from an empty cache; the kernels of another process loaded; a second network whose angles are
those of the first turned by 90 degrees, where that needs nothing that was not compiled (in a small network channels of an angle may begin elsewhere
between two vectors); one layer by itself. For a GPU the kernels of the same problems are built.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tvm_orient.problem.cpus import cores
from tvm_orient.problem.device import cpu_device, device_for

from ..report import sheets
from ..report.terminal import console, say

KEY = ("network", "what")
COLUMNS = (*KEY, "seconds", "cores", "device", "date")
LONGEST = "longest step while kernels are made"
GENERIC = "step on generic kernels"
MAX_RATIO = 2.0  # the longest step while kernels are made over one on generic kernels
# seconds, on two cores, by kind of device and how what is measured begins
GOALS = {
    "cpu": {"one layer": 8.0, "all kernels, by warmup": 45.0, "all kernels loaded": 2.0, "second network": 5.0},
    "cuda": {"one layer": 25.0, "all kernels": 120.0, "second network": 5.0},
}
PART_LIMIT_S = 3600.0  # seconds that a part may take


def run(part: str, cache: Path, *options: str, **variables: str) -> dict[str, float]:
    """Returns what one part measured, in a process of its own.

    Args:
        part: as `cold_network` names it.
        cache: the folder of kernels that it begins with.
        options: further words of its command line.
        variables: environment variables that it gets besides.
    """
    cache.mkdir(mode=0o700, exist_ok=True)
    logs = cache.parent / "logs"
    places = {"TVM_ORIENT_CACHE_DIR": str(cache), "TVM_ORIENT_LOG_DIR": str(logs), "TVM_ORIENT_SHARED_CACHE": str(cache.parent / "none")}
    usual = {name: value for name, value in os.environ.items() if not name.startswith("TVM_ORIENT_")}
    command = [sys.executable, "-m", "benchmarks.speed.cold_network", part, *options]
    done = subprocess.run(command, env={**usual, **places, **variables}, capture_output=True, text=True, check=False, timeout=PART_LIMIT_S)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def on_cpu(network: str, folder: Path) -> Iterator[dict[str, float]]:
    """Yields what is measured of a network on this CPU, part by part."""
    from .cold_network import Case, needed, specs

    os.environ |= {"TVM_ORIENT_CACHE_DIR": str(folder / "own")}
    wanted, which = len(specs(Case.of(network))), ("--network", network)
    yield run("generic", folder / "generic", *which, TVM_ORIENT_BUILD=str(sys.maxsize))
    yield run("steps", folder / "steps", *which, "--kernels", str(wanted))
    yield run("pause", folder / "pause", *which, "--kernels", str(wanted))
    yield run("warm", folder / "steps", *which)
    yield run("warmup", folder / "warmup", *which)
    if needed(Case.of(network), cpu_device()) == needed(Case.of(network, turned=True), cpu_device()):
        yield run("second", folder / "warmup", *which)
    yield run("layer", folder / "layer")


def without_gpu(network: str, target: str, folder: Path) -> Iterator[dict[str, float]]:
    """Yields what building for a GPU that is not here takes, part by part."""
    from .cold_network import Case, needed, specs

    os.environ |= {"TVM_ORIENT_CACHE_DIR": str(folder / "own")}
    first, second = Case.of(network), Case.of(network, turned=True)
    again = needed(first, device_for(target)) == needed(second, device_for(target))
    for part, case in (("warmup", first), *([("second", second)] if again else [])):
        problems = folder / f"{part}.txt"
        problems.write_text("".join(f"{spec.key}\n" for spec in specs(case)))
        yield run(part, folder / "network", "--target", target, "--problems", str(problems))
    yield run("layer", folder / "layer", "--target", target)


def goal(kind: str, what: str) -> float | None:
    """Returns the seconds that something should take at most; None where there is no such goal."""
    return next((seconds for start, seconds in GOALS[kind].items() if what.startswith(start)), None)


def table(kind: str, found: dict[str, float]) -> Table:
    """Returns what was measured beside its goals."""
    shown = Table("what", "seconds", "goal, on two cores")
    for what, seconds in found.items():
        limit = goal(kind, what)
        shown.add_row(what, f"{seconds:.2f}", "" if limit is None else f"{limit:.0f}{'' if seconds <= limit else '  MISSED'}")
    if LONGEST in found and GENERIC in found:
        ratio = found[LONGEST] / found[GENERIC]
        shown.add_row("longest over generic step", f"{ratio:.2f} times", f"{MAX_RATIO:g} times{'' if ratio <= MAX_RATIO else '  MISSED'}")
    return shown


def main(
    target: Annotated[str, typer.Option(help="cpu, or an arch such as sm_90a.")] = "cpu",
    network: Annotated[str, typer.Option(help="convnext-t or digits.")] = "convnext-t",
    out: Annotated[Path | None, typer.Option(metavar="CSV", help="Where rows go, in place of those of the same network.")] = None,
) -> None:
    """Measure cold starts, write the CSV file, and print what was measured beside the goals."""
    path, kind = out or sheets.RESULTS / f"cold-start-{target}.csv", device_for(target).kind
    same = {"network": network, "cores": cores(), "date": datetime.datetime.now(datetime.UTC).date().isoformat()}
    device = cpu_device().slug if kind == "cpu" else f"{target} by {cpu_device().slug}"
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in on_cpu(network, Path(folder)) if kind == "cpu" else without_gpu(network, target, Path(folder)):
            found |= part
            rows = [{**same, "what": what, "seconds": f"{seconds:.3f}", "device": device} for what, seconds in part.items()]
            sheets.add(path, COLUMNS, rows, KEY)
            for what, seconds in part.items():
                say(f"{what}: {seconds:.2f} s")
    console.print(table(kind, found))
    say(str(path))


if __name__ == "__main__":
    typer.run(main)
