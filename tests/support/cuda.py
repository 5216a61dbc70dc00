"""CUDA kernels without a GPU: templates, choices for several angles and tiles, and the source that they become."""

from __future__ import annotations

import math
from typing import Any

from tests.support.helpers import (
    EIGHT,
    choice_of,
    line,
    of_kind,
    spec_of,
)
from tvm_orient.codegen.cuda.cuda_text import launches
from tvm_orient.compiler import library, lower
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.sass import cubin
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, default_choices
from tvm_orient.toolchain import nvrtc

GPU = arch_device("sm_90a")
TEMPLATES = of_kind("cuda")
ANGLES = [math.degrees(a) for a in EIGHT]


def source_of(spec: ConvSpec, choices: Any = None) -> str:
    """CUDA source of a spec for GPU, by these choices or by those of a machine without records."""
    return library.cuda_source(lower.scheduled(spec, GPU, choices or default_choices(spec, GPU)), GPU)


def default_source(spec: ConvSpec, arch: str) -> str:
    """CUDA source of a spec for an arch, as a machine without records chooses it."""
    device = arch_device(arch)
    return library.cuda_source(lower.scheduled(spec, device, default_choices(spec, device)), device)


def kernels_of(source: str, arch: str = "sm_90a") -> dict[str, cubin.KernelFacts]:
    """What NVRTC makes of CUDA source: the kernels of the cubin by name."""
    return {kernel.name: kernel for kernel in cubin.kernels(nvrtc.compile_cubin(source, arch))}


def kernel_of(source: str) -> str:
    """The source of its kernels, without the helpers."""
    return source[source.index('extern "C"') :]


def uneven(op: str) -> tuple[ConvSpec, list[Choice], list[int]]:
    """Three angles whose blocks have different numbers of threads, and those numbers."""
    spec = spec_of(op, 12, 14, 16, line(0, 45, 90, k=3))
    template, choices = registry.find("two_pass_dw" if op == "conv_dw" else "shared_patch"), []
    default = template.default(next(iter(spec.parts()))[2], GPU).decisions()
    for (_, _, part), planes in zip(spec.parts(), (4, 1, 2), strict=True):
        decisions = {**default, "channels_per_block": planes}
        assert template.invalid(part, GPU, decisions) is None
        choices.append(choice_of(template, decisions))
    alone = [launches(source_of(part, [choice]))[0][1] for (_, _, part), choice in zip(spec.parts(), choices, strict=True)]
    assert len(set(alone)) == 3, alone
    return spec, choices, alone


def in_turn(spec: ConvSpec, name: str, **decisions: int) -> tuple[Choice, ...]:
    """The template's default for every part, with blocks of two tiles in two stages, and other decisions where given."""
    template, choices = registry.find(name), []
    for _, _, part in spec.parts():
        chosen = {**template.default(part, GPU).decisions(), "channels_per_block": 2, "tiles_per_block": 2, "stages": 2, **decisions}
        assert template.invalid(part, GPU, chosen) is None
        choices.append(choice_of(template, chosen))
    return tuple(choices)
