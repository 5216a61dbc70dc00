"""Read what Nsight Compute wrote of a run's kernels, as rows of a table: one a launch, with the numbers that say what a kernel waits for."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tvm_orient.problem.device import slugify

# Nsight Compute's name of a number, and what it is divided by, for each column
_NUMBERS = {
    "time_us": ("gpu__time_duration.sum", 1e3),
    "dram_read_mb": ("dram__bytes_read.sum", 1e6),
    "dram_write_mb": ("dram__bytes_write.sum", 1e6),
    "dram_pct": ("gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed", 1),
    "issue_pct": ("smsp__issue_active.avg.pct_of_peak_sustained_active", 1),
    "lsu_pct": ("l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed", 1),
    "shared_pct": ("l1tex__data_pipe_lsu_wavefronts_mem_shared.sum.pct_of_peak_sustained_elapsed", 1),
    "instructions": ("smsp__inst_executed.sum", 1),
    "warps": ("sm__warps_active.avg.per_cycle_active", 1),
    "registers": ("launch__registers_per_thread", 1),
    "threads": ("launch__block_size", 1),
    "blocks": ("launch__grid_size", 1),
    "shared_bytes": ("launch__shared_mem_per_block_static", 1),
    "clock_ghz": ("gpc__cycles_elapsed.avg.per_second", 1e9),
}
_STALLS = (
    "long_scoreboard", "short_scoreboard", "barrier", "mio_throttle", "lg_throttle", "no_instruction", "math_pipe_throttle", "wait", "not_selected",
    "dispatch_stall", "branch_resolving", "drain", "imc_miss", "membar", "sleeping",
)  # fmt: skip
_STALL = "smsp__average_warps_issue_stalled_{}_per_issue_active.ratio"  # warps that wait for it, for each instruction issued
KEY = ("device", "part", "problem", "choices", "batch", "pass")
COLUMNS = ("device", "part", "problem", "spec", "batch", "pass", *_NUMBERS, *(f"stall_{name}" for name in _STALLS), "choices")


def rows(report: Path, profiled: Path) -> Iterator[dict[str, Any]]:
    """Yields a row for each launch in Nsight Compute's CSV file; profiled: the jobs that were launched, in order, a line of JSON each.

    The first kernel of a job is called main_kernel, and the second pass of conv_dw main_kernel_1.
    """
    jobs, number, place = [json.loads(line) for line in profiled.read_text().splitlines()], -1, 0
    for launch in _launches(report):
        first = not launch["Kernel Name"].rpartition("_")[2].isdigit()
        number, place = (number + 1, 1) if first else (number, place + 1)
        if not 0 <= number < len(jobs):
            return
        job = jobs[number]
        found: dict[str, Any] = {
            "device": slugify(launch.get("device__attribute_display_name", "")),
            "part": job["part"],
            "problem": job["name"],
            "spec": job["spec"],
            "batch": job["batch"],
            "pass": place,
            "choices": json.dumps(job["choices"], separators=(",", ":")),
        }
        found |= {name: _number(launch.get(metric, ""), unit) for name, (metric, unit) in _NUMBERS.items()}
        yield found | {f"stall_{name}": _number(launch.get(_STALL.format(name), ""), 1) for name in _STALLS}


def _launches(report: Path) -> Iterator[dict[str, str]]:
    """Yields the lines of the report after what the profiler says of itself and after the line of units; one that was cut short is left out."""
    with report.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = list(csv.reader(file))
    start = next((at for at, line in enumerate(lines) if line and line[0] == "ID"), len(lines))
    for line in lines[start + 2 :]:
        if len(line) == len(lines[start]):
            yield dict(zip(lines[start], line, strict=True))


def _number(text: str, unit: float) -> str | None:
    try:
        return f"{float(text.replace(',', '')) / unit:.6g}"
    except ValueError:  # a metric that this GPU does not have
        return None
