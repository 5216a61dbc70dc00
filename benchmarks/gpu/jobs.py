"""List what a GPU is wanted for, kernel by kernel, in parts, most telling first: `kit` compiles them, `run` runs them."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_orient.bench.grids import EIGHT, spec
from tvm_orient.errors import Unsupported
from tvm_orient.kernels.resolve import explain
from tvm_orient.perf_model.block_cost import soft_maximum
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, OPS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.problem.taps_key import degrees_text
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import Template
from tvm_orient.schedules.choices import Choice, default_choices, generic_choices

Choices = tuple[Choice, ...]
CARDS = ("nvidia-h200", "nvidia-h100-80gb-hbm3")  # slugs of the GPUs that a kit of sm_90a may meet, and whose records it serves
_UNIQUE = (0.0, 22.5, 45.0, 67.5, 90.0)  # degrees; the other three of the eight are mirror images, of as much work
_SMALL = 2  # images of a check
_RIVALS = 12  # most candidates of a problem
# channels, height, width, taps K, degrees, stride: the first that a template serves is its small problem
_PROBLEMS = ((16, 30, 29, 9, 22.5, 1), (16, 28, 28, 15, 45.0, 1), (64, 14, 14, 31, 67.5, 1), (64, 7, 7, 7, 22.5, 1))
# op, side, K, degrees of a kernel whose counters are read; of the merged ones those that are furthest from their target
_COUNTED = (
    ("conv", 56, 31, (0.0,)), ("conv", 56, 31, (22.5,)), ("conv", 56, 31, (45.0,)), ("conv", 56, 31, (67.5,)), ("conv_dw", 56, 31, (45.0,)),
    ("conv", 28, 31, EIGHT), ("conv", 28, 31, (45.0,)), ("conv", 28, 7, (22.5,)), ("conv", 14, 31, (22.5,)), ("conv", 14, 7, (45.0,)),
    ("conv_dw", 14, 31, EIGHT), ("conv_dw", 14, 31, (67.5,)), ("conv_dw", 14, 7, (0.0,)), ("conv_dw", 28, 31, (67.5,)), ("conv", 56, 7, (22.5,)),
    ("conv", 14, 31, EIGHT), ("conv_dw", 28, 31, EIGHT), ("conv", 56, 31, EIGHT),
)  # fmt: skip
# op, side, K, degrees of a cell that the peers are timed in too
_CONTESTED = (("conv", 56, 31, EIGHT), ("conv", 14, 7, EIGHT), ("conv_dw", 56, 31, EIGHT), ("conv", 56, 31, (0.0,)), ("conv_dx", 28, 7, EIGHT))


@dataclass(frozen=True)
class Size:
    """Say how large the table's problems are."""

    channels: int
    sides: tuple[int, ...]
    taps: tuple[int, ...]
    batch: int  # images
    angles: tuple[float, ...]  # degrees of the problems of one angle


FULL = Size(512, (56, 14, 28), (31, 7), 64, _UNIQUE)
QUICK = Size(8, (14,), (7,), 2, (0.0, 45.0))


@dataclass(frozen=True)
class Job:
    """One thing to do on the GPU; its first kernel is made by choices, those of tuned are by the records of a card."""

    part: str
    do: str  # what `work` does with it
    name: str  # for people
    spec: ConvSpec
    choices: Choices  # none where nothing of ours runs
    batch: int  # images
    tuned: tuple[tuple[str, Choices], ...] = ()  # (slug of a card, choices by its records)

    @property
    def kernels(self) -> tuple[Choices, ...]:
        """Return the choices of each kernel that it needs."""
        return tuple(dict.fromkeys(chosen for chosen in (self.choices, *(choices for _, choices in self.tuned)) if chosen))

    def line(self, entry_of: Callable[[Choices], str]) -> str:
        """Return the job as one line of JSON; entry_of: the name of a kernel in the kit."""
        tuned = {slug: {"choices": _plain(chosen), "entry": entry_of(chosen)} for slug, chosen in self.tuned}
        entry = entry_of(self.choices) if self.choices else ""
        what = {"part": self.part, "do": self.do, "name": self.name, "spec": self.spec.key, "batch": self.batch}
        return json.dumps({**what, "choices": _plain(self.choices), "entry": entry, "tuned": tuned})


def job_of(request: dict[str, Any]) -> Job:
    """Return the job of a line that `Job.line` wrote."""
    tuned = tuple((slug, choices_of(chosen)) for slug, chosen in request["tuned"].items())
    return Job(request["part"], request["do"], request["name"], ConvSpec.from_key(request["spec"]), choices_of(request), request["batch"], tuned)


def choices_of(request: dict[str, Any]) -> Choices:
    """Return the choices of a line that `Job.line` wrote, or of a card in it."""
    return tuple(Choice.of_plain(choice) for choice in request["choices"])


