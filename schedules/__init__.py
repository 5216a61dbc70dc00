"""Hand-written schedules: which templates exist, best first."""

from __future__ import annotations

from tvm_orient.device import Device
from tvm_orient.errors import InvalidArgument, Unsupported
from tvm_orient.estimate import soft_maximum
from tvm_orient.spec import ConvSpec

from .base import CLOSE, Decisions, Generic, Template
from .cpu import generic as cpu_generic
from .cpu import pixels as cpu_pixels
from .cpu import rows
from .cuda import conv_dw, direct, lines, pixels, plane_lanes, shared_patch, strips, strips_dw, whole_plane
from .cuda import generic as cuda_generic

TEMPLATES: tuple[Template, ...] = (
    rows.TEMPLATE, rows.DW_TEMPLATE, cpu_pixels.TEMPLATE, cpu_pixels.DW_TEMPLATE,
    shared_patch.TEMPLATE, strips.TEMPLATE, lines.TEMPLATE, whole_plane.TEMPLATE, plane_lanes.TEMPLATE, direct.TEMPLATE, conv_dw.TEMPLATE, strips_dw.TEMPLATE,
    pixels.TEMPLATE, pixels.DW_TEMPLATE,
)  # fmt: skip
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
    """The analytic choice for a single-group spec: always valid, never tuned.

    Where templates have an estimate it is the first's whose estimate is close to the least, or one as close that compiles much sooner; else the first's of all.

    Raises:
        Unsupported: no template serves this spec on this device.
    """
    serve, declined = candidates(spec, device)
    if not serve:
        near = {t.name for t in TEMPLATES if t.kind == device.kind and spec.op in t.ops} or set(declined)
        raise Unsupported(f"no template serves {spec} on {device.slug}: " + "; ".join(f"{name}: {why}" for name, why in declined.items() if name in near))
    choices = [(template, template.default(spec, device)) for template in serve]
    estimates = [template.estimate(spec, device, decisions) for template, decisions in choices]
    if not all(estimates):
        return choices[0]
    scores = [soft_maximum(estimate) for estimate in estimates]
    close = [choice for choice, score in zip(choices, scores, strict=True) if score <= CLOSE * min(scores)]
    return min(close, key=lambda choice: choice[0].unrolled(spec, choice[1]) // _LONG)
