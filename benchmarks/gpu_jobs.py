"""What a GPU is wanted for, kernel by kernel, in parts, most telling first: gpu_kit.py compiles them, gpu_run.py runs them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from grids import EIGHT, spec, table

from tvm_orient import schedules
from tvm_orient.device import Device
from tvm_orient.estimate import soft_maximum
from tvm_orient.lower import Choice, default_choices, generic_choices
from tvm_orient.schedules.base import Decisions, Template
from tvm_orient.spec import OPS, ConvSpec
from tvm_orient.taps import Taps

UNIQUE = (0.0, 22.5, 45.0, 67.5, 90.0)  # degrees; the other three of the eight are mirror images
BATCH = 64  # images of a timed problem
_SMALL = 2  # images of a check
# channels, height, width, taps K, degrees, stride: the first that a template serves is its small problem
_PROBLEMS = ((16, 30, 29, 9, 22.5, 1), (16, 28, 28, 15, 45.0, 1), (64, 14, 14, 31, 67.5, 1), (64, 7, 7, 7, 22.5, 1))
# of the counters: op, side, K, degrees, dtype; where the static model and the simulations disagree most, and two that they agree on
_COUNTED = (
    ("conv", 56, 31, 0.0, "float32"), ("conv", 56, 31, 22.5, "float32"), ("conv", 56, 31, 45.0, "float32"), ("conv", 56, 31, 67.5, "float32"),
    ("conv", 28, 31, 45.0, "float32"), ("conv", 28, 7, 22.5, "float32"), ("conv", 14, 31, 22.5, "float32"), ("conv", 14, 7, 45.0, "float32"),
    ("conv", 56, 7, 22.5, "float32"), ("conv_dw", 56, 31, 45.0, "float32"), ("conv_dw", 14, 31, 67.5, "float32"), ("conv_dw", 14, 7, 0.0, "float32"),
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One kernel of a part: what it is called, its problem, its choices, and how many images it is run on."""

    part: str
    name: str
    spec: ConvSpec
    choices: tuple[Choice, ...]
    batch: int

    def line(self, entry: str, path: str = "") -> str:
        """The job as one line of JSON; entry: of the kernel in the kit."""
        chosen = [[c.template, c.version, list(c.decisions), c.step] for c in self.choices]
        return json.dumps({"part": self.part, "name": self.name, "spec": self.spec.key, "choices": chosen, "batch": self.batch, "entry": entry, "path": path})


def choices_of(request: dict[str, Any]) -> tuple[Choice, ...]:
    """The choices of a line that `Job.line` wrote."""
    return tuple(Choice(name, version, tuple((k, v) for k, v in decisions), step) for name, version, decisions, step in request["choices"])


def called(one: ConvSpec) -> str:
    """A problem in a few characters: conv 56 k31 22.5 f32."""
    head, _, degrees = one.taps.key.partition("a")
    angles = "x8" if degrees.count("_") else degrees
    short = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(one.dtype, one.dtype)
    last = " nhwc" if one.layout == "nhwc" else ""
    return f"{one.op} {one.height} {head} {angles} {short}{last}"


def smoke(device: Device) -> Iterator[Job]:
    """A small problem for each template, op and dtype; the generic kernel, a stride, a circular plane, an epilogue, eight angles in one launch."""
    for template in (template for template in schedules.TEMPLATES if template.kind == device.kind):
        for op in template.ops:
            for dtype in ("float32", "float16", "bfloat16"):
                for layout in template.layouts:
                    found = next((one for one in _small(op, dtype, layout) if template.declines(one, device) is None), None)
                    if found is not None:
                        yield Job("smoke", f"{template.name} {called(found)}", found, (Choice.of(template, template.default(found, device)),), _SMALL)
    taps = {name: Taps.oriented(np.asarray([math.radians(a) for a in angles], dtype=np.float32), 9) for name, angles in (("8", EIGHT), ("1", (67.5,)))}
    for op in OPS:
        for name, one in (
            ("generic", ConvSpec(op, 6, 13, 17, taps["8"])),
            ("eight angles", ConvSpec(op, 16, 21, 20, taps["8"])),
            ("stride 2", ConvSpec(op, 4, 21, 18, taps["1"], (2, 2))),
            ("circular", ConvSpec(op, 4, 20, 18, taps["1"], padding_mode="circular")),
        ):
            chosen = generic_choices(one, device) if name == "generic" else default_choices(one, device)
            yield Job("smoke", f"{name} {called(one)}", one, chosen, _SMALL)