def _plain(choices: Choices) -> list[Any]:
    return [choice.plain for choice in choices]


def called(one: ConvSpec) -> str:
    """Return a problem in a few characters: conv 56 k31 22.5 f32."""
    degrees = one.taps.degrees
    angles = "free" if not degrees else f"x{len(degrees)}" if len(degrees) > 1 else degrees_text(degrees[0])
    short = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(one.dtype, one.dtype)
    last = " nhwc" if one.layout == "nhwc" else ""
    return f"{one.op} {one.height} k{one.kernel_size} {angles} {short}{last}"


# ---- parts --------------------------------------------------------------------------------------


def smoke(device: Device, size: Size) -> Iterator[Job]:
    """Yield a small problem for each template, op and dtype; the generic kernel, a stride, a circular plane, eight angles in one launch."""
    for template in (template for template in registry.TEMPLATES if template.kind == device.kind):
        for op, dtype, layout in itertools.product(template.ops, DTYPES if size is FULL else ("float32",), template.layouts):
            found = next((one for one in _small(op, dtype, layout) if template.declines(one, device) is None), None)
            if found is not None:
                yield Job("smoke", "smoke", f"{template.name} {called(found)}", found, (Choice.of(template, template.default(found, device)),), _SMALL)
    eight, one = (_taps(degrees, 9) for degrees in (EIGHT, (67.5,)))
    for op in OPS if size is FULL else OPS[:1]:
        for name, problem in (
            ("generic", ConvSpec(op, 6, 13, 17, eight)),
            ("eight angles", ConvSpec(op, 16, 21, 20, eight)),
            ("stride 2", ConvSpec(op, 4, 21, 18, one, stride=2)),
            ("circular", ConvSpec(op, 4, 20, 18, one, padding_mode="circular")),
        ):
            chosen = generic_choices(problem, device) if name == "generic" else default_choices(problem, device)
            yield Job("smoke", "smoke", f"{name} {called(problem)}", problem, chosen, _SMALL)


def _taps(degrees: tuple[float, ...], taps: int) -> Taps:
    return Taps.oriented(np.asarray([math.radians(angle) for angle in degrees], dtype=np.float32), taps)


def _small(op: str, dtype: str, layout: str) -> Iterator[ConvSpec]:
    for channels, height, width, taps, degrees, stride in _PROBLEMS:
        yield ConvSpec(op, channels, height, width, Taps.oriented(math.radians(degrees), taps), stride=stride, dtype=dtype, layout=layout)


def floors(device: Device, size: Size) -> Iterator[Job]:
    """Yield the copy and the dot product of each plane, which move the bytes and compute nothing."""
    for side, op in itertools.product(size.sides, ("conv", "conv_dw")):
        one = spec(op, (size.channels, side, side), size.taps[-1], (0.0,))
        yield Job("floors", "floor", f"{'copy' if op == 'conv' else 'dot'} {side}", one, (), size.batch)


def alone(device: Device, size: Size, dtype: str = "float32", mirrored: bool = False) -> Iterator[Job]:
    """Yield the table's cells of one angle; mirrored: of the angles that are mirror images of others."""
    angles = tuple(angle for angle in EIGHT if angle not in _UNIQUE) if mirrored else size.angles
    for taps, side, op, angle in itertools.product(size.taps, size.sides, OPS, angles):
        yield _cell(f"{'mirrored' if mirrored else 'alone'}-{dtype}", spec(op, (size.channels, side, side), taps, (angle,), dtype=dtype), device, size)


def merged(device: Device, size: Size, dtype: str = "float32") -> Iterator[Job]:
    """Yield the table's cells of eight angles in one launch."""
    for taps, side, op in itertools.product(size.taps, size.sides, OPS):
        yield _cell(f"merged-{dtype}", spec(op, (size.channels, side, side), taps, dtype=dtype), device, size)


def apart(device: Device, size: Size) -> Iterator[Job]:
    """Yield the table's layers of eight angles, each chosen as if it were alone: what choosing them together gains, or loses."""
    for taps, side, op in itertools.product(size.taps, size.sides, OPS):
        one = spec(op, (size.channels, side, side), taps)
        chosen = tuple(Choice.of(*registry.default(part, device)) for _, _, part in one.parts())
        if chosen != default_choices(one, device):
            yield Job("apart-float32", "time", f"{called(one)} apart", one, chosen, size.batch)


def peers(device: Device, size: Size) -> Iterator[Job]:
    """Yield a few cells in which whatever PyTorch offers is timed too."""
    for op, side, taps, degrees in _CONTESTED if size is FULL else ((OPS[0], size.sides[0], size.taps[0], EIGHT),):
        yield _cell("peers", spec(op, (size.channels, side, side), taps, degrees), device, size)


