"""Which templates exist, best first, and which of them serves a problem best by estimate."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from tvm_orient.errors import InvalidArgument, Unsupported
from tvm_orient.perf_model.block_cost import ALONE, BLOCK, CODE_CACHE, FETCH, Clocks, soft_maximum
from tvm_orient.perf_model.gpu_specs import BATCH, nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.sass.bank_conflicts import WARP

from .base import Decisions, Generic, Template
from .cpu import generic as cpu_generic
from .cpu import pixels as cpu_pixels
from .cpu import rows
from .cuda import direct, lines, pixels, plane_lanes, shared_patch, strips, strips_dw, two_pass_dw, whole_plane
from .cuda import generic as cuda_generic
from .default import CLOSE

TEMPLATES: tuple[Template, ...] = (
    rows.TEMPLATE, rows.DW_TEMPLATE, cpu_pixels.TEMPLATE, cpu_pixels.DW_TEMPLATE,
    shared_patch.TEMPLATE, strips.TEMPLATE, lines.TEMPLATE, whole_plane.TEMPLATE, plane_lanes.TEMPLATE, direct.TEMPLATE,
    two_pass_dw.TEMPLATE, strips_dw.TEMPLATE, pixels.TEMPLATE, pixels.DW_TEMPLATE,
)  # fmt: skip
_Estimate = tuple[Template, tuple[tuple[str, int], ...], Mapping[str, float]]  # template, decisions, clocks by resource
_WEIGHTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)  # how much more than alone the code of an angle may count in a layer
_LONG = 2048  # multiply-adds in the code of a thread, for which NVRTC takes twenty seconds
GENERIC: dict[str, Generic] = {generic.kind: generic for generic in (cpu_generic.GENERIC, cuda_generic.GENERIC)}


def candidates(spec: ConvSpec, device: Device) -> tuple[list[Template], dict[str, str]]:
    """Templates that serve a single-group spec on a device, best first, and why the others decline."""
    serve, declined = [], {}
    for template in TEMPLATES:
        reason = template.declines(spec, device)
        if reason is None:
            serve.append(template)
        else:
            declined[template.name] = reason
    return serve, declined


def compare(
    spec: ConvSpec, device: Device, chosen: tuple[str, Decisions] | None = None
) -> tuple[list[tuple[Template, Decisions, Mapping[str, float]]], dict[str, str]]:
    """The least choice of each template that serves a single-group spec as a layer of its own, least first, with its estimate; and why others decline.

    Args:
        chosen: template and decisions that stand for that template's least, such as those taken in a layer of several angles.

    An estimate is in clocks of an SM for 32 outputs by resource, and empty where a template has none. Templates for another kind of device are left out.
    """
    serve, declined = candidates(spec, device)
    found: dict[str, tuple[Template, Decisions, Mapping[str, float]]] = {}
    for template in serve:
        trials = template.worth_estimating(spec, device) or [template.default(spec, device)]
        if chosen is not None and chosen[0] == template.name:
            trials = [chosen[1]]
        for trial in trials:
            clocks = template.estimate(spec, device, trial)
            if template.name not in found or (clocks and soft_maximum(clocks) < soft_maximum(found[template.name][2])):
                found[template.name] = template, trial, clocks
    near = {template.name for template in TEMPLATES if template.kind == device.kind}
    ordered = sorted(found.values(), key=lambda one: soft_maximum(one[2]) if one[2] else 0.0)
    return ordered, {name: why for name, why in declined.items() if name in near}


def current(name: str, version: int) -> bool:
    """Whether that is a template of today: records of others never answer."""
    return any((template.name, template.version) == (name, version) for template in TEMPLATES)


def find(name: str) -> Template:
    """The template of that name.

    Raises:
        InvalidArgument: no such template.
    """
    for template in TEMPLATES:
        if template.name == name:
            return template
    raise InvalidArgument(f"unknown template {name!r}: there are {', '.join(t.name for t in TEMPLATES)}")


def default(spec: ConvSpec, device: Device) -> tuple[Template, Decisions]:
    """The analytic choice for a single-group spec that is a layer of its own: always valid, never tuned.

    Raises:
        Unsupported: no template serves this spec on this device.
    """
    return together([spec], device)[0]


def together(parts: Sequence[ConvSpec], device: Device) -> list[tuple[Template, Decisions]]:
    """The analytic choices for the angles of one layer, which share a launch: always valid, never tuned.

    Where templates have an estimate it is that of the least: the clocks of its slowest resource, and those for which an SM waits for code that it has not
    run yet; or one that is close to the least and compiles much sooner. Elsewhere it is the first template's. Two things couple the angles of a launch:
    their blocks all take the threads, registers and shared memory of the largest; and once their code together is more than the instruction cache of an SM
    holds, it is fetched anew in each launch. So angles are chosen with more and more regard to code, and the whole that takes the fewest clocks wins.

    Raises:
        Unsupported: no template serves one of them on this device.
    """
    if len(parts) == 1:
        return [_named(_chosen(parts[0], device, 1.0, ALONE))]
    best, fewest = [_chosen(part, device, 1.0, BLOCK) for part in parts], math.inf
    for weight, start in itertools.product(_WEIGHTS if all(isinstance(choice[2], Clocks) for choice in best) else (), (ALONE, BLOCK)):
        block = start
        for _ in range(3):  # where each is chosen beside the largest block of all, the largest may be another
            chosen = [_chosen(part, device, weight, block) for part in parts]
            block = _largest(chosen)
            if (needed := _of_all(parts, device, chosen, block)) < fewest:
                best, fewest = chosen, needed
    return [_named(choice) for choice in best]


def _named(choice: _Estimate) -> tuple[Template, Decisions]:
    return choice[0], dict(choice[1])


def _largest(chosen: Sequence[_Estimate]) -> tuple[int, int, int]:
    """Threads, registers and shared bytes of the blocks of a launch of these."""
    threads, registers, shared = (max(sizes) for sizes in zip(*(clocks.block for _, _, clocks in chosen if isinstance(clocks, Clocks)), strict=True))
    return threads, registers, shared


def _of_all(parts: Sequence[ConvSpec], device: Device, chosen: Sequence[_Estimate], block: tuple[int, int, int]) -> float:
    """Clocks of an SM for 32 outputs of a layer whose angles are so chosen, with this block: the mean of its angles, and the wait for its code."""
    every = [clocks for _, _, clocks in chosen if isinstance(clocks, Clocks)]
    code = [clocks.code for clocks in every]
    waited = FETCH * (sum(code) if sum(code) > CODE_CACHE else max(code))
    return sum(soft_maximum(clocks.among(block)) for clocks in every) / len(every) + waited / _units(parts[0], device)


def _units(spec: ConvSpec, device: Device) -> float:
    """Warps' worth of outputs that an SM computes of a layer for BATCH images."""
    return spec.outputs * BATCH / WARP / nearest(device.arch).sms


