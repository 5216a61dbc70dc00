"""explain --sass: what ptxas makes of the CUDA kernel of each angle; compiles, but needs no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..device import Device
from ..errors import InvalidArgument
from .output import angle, size, table

if TYPE_CHECKING:
    from ..build import Explained

_COUNTS = {"instructions": "instr.", "shared_loads": "LDS", "multiply_adds": "FMA"}


def read(part: Explained, device: Device) -> list[dict[str, Any]]:
    """Facts of each kernel of one angle: registers a thread, spills, bytes of shared memory, and instructions as they stand in the code.

    outputs: pixels of a thread's register patch, which the counts belong to; None for a kernel that has none.

    Raises:
        InvalidArgument: not a CUDA device. BuildFailed, EnvironmentProblem: as `nvrtc.compile_cubin` and `sass.kernels`.
    """
    if device.kind != "cuda":
        raise InvalidArgument(f"--sass reads CUDA kernels, got the device {device.slug}: name a GPU that need not be here, such as --arch sm_90a")
    from .. import nvrtc, sass
    from ..lower import cuda_source, scheduled

    decisions = dict(part.choice.decisions)
    patch = decisions["patch_h"] * decisions["patch_w"] if {"patch_h", "patch_w"} <= decisions.keys() else None
    cubin = nvrtc.compile_cubin(cuda_source(scheduled(part.part, device, [part.choice]), device), device.arch)
    return [
        {
            "kernel": kernel.name,
            "registers": kernel.registers,
            "spills": kernel.spills,
            "shared_bytes": kernel.shared,
            "outputs": patch if kernel.name == "main_kernel" else None,  # the second pass of conv_dw has no patch
            "instructions": kernel.instructions,
            "shared_loads": kernel.count("LDS"),
            "multiply_adds": kernel.count("FFMA", "FMUL"),
        }
        for kernel in sorted(sass.kernels(cubin), key=lambda kernel: kernel.name)
    ]


def shown(parts: list[Explained], facts: list[list[dict[str, Any]]]) -> Table:
    """One row per kernel, the counts per output where a thread owns a patch of them."""
    numbers = ("registers", "spills", "shared", "patch", *(f"{word}/output" for word in _COUNTS.values()))
    rows = table("angle", "kernel", *numbers, right=numbers)
    for part, kernels in zip(parts, facts, strict=True):
        for kernel in kernels:
            outputs = kernel["outputs"]
            counts = [f"{kernel[name] / outputs:.1f}" if outputs else "-" for name in _COUNTS]
            spills = Text(str(kernel["spills"]), style="red" if kernel["spills"] else "dim")
            patch = str(outputs or "-")
            rows.add_row(angle(part.part.taps), kernel["kernel"], str(kernel["registers"]), spills, size(kernel["shared_bytes"]), patch, *counts)
    return rows