def _cell(part: str, one: ConvSpec, device: Device, size: Size) -> Job:
    cards = ((card, dataclasses.replace(device, slug=card)) for card in (CARDS if device.kind == "cuda" else (device.slug,)))
    tuned = tuple((card, chosen) for card, there in cards if (chosen := _recorded(one, there)))
    return Job(part, "cell", called(one), one, default_choices(one, device), size.batch, tuned)


def _recorded(one: ConvSpec, device: Device) -> Choices:
    """Return what the records that this checkout ships choose on a device; nothing where none answers."""
    try:
        answers = explain(one, device)
    except Unsupported:  # no template serves it, and the generic kernel has no records
        return ()
    return tuple(answer.choice for answer in answers) if any(answer.record for answer in answers) else ()


def counters(device: Device, size: Size) -> Iterator[Job]:
    """Yield the problems whose hardware counters are read; their kernels are those of the table."""
    for op, side, taps, degrees in _COUNTED if size is FULL else ((op, size.sides[0], size.taps[0], (0.0,)) for op in ("conv", "conv_dw")):
        one = spec(op, (size.channels, side, side), taps, degrees)
        yield Job("counters", "counters", called(one), one, default_choices(one, device), size.batch)


def sanitizer(device: Device, size: Size, more: bool = False) -> Iterator[Job]:
    """Yield the cases of `sanitize`: one for each template and op, with and without copying ahead; more: all others."""
    from .sanitize import PROBLEMS, cases

    seen = set()
    for what, one, chosen in cases(device, False, PROBLEMS if size is FULL else ("circular", "eight angles")):
        kind = what.partition(",")[0], one.op
        if (kind in seen) == more:
            name = "sanitizer-more" if more else "sanitizer"
            yield Job(name, "sanitizer", f"{what}, {called(one)}", one, chosen, _SMALL)
        seen.add(kind)


def candidates(device: Device, size: Size) -> Iterator[Job]:
    """Yield the kernels that tuning would try, for each problem of one angle of the table; those of a problem follow each other, its default first."""
    for ops in (("conv", "conv_dw"), ("conv_dx",)):
        for taps, side, op, angle in itertools.product(size.taps, size.sides, ops, size.angles):
            one = spec(op, (size.channels, side, side), taps, (angle,))
            for choice in rivals(one, device, _RIVALS if size is FULL else 2):
                yield Job("candidates-float32", "time", called(one), one, (choice,), size.batch)


def rivals(one: ConvSpec, device: Device, most: int) -> list[Choice]:
    """Return the default of a problem of one angle; then by estimate every template's own choice, its next best, and neighbours of the best of all."""
    found: dict[Choice, float] = {}
    best: list[tuple[float, Template[Any], dict[str, int]]] = []
    for template in registry.candidates(one, device)[0]:
        own = template.default(one, device)
        trials = [own, *template.worth_estimating(one, device)]
        scored = [(soft_maximum(estimate) if (estimate := template.estimate(one, device, trial)) else math.inf, trial) for trial in trials]
        for place, (score, trial) in enumerate([scored[0], *sorted(scored[1:], key=lambda pair: pair[0])[:4]]):
            found.setdefault(Choice.of(template, trial), score * (1 + 0.02 * place))
        best.append((scored[0][0], template, own.decisions()))
    least, template, own = min(best, key=lambda entry: entry[0])
    for knob, values in template.knobs(one, device).items():
        at = values.index(own[knob])
        for value in values[max(0, at - 1) : at + 2]:
            trial = {**own, knob: value, **({"stages": 2, "tiles_per_block": 2} if knob == "tiles_per_block" and value > own[knob] else {})}
            if value != own[knob] and template.invalid(one, device, trial) is None:
                found.setdefault(Choice.of(template, template.config(trial)), 1.15 * least)
    default = Choice.of(*registry.default(one, device))
    near = [choice for choice, score in sorted(found.items(), key=lambda entry: entry[1]) if score <= 2 * min(found.values())]
    return [default, *(choice for choice in near if choice != default)][:most]


PARTS: dict[str, Callable[[Device, Size], Iterator[Job]]] = {
    "smoke": smoke,
    "floors": floors,
    "alone-float32": alone,
    "merged-float32": merged,
    "counters": counters,
    "apart-float32": apart,
    "sanitizer": sanitizer,
    "candidates-float32": candidates,
    "peers": peers,
    "alone-float16": lambda device, size: alone(device, size, "float16"),
    "merged-float16": lambda device, size: merged(device, size, "float16"),
    "alone-bfloat16": lambda device, size: alone(device, size, "bfloat16"),
    "merged-bfloat16": lambda device, size: merged(device, size, "bfloat16"),
    "mirrored-float32": lambda device, size: alone(device, size, mirrored=True),
    "sanitizer-more": lambda device, size: sanitizer(device, size, more=True),
}
