"""Makes a scheduled module of a spec and its choices.

The compiler is imported inside the functions that need it: choosing a kernel that is in the cache must not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..problem.device import Device
from ..problem.spec import ConvSpec, image_shape, part_shape
from ..schedules import registry
from ..schedules.choices import Choice, is_generic


def schedule_part(part: ConvSpec, channels: int, device: Device, choice: Choice, batch: Any) -> Any:
    """Return the scheduled PrimFunc of one angle group.

    Args:
        part: the group's spec, of one angle.
        channels: how many the group has.
        device: what it is scheduled for.
        choice: a template's name and its decisions.
        batch: images N, a number or a TE variable.
    """
    from tvm.s_tir import Schedule

    from ..codegen.te import conv_nchw, conv_nhwc
    from ..toolchain.tvm import load_tvm

    template, decisions = registry.find(choice.template), dict(choice.decisions)
    form = dataclasses.replace(template.form(part, decisions), batch=batch)
    part_func = conv_nhwc.part_func if part.layout == "nhwc" else conv_nchw.part_func
    sch = Schedule(load_tvm().IRModule({"main": part_func(part, channels, form)}))
    template.apply(sch, part, device, decisions)
    return template.finish(sch.mod["main"], part, decisions)


def scheduled(spec: ConvSpec, device: Device, choices: Sequence[Choice], batch: int | None = None) -> Any:
    """Return the IRModule of a whole layer, one function called main.

    Args:
        spec: of the layer.
        device: what it is scheduled for.
        choices: one for each of `spec.parts()`, or the generic one alone.
        batch: images N; None leaves them to run time, as the generic kernel always does.

    Raises:
        EnvironmentProblem: TVM is missing, or of another version.
    """
    from ..toolchain.tvm import load_tvm

    tvm = load_tvm()  # before any other import of it: says what is missing, and refuses what would crash
    from tvm import te

    from ..codegen.tir.fuse_groups import Group, merge

    if is_generic(choices):
        func = registry.GENERIC[device.kind].func(spec.op, spec.padding_mode, spec.dtype, device)
        return tvm.IRModule({"main": func.with_attr("global_symbol", "main")})
    n = te.var("n", "int32") if batch is None else batch
    groups = []
    for (start, stop, part), choice in zip(spec.parts(), choices, strict=True):
        func = schedule_part(part, stop - start, device, choice, n)
        groups.append(Group(func, tuple(_origin(spec, i, start, len(p.shape)) for i, p in enumerate(func.params))))
    return tvm.IRModule({"main": merge(groups, _shapes(spec, groups, n), device.kind)})


def _origin(spec: ConvSpec, index: int, start: int, rank: int) -> tuple[int, ...]:
    """Return where a group's part of the operand with this index begins in the layer's; start: the group's first channel."""
    weights = index == 1 if spec.op != "conv_dw" else index == 3
    if rank == 1:  # bias
        return (start,)
    if weights:
        return (start, 0)
    return (0,) * (rank - 1) + (start,) if spec.layout == "nhwc" else (0, start) + (0,) * (rank - 2)


def _shapes(spec: ConvSpec, groups: Sequence[Any], n: Any) -> list[tuple[Any, ...]]:
    """Return the shapes of the layer's operands for n images, in the order of the function's parameters."""
    x, y, w = image_shape(spec, n, output=False), image_shape(spec, n, output=True), (spec.channels, spec.kernel_size)
    if spec.op == "conv":
        return [x, w, (spec.channels,), y] if spec.bias else [x, w, y]
    if spec.op == "conv_dx":
        return [y, w, x]
    return [x, y, part_shape(spec, n, workspace_shape([g.func for g in groups], spec.layout)), w]


def workspace_shape(funcs: Sequence[Any], layout: str = "nchw") -> tuple[int, int]:
    """Return (bands, taps) of the workspace per image and channel that conv_dw needs: the largest of the scheduled functions of its groups."""
    bands, taps = (1, 2) if layout == "nhwc" else (2, 3)
    shapes = [f.params[2].shape for f in funcs]
    return max(int(s[bands]) for s in shapes), max(int(s[taps]) for s in shapes)
