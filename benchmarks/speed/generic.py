"""Measure the generic kernel of a CPU against problems' own kernels, untuned, in turn on the CPU here, into a CSV file and a table.

python -m benchmarks.speed.generic          (four minutes, two of them compiling; writes benchmarks/results/generic-cpu.csv)
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Sequence

import torch
from rich.table import Table

from tvm_orient.bench import grids
from tvm_orient.evaluate import reference, timing, tolerance
from tvm_orient.evaluate.machine import keep_freed_memory, no_collector
from tvm_orient.problem.device import Device, cpu_device
from tvm_orient.problem.spec import OPS, ConvSpec
from tvm_orient.runtime import serving
from tvm_orient.schedules.choices import Choice, default_choices, generic_choices

from ..report.sheets import RESULTS, write
from ..report.terminal import console, say

BATCH = 8  # images
PLANES = ((96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7))  # the stages of ConvNeXt-T
SIZES = (7, 31)  # taps
SECONDS = 1.5  # that the timed calls of one problem take in one state
MIN_CALLS = 15  # timed calls of each kernel
RESULT = RESULTS / "generic-cpu.csv"
COLUMNS = ("device", "threads", "op", "channels", "height", "kernel_size", "state", "own_ms", "generic_ms", "share")
Call = Callable[..., torch.Tensor]


def in_turn(calls: Sequence[Call], operands: Sequence[tuple[torch.Tensor, ...]]) -> list[float]:
    """Returns the milliseconds of each call at its quickest, since others who use the cores slow calls down; calls take turns, and so do sets of operands."""
    turns, places = itertools.cycle(range(len(operands))), [torch.empty(0)] * len(operands)
    times: list[list[float]] = [[] for _ in calls]

    def timed(call: Call) -> float:
        place = next(turns)
        start = time.perf_counter()
        result = call(*operands[place])
        taken = time.perf_counter() - start
        places[place] = result  # kept, so that the next result lies elsewhere
        return 1e3 * taken

    with no_collector():
        for call in (*calls, *calls):
            timed(call)
        deadline = time.perf_counter() + SECONDS
        while len(times[0]) < MIN_CALLS or time.perf_counter() < deadline:
            for taken, call in zip(times, calls, strict=True):
                taken.append(timed(call))
    return [min(taken) for taken in times]


def checked(spec: ConvSpec, device: Device, choices: Sequence[Choice], given: Sequence[torch.Tensor]) -> Call:
    """Returns the kernel that the choices make, once its result has been held to the reference."""
    kernel = serving.load(spec, device, choices)
    error = float((kernel(*given).double() - reference.run(spec, *given)).abs().max())
    bound = tolerance.tolerance(spec, BATCH, *given)
    if not error <= bound:
        raise SystemExit(f"{spec}: {choices[0].template} is off by {error:.3g}, at most {bound:.3g}: no time for it")
    return kernel


def measured(spec: ConvSpec, device: Device) -> list[dict[str, object]]:
    """Returns the rows of one problem, cold and warm: milliseconds, and how fast the generic kernel is, of its own kernel's speed."""
    torch.manual_seed(0)
    shapes = [operand.torch_shape for operand in spec.operands(BATCH) if operand.role == "input"]
    given = tuple(torch.randn(shape) for shape in shapes)
    calls = [checked(spec, device, choices, given) for choices in (default_choices(spec, device), generic_choices(spec, device))]
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*given, calls[0](*given)))
    sets = [given, *(tuple(tensor.clone() for tensor in given) for _ in range(timing.sets_in_turn(size, device) - 1))]
    problem = {
        "device": device.slug,
        "threads": torch.get_num_threads(),
        "op": spec.op,
        "channels": spec.channels,
        "height": spec.height,
        "kernel_size": spec.kernel_size,
    }
    rows: list[dict[str, object]] = []
    for state, operands in (("cold", sets), ("warm", sets[:1])):
        own, generic = in_turn(calls, operands)
        rows.append({**problem, "state": state, "own_ms": f"{own:.4f}", "generic_ms": f"{generic:.4f}", "share": f"{own / generic:.3f}"})
    return rows


def worst(rows: Sequence[dict[str, object]]) -> Table:
    """Returns a table of the smallest share by op, K and state."""
    table = Table("op", "K", "state", "smallest share", "on", "largest share")
    for op, k, state in itertools.product(OPS, SIZES, ("cold", "warm")):
        here = [row for row in rows if (row["op"], row["kernel_size"], row["state"]) == (op, k, state)]
        if here:
            least, most = (pick(here, key=lambda row: float(str(row["share"]))) for pick in (min, max))
            table.add_row(op, str(k), state, str(least["share"]), f"{least['height']}x{least['height']}", str(most["share"]))
    return table


def main() -> None:
    """Measure, write the CSV file, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, help="threads of the kernels, instead of torch's own choice: one waits for no core that others keep busy")
    threads = parser.parse_args().threads
    if threads is not None:
        torch.set_num_threads(threads)
    keep_freed_memory()
    device, rows = cpu_device(), list[dict[str, object]]()
    for k, plane, op in itertools.product(SIZES, PLANES, OPS):
        found = measured(grids.spec(op, plane, k), device)
        rows += found
        say(f"{op} {plane} K={k}: " + ", ".join(f"{row['state']} {row['own_ms']} ms, generic {row['generic_ms']} ms, {row['share']}" for row in found))
    write(RESULT, COLUMNS, rows)
    console.print(worst(rows))
    say(str(RESULT))


if __name__ == "__main__":
    main()
