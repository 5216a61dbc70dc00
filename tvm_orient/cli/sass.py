"""explain --sass: what ptxas makes of the CUDA kernel of each angle, and how fast it could be at best; compiles, but needs no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..errors import InvalidArgument
from ..problem.device import Device
from .output import angle, size, table

if TYPE_CHECKING:
    from ..kernels.resolve import Explained
    from ..perf_model.speed_of_light import SpeedOfLight

_COUNTS = {"instructions": "instr./output", "loads": "LDS", "wavefronts": "wavefronts", "fma": "FMA"}


def read(parts: list[Explained], device: Device) -> list[list[dict[str, Any]]]:
    """Facts of each kernel of each angle: registers a thread, spills, bytes of shared memory, instructions as they stand in the code.

    bound: what `speed_of_light.SpeedOfLight` says, per output and in clocks of an SM for 32 outputs; None for the generic kernel and for a GPU without figures.

    Raises:
        InvalidArgument: not a CUDA device. BuildFailed, EnvironmentProblem: as `predict.predict`.
    """
    if device.kind != "cuda":
        raise InvalidArgument(f"--sass reads CUDA kernels, got the device {device.slug}: name a GPU that need not be here, such as --arch sm_90a")
    from ..compiler.predict import predict

    facts = []
    for found in predict([(part.part, part.choice) for part in parts], device):
        bounds = found.bounds or (None,) * len(found.kernels)
        facts.append([_fact(kernel, one) for kernel, one in zip(found.kernels, bounds, strict=True)])
    return facts


def _fact(kernel: Any, one: Any) -> dict[str, Any]:
    return {
        "kernel": f"main_kernel{kernel.name.partition('_kernel')[2]}",
        "registers": kernel.registers,
        "spills": kernel.spills,
        "shared_bytes": kernel.shared,
        "instructions": kernel.instructions,
        "multiply_adds": kernel.count("FFMA", "FMUL"),
        "bound": None if one is None else _bound(one),
    }


def _bound(one: SpeedOfLight) -> dict[str, Any]:
    """Return a prediction under the names that --json has always had for it: limit and rounds are `limiter` and `exposed_waits`."""
    numbers = {name: getattr(one, name) for name in ("clocks", "occupancy", "blocks")}
    return {"limit": one.limiter, **numbers, "rounds": one.exposed_waits, **{name: getattr(one, name) for name in _COUNTS}}


def absent(parts: list[Explained], device: Device) -> str:
    """Return why some of these kernels have no prediction; empty where all have one."""
    from ..perf_model.gpu_specs import GPU_SPECS, has_gpu_spec
    from ..schedules.choices import is_generic

    if not has_gpu_spec(device.arch):
        return f"\n-: counts per output and clocks are predicted for {', '.join(GPU_SPECS)} only, and need figures that {device.arch} has none of"
    if is_generic([part.choice for part in parts]):
        return "\n-: the generic kernel learns its sizes when it is called, so nothing is counted per output"
    return ""


def shown(parts: list[Explained], facts: list[list[dict[str, Any]]]) -> Table:
    """Return one row per kernel: resources and occupancy, then counts per output."""
    numbers = ("registers", "spills", "shared", "occupancy", *_COUNTS.values())
    rows = table("angle", "kernel", *numbers, right=numbers)
    for part, kernels in zip(parts, facts, strict=True):
        for kernel in kernels:
            one = kernel["bound"]
            counts = [f"{one['occupancy']:.0%}", *(f"{one[name]:.1f}" for name in _COUNTS)] if one else ["-"] * (1 + len(_COUNTS))
            spills = Text(str(kernel["spills"]), style="red" if kernel["spills"] else "dim")
            rows.add_row(angle(part.part.taps), kernel["kernel"], str(kernel["registers"]), spills, size(kernel["shared_bytes"]), *counts)
    return rows


def predicted(parts: list[Explained], facts: list[list[dict[str, Any]]]) -> Table | None:
    """Return one row per kernel: the resource that needs longest, then clocks of an SM for 32 outputs by resource; None where nothing is predicted."""
    resources = list(next((kernel["bound"]["clocks"] for kernels in facts for kernel in kernels if kernel["bound"]), {}))
    rows = table("angle", "kernel", "bound by", *resources, right=tuple(resources))
    for part, kernels in zip(parts, facts, strict=True):
        for kernel in kernels:
            if one := kernel["bound"]:
                clocks = [Text(f"{one['clocks'][name]:.1f}", style="bold" if name == one["limit"] else "dim") for name in resources]
                rows.add_row(angle(part.part.taps), kernel["kernel"], one["limit"], *clocks)
    return rows if resources else None
