"""Predictions of untuned CUDA kernels as rows of a table: what each problem of a grid executes, and how fast it could be at best. No GPU is needed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..problem.taps_key import degrees_text
from ..schedules.choices import Choice, default_choices
from .predict import Predicted, predict, predict_layer

RESOURCES = ("dram", "l2", "memory", "issue", "fma", "integer", "latency")  # of `tvm_orient.perf_model.speed_of_light.SpeedOfLight.clocks`
COLUMNS = (
    "op", "height", "kernel_size", "angle", "registers", "spills", "shared_bytes", "occupancy", "lds_per_output", "passes_per_output", "fma_per_output",
    "instructions_per_output", "bound", *(f"clocks_{name}" for name in RESOURCES), "clocks_second", "template", "decisions",
)  # fmt: skip
LAYER_COLUMNS = (
    "op", "height", "kernel_size", "code_kb", "registers", "spills", "shared_bytes", "blocks", "bound", *(f"clocks_{name}" for name in RESOURCES),
    "clocks_second",
)  # fmt: skip
_INSTRUCTION = 16  # bytes of one

Row = dict[str, str | int]


def prediction_rows(specs: Sequence[ConvSpec], device: Device) -> list[Row]:
    """Predict specs of one angle by the choice that a machine without records makes, and return a row of COLUMNS for each.

    Counts are of instructions that warps execute, per output: for conv and conv_dx an element of the result, for conv_dw a pixel of dy.
    Clocks are those of an SM for 32 outputs that each resource alone would need; clocks_second is the second pass of conv_dw, or 0.

    Args:
        specs: of one angle each; they are compiled in one source, so a few at a time.
        device: a CUDA device, which need not be here, with figures: `tvm_orient.perf_model.gpu_specs.GPU_SPECS` names their archs.

    Raises:
        Unsupported: no template serves a spec.
        BuildFailed, EnvironmentProblem: as `tvm_orient.compiler.predict.predict`.
    """
    cases = [(spec, default_choices(spec, device)[0]) for spec in specs]
    return [_row(spec, choice, found) for (spec, choice), found in zip(cases, predict(cases, device), strict=True)]


def layer_row(spec: ConvSpec, device: Device) -> Row:
    """Predict the merged kernels of a layer of several angles, and return its row of LAYER_COLUMNS: clocks are means over the angles, by channels.

    Raises:
        Unsupported, InvalidArgument, BuildFailed, EnvironmentProblem: as `tvm_orient.compiler.predict.predict_layer`.
    """
    found = predict_layer(spec, default_choices(spec, device), device)
    kernels, angle = found[0].kernels, found[0]
    first, *others = ({name: fmean(one.bounds[i].clocks[name] for one in found) for name in RESOURCES} for i in range(len(angle.bounds)))
    return {
        "op": spec.op, "height": spec.height, "kernel_size": spec.kernel_size,
        "code_kb": sum(kernel.instructions for kernel in kernels) * _INSTRUCTION // 1024,
        "registers": kernels[0].registers, "spills": angle.spills, "shared_bytes": kernels[0].shared, "blocks": angle.bounds[0].blocks,
        "bound": max(first, key=lambda name: first[name]), **{f"clocks_{name}": f"{first[name]:.1f}" for name in RESOURCES},
        "clocks_second": f"{sum(max(other.values()) for other in others):.1f}",
    }  # fmt: skip


def _row(spec: ConvSpec, choice: Choice, found: Predicted) -> Row:
    kernel, one = found.kernels[0], found.bounds[0]
    return {
        "op": spec.op, "height": spec.height, "kernel_size": spec.kernel_size, "angle": "_".join(map(degrees_text, spec.taps.degrees)),
        "registers": kernel.registers, "spills": found.spills, "shared_bytes": kernel.shared, "occupancy": f"{one.occupancy:.2f}",
        "lds_per_output": f"{one.loads:.2f}", "passes_per_output": f"{one.wavefronts:.1f}", "fma_per_output": f"{one.fma:.1f}",
        "instructions_per_output": f"{one.instructions:.1f}", "bound": one.limiter, **{f"clocks_{name}": f"{one.clocks[name]:.1f}" for name in RESOURCES},
        "clocks_second": f"{found.clocks - one.limiter_clocks:.1f}", "template": choice.template,
        "decisions": " ".join(f"{name}={value}" for name, value in choice.decisions),
    }  # fmt: skip