@functools.lru_cache(maxsize=4096)
def _chosen(spec: ConvSpec, device: Device, weight: float, least: tuple[int, int, int]) -> _Estimate:
    """The best choice for one angle where blocks take at least so many threads, registers and shared bytes, and code counts so many times."""
    every, units = _estimated(spec, device), _units(spec, device)

    def score(clocks: Mapping[str, float]) -> float:
        return soft_maximum(clocks.among(least)) + weight * FETCH * clocks.code / units if isinstance(clocks, Clocks) else soft_maximum(clocks)

    if not every[0][2]:
        return every[0]
    scores = [score(clocks) for _, _, clocks in every]
    close = [(value, choice) for value, choice in zip(scores, every, strict=True) if value <= CLOSE * min(scores)]
    # of equal estimates the smaller blocks: more of them are resident, and at different places
    return min(close, key=lambda pair: (pair[1][0].unrolled(spec, dict(pair[1][1])) // _LONG, round(pair[0], 2), getattr(pair[1][2], "block", ())))[1]


@functools.lru_cache(maxsize=1024)
def _estimated(spec: ConvSpec, device: Device) -> tuple[_Estimate, ...]:
    """Every choice that is worth comparing with its estimate, best template first; the first template's own where one has no estimate."""
    serve, declined = candidates(spec, device)
    if not serve:
        near = {t.name for t in TEMPLATES if t.kind == device.kind and spec.op in t.ops} or set(declined)
        raise Unsupported(f"no template serves {spec} on {device.slug}: " + "; ".join(f"{name}: {why}" for name, why in declined.items() if name in near))
    found: list[_Estimate] = []
    for template in serve:
        for trial in template.worth_estimating(spec, device) or [template.default(spec, device)]:
            clocks = template.estimate(spec, device, trial)
            if not clocks:
                return ((serve[0], tuple(serve[0].default(spec, device).items()), {}),)
            found.append((template, tuple(trial.items()), clocks))
    return tuple(found)
