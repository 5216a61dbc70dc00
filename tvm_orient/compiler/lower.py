"""Makes a scheduled module of a spec and its choices.

The compiler is imported inside the functions that need it: choosing a kernel that is in the cache must not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ..codegen.names import ANNOTATIONS
from ..errors import BuildFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec
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

    Raises:
        BuildFailed: a rewrite that the template asks for found nothing to rewrite.
    """
    from tvm.s_tir import Schedule

    from ..codegen.te.prim_func import part_func
    from ..codegen.tir.visit import annotated
    from ..toolchain.tvm import load_tvm

    template, config = registry.find(choice.template), choice.config
    stages = dataclasses.replace(template.stage_config(part, config), batch=batch)
    sch = Schedule(load_tvm().IRModule({"main": part_func(part, channels, stages)}))
    template.apply(sch, part, device, config)
    func = template.finish(sch.mod["main"], part, config)
    if left := annotated(func, ANNOTATIONS):
        asked = ", ".join(sorted(left))
        raise BuildFailed(f"{template.name} must rewrite each loop that it annotates, got {asked} left in {part}: call the rewrite of that key in its finish")
    return func


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
        groups.append(Group(func, tuple(operand.origin(start) for operand in spec.operands(n))))
    workspace = workspace_shape(spec, [group.func for group in groups]) or (1, 1)
    return tvm.IRModule({"main": merge(groups, [operand.shape for operand in spec.operands(n, workspace)], device.kind)})


def workspace_shape(spec: ConvSpec, funcs: Sequence[Any]) -> tuple[int, int] | None:
    """Return (bands, taps) of the workspace per image and channel that kernels of conv_dw need: the largest of these; None for another op, which needs none.

    Args:
        funcs: scheduled PrimFuncs of the spec or of its parts.
    """
    place = next((index for index, operand in enumerate(spec.operands(1)) if operand.role == "workspace"), None)
    if place is None:
        return None
    axes = [axis for axis in range(1, 4) if axis != spec.operands(1)[place].channel_axis]
    bands, taps = (max(int(func.params[place].shape[axis]) for func in funcs) for axis in axes)
    return bands, taps