def _small(op: str, dtype: str, layout: str) -> Iterator[ConvSpec]:
    for channels, height, width, taps, degrees, stride in _PROBLEMS:
        yield ConvSpec(op, channels, height, width, Taps.oriented(math.radians(degrees), taps), (stride, stride), dtype=dtype, layout=layout)


def alone(device: Device, dtype: str = "float32") -> Iterator[Job]:
    """The table's cells of one angle, five angles of eight."""
    for side in (56, 14, 28):
        for taps in (31, 7):
            for op in OPS:
                for angle in UNIQUE:
                    one = spec(op, (512, side, side), taps, (angle,), dtype=dtype)
                    yield Job(f"alone-{dtype}", called(one), one, default_choices(one, device), BATCH)


def merged(device: Device, dtype: str = "float32") -> Iterator[Job]:
    """The table's cells of eight angles in one launch."""
    for one in table("cuda").specs:
        if one.dtype == dtype and one.taps.groups == len(EIGHT):
            yield Job(f"merged-{dtype}", called(one), one, default_choices(one, device), BATCH)


def counters(device: Device) -> Iterator[Job]:
    """The problems whose hardware counters are read; their kernels are those of the table."""
    for op, side, taps, angle, dtype in _COUNTED:
        one = spec(op, (512, side, side), taps, (angle,), dtype=dtype)
        yield Job("counters", called(one), one, default_choices(one, device), BATCH)


def rivals(one: ConvSpec, device: Device, most: int = 12) -> list[Choice]:
    """Choices worth a measurement for a problem of one angle: every template's own, its next best by estimate, and neighbours of the best of all."""
    found: dict[Choice, float] = {}
    best: list[tuple[float, Template, Decisions]] = []
    for template in (template for template in schedules.TEMPLATES if template.declines(one, device) is None):
        own = template.default(one, device)
        trials = [own, *(trial for trial in getattr(template, "_candidates", lambda *_: ())(one, device) if template.invalid(one, device, trial) is None)]
        scored = [(soft_maximum(estimate) if (estimate := template.estimate(one, device, trial)) else math.inf, trial) for trial in trials]
        for place, (score, trial) in enumerate([scored[0], *sorted(scored[1:], key=lambda pair: pair[0])[:4]]):
            found.setdefault(Choice.of(template, trial), score * (1 + 0.02 * place))
        best.append((scored[0][0], template, own))
    _, template, own = min(best, key=lambda entry: entry[0])
    for knob, values in template.knobs(one, device).items():
        at = values.index(own[knob])
        for value in values[max(0, at - 1) : at + 2]:
            trial = {**own, knob: value, **({"stages": 2, "turns": 2} if knob == "turns" and value > own[knob] else {})}
            if value != own[knob] and template.invalid(one, device, trial) is None:
                found.setdefault(Choice.of(template, trial), 1.15 * min(score for score, *_ in best))
    least = min(found.values())
    return [choice for choice, score in sorted(found.items(), key=lambda entry: entry[1]) if score <= 2 * least][:most]


def candidates(device: Device, dtype: str = "float32", ops: tuple[str, ...] = ("conv", "conv_dw")) -> Iterator[Job]:
    """Kernels that tuning would try, for each problem of one angle of the table."""
    for taps in (31, 7):
        for side in (56, 14, 28):
            for op in ops:
                for angle in UNIQUE:
                    one = spec(op, (512, side, side), taps, (angle,), dtype=dtype)
                    for choice in rivals(one, device):
                        yield Job(f"candidates-{dtype}", called(one), one, (choice,), BATCH)


PARTS: dict[str, Callable[[Device], Iterator[Job]]] = {
    "smoke": smoke,
    "alone-float32": alone,
    "merged-float32": merged,
    "counters": counters,
    "candidates-float32": candidates,
    "alone-float16": lambda device: alone(device, "float16"),
    "alone-bfloat16": lambda device: alone(device, "bfloat16"),
    "merged-float16": lambda device: merged(device, "float16"),
}
