"""Which templates exist, best first, and which of them serves a problem best by estimate."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tvm_orient.errors import InvalidArgument, Unsupported
from tvm_orient.perf_model.block_cost import ALONE, BLOCK, CODE_CACHE, FETCH, Clocks, soft_maximum
from tvm_orient.perf_model.gpu_specs import BATCH, nearest
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.sass.bank_conflicts import WARP

from .base import Config, Generic, Template
from .cpu import generic as cpu_generic
from .cpu import pixels as cpu_pixels
from .cpu import rows
from .cuda import direct, lines, pixels, plane_lanes, shared_patch, strips, strips_dw, two_pass_dw, whole_plane
from .cuda import generic as cuda_generic
from .default import CLOSE

TEMPLATES: tuple[Template[Any], ...] = (
    rows.TEMPLATE, rows.DW_TEMPLATE, cpu_pixels.TEMPLATE, cpu_pixels.DW_TEMPLATE,
    shared_patch.TEMPLATE, strips.TEMPLATE, lines.TEMPLATE, whole_plane.TEMPLATE, plane_lanes.TEMPLATE, direct.TEMPLATE,
    two_pass_dw.TEMPLATE, strips_dw.TEMPLATE, pixels.TEMPLATE, pixels.DW_TEMPLATE,
)  # fmt: skip
_Estimate = tuple[Template[Any], Config, Mapping[str, float]]  # template, config, clocks by resource
_WEIGHTS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 32.0)  # how much more than alone the code of an angle may count in a layer
MAX_SHORT_CODE = 2048  # multiply-adds in the code of a thread that compiles soon: for these NVRTC takes twenty seconds
GENERIC: dict[str, Generic] = {generic.kind: generic for generic in (cpu_generic.GENERIC, cuda_generic.GENERIC)}


def candidates(spec: ConvSpec, device: Device) -> tuple[list[Template[Any]], dict[str, str]]:
    """Returns the templates that serve a single-group spec on a device, best first, and why the others decline."""
    serve, declined = [], {}
    for template in TEMPLATES:
        reason = template.declines(spec, device)
        if reason is None:
            serve.append(template)
        else:
            declined[template.name] = reason
    return serve, declined


class Rival(NamedTuple):
    """The least choice of one template for an angle, and what it is estimated to take."""

    template: Template[Any]
    config: Config
    #: clocks of an SM for 32 outputs by resource; `code` is what it waits for code that it runs first. Empty for a template without an estimate.
    clocks: Mapping[str, float]
    total: float | None  #: what choices are ranked by, a little more than the largest of these; None without an estimate


def compare(spec: ConvSpec, device: Device, chosen: tuple[str, Config] | None = None) -> tuple[list[Rival], dict[str, str]]:
    """Returns the least choice of each template that serves a single-group spec as a layer of its own, least first; and why others decline.

    Args:
        chosen: name of a template and a config that stand for that template's least, such as those taken in a layer of several angles.

    Templates for another kind of device are left out.
    """
    serve, declined = candidates(spec, device)
    found: dict[str, Rival] = {}
    for template in serve:
        trials = template.worth_estimating(spec, device) or [template.default(spec, device)]
        if chosen is not None and chosen[0] == template.name:
            trials = [chosen[1]]
        rivals = [estimated(template, spec, device, trial) for trial in trials]
        found[template.name] = min(rivals, key=lambda one: one.total or 0.0)
    near = {template.name for template in TEMPLATES if template.kind == device.kind}
    ordered = sorted(found.values(), key=lambda one: one.total or 0.0)
    return ordered, {name: why for name, why in declined.items() if name in near}


def estimated(template: Template[Any], spec: ConvSpec, device: Device, config: Config) -> Rival:
    """Returns what a choice is estimated to take for a single-group spec that is a layer of its own, as `default` ranks it."""
    clocks = template.estimate(spec, device, config)
    if not isinstance(clocks, Clocks):
        return Rival(template, config, clocks, soft_maximum(clocks) if clocks else None)
    units = _units(spec, device)
    return Rival(template, config, {**clocks.among(ALONE), "code": FETCH * clocks.code / units}, _score(clocks, units, 1.0, ALONE))


def find(name: str) -> Template[Any]:
    """Returns the template of that name.

    Raises:
        InvalidArgument: no such template.
    """
    for template in TEMPLATES:
        if template.name == name:
            return template
    raise InvalidArgument(f"unknown template {name!r}: there are {', '.join(t.name for t in TEMPLATES)}")


def default(spec: ConvSpec, device: Device) -> tuple[Template[Any], Config]:
    """Returns the analytic choice for a single-group spec that is a layer of its own: always valid, never tuned.

    Raises:
        Unsupported: no template serves this spec on this device.
    """
    return together([spec], device)[0]


def together(parts: Sequence[ConvSpec], device: Device) -> list[tuple[Template[Any], Config]]:
    """Returns the analytic choices for the angles of one layer, which share a launch: always valid, never tuned.

    Where templates have an estimate it is that of the least: the clocks of its slowest resource, and those for which an SM waits for code that it has not
    run yet; or one that is close to the least and compiles much sooner. Elsewhere it is the first template's. Two things couple the angles of a launch:
    their blocks all take the threads, registers and shared memory of the largest; and once their code together is more than the instruction cache of an SM
    holds, it is fetched anew in each launch. So angles are chosen with more and more regard to code, and the whole that takes the fewest clocks wins.

    Raises:
        Unsupported: no template serves one of them on this device.
    """
    if len(parts) == 1:
        return [_chosen(parts[0], device, 1.0, ALONE)[:2]]
    best, fewest = [_chosen(part, device, 1.0, BLOCK) for part in parts], math.inf
    for weight, start in itertools.product(_WEIGHTS if all(isinstance(choice[2], Clocks) for choice in best) else (), (ALONE, BLOCK)):
        block = start
        for _ in range(3):  # where each is chosen beside the largest block of all, the largest may be another
            chosen = [_chosen(part, device, weight, block) for part in parts]
            block = _largest(chosen)
            if (needed := _of_all(parts, device, chosen, block)) < fewest:
                best, fewest = chosen, needed
    return [choice[:2] for choice in best]


def _largest(chosen: Sequence[_Estimate]) -> tuple[int, int, int]:
    """Returns the threads, registers and shared bytes of the blocks of a launch of these."""
    threads, registers, shared = (max(sizes) for sizes in zip(*(clocks.block for _, _, clocks in chosen if isinstance(clocks, Clocks)), strict=True))
    return threads, registers, shared


def _of_all(parts: Sequence[ConvSpec], device: Device, chosen: Sequence[_Estimate], block: tuple[int, int, int]) -> float:
    """Returns the clocks of an SM for 32 outputs of a layer whose angles are so chosen, with this block: the mean of its angles, and the wait for its code."""
    every = [clocks for _, _, clocks in chosen if isinstance(clocks, Clocks)]
    code = [clocks.code for clocks in every]
    waited = FETCH * (sum(code) if sum(code) > CODE_CACHE else max(code))
    return sum(soft_maximum(clocks.among(block)) for clocks in every) / len(every) + waited / _units(parts[0], device)


def _units(spec: ConvSpec, device: Device) -> float:
    """Returns the warps' worth of outputs that an SM computes of a layer for BATCH images."""
    return spec.outputs * BATCH / WARP / nearest(device.arch).sms


def _score(clocks: Mapping[str, float], units: float, weight: float, least: tuple[int, int, int]) -> float:
    """Returns what choices are ranked by where blocks take at least so many threads, registers and shared bytes, and code counts so many times.

    units: warps' worth of outputs that an SM computes of the layer.
    """
    return soft_maximum(clocks.among(least)) + weight * FETCH * clocks.code / units if isinstance(clocks, Clocks) else soft_maximum(clocks)


@functools.lru_cache(maxsize=4096)
def _chosen(spec: ConvSpec, device: Device, weight: float, least: tuple[int, int, int]) -> _Estimate:
    """Returns the best choice for one angle where blocks take at least so many threads, registers and shared bytes, and code counts so many times."""
    every, units = _estimated(spec, device), _units(spec, device)
    if not every[0][2]:
        return every[0]
    scores = [_score(clocks, units, weight, least) for _, _, clocks in every]
    close = [(value, choice) for value, choice in zip(scores, every, strict=True) if value <= CLOSE * min(scores)]
    # of equal estimates the smaller blocks: more of them are resident, and at different places
    return min(close, key=lambda pair: (pair[1][0].unrolled(spec, pair[1][1]) // MAX_SHORT_CODE, round(pair[0], 2), getattr(pair[1][2], "block", ())))[1]


@functools.lru_cache(maxsize=1024)
def _estimated(spec: ConvSpec, device: Device) -> tuple[_Estimate, ...]:
    """Returns every choice that is worth comparing with its estimate, best template first; the first template's own where one has no estimate."""
    serve, declined = candidates(spec, device)
    if not serve:
        near = {t.name for t in TEMPLATES if t.kind == device.kind and spec.op in t.ops} or set(declined)
        raise Unsupported(f"no template serves {spec} on {device.slug}: " + "; ".join(f"{name}: {why}" for name, why in declined.items() if name in near))
    found: list[_Estimate] = []
    for template in serve:
        for trial in template.worth_estimating(spec, device) or [template.default(spec, device)]:
            clocks = template.estimate(spec, device, trial)
            if not clocks:
                return ((serve[0], serve[0].default(spec, device), {}),)
            found.append((template, trial, clocks))
    return tuple(found)
