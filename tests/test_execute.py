"""The machine code itself, executed with values: every template's cubin against the oracle, and faults of all kinds found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from _helpers import AHEAD, assert_close, line, nvrtc_missing, of_kind, operands, spec_of, with_template
from _machine import Case, check_machine, machines, outcome

from tvm_orient import schedules
from tvm_orient.device import arch_device
from tvm_orient.execute import ORDERS
from tvm_orient.hazards import Fault
from tvm_orient.lower import Choice
from tvm_orient.schedules.base import Template

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")

ARCHS = ["sm_80", "sm_90a"]
DTYPES = ("float32", "float16", "bfloat16")


def cases(template: Template, arch: str) -> dict[str, Case]:
    """By name, the template's default on small problems of every op, layout and dtype that it serves, and float32 with copies ahead where they fit."""
    device, found = arch_device(arch), {}
    for op in template.ops:
        for layout in template.layouts:
            for dtype in DTYPES:
                taps = line(135, k=5) if template.name == "lines" else line(*(22.5, 90)[: 2 if dtype == "float32" else 1], k=5)
                height, width = (7, 7) if template.name == "whole_plane" else (9, 14)
                spec = spec_of(op, 4, height, width, taps, 1, "zeros", dtype, layout)
                choices = with_template(template, spec, device)
                assert choices is not None, f"{template.name} declines {spec}"
                found[f"{op}_{layout}_{dtype}"] = spec, choices
                parts = [part for _, _, part in spec.parts()]
                ahead = [{**template.default(part, device), **AHEAD} for part in parts]
                if all(template.invalid(part, device, decisions) is None for part, decisions in zip(parts, ahead, strict=True)):
                    found[f"{op}_{layout}_{dtype}_ahead"] = spec, [Choice.of(template, decisions) for decisions in ahead]
    return found


# ---- every template -----------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("template", of_kind("cuda"), ids=lambda template: template.name)
def test_machine_code_of_every_template(template: Template, arch: str) -> None:
    """In every order of warps."""
    for machine in machines(cases(template, arch), arch).values():
        check_machine(machine, ORDERS)


@pytest.mark.parametrize("arch", ARCHS)
def test_both_passes_of_strips_dw(arch: str) -> None:
    """14x14, K=31, 67.5 degrees: a case of which an interpreter of other machine code has said that the second pass is wrong."""
    template, spec = schedules.find("strips_dw"), spec_of("conv_dw", 4, 14, 14, line(67.5, k=31))
    (machine,) = machines({"case": (spec, [Choice.of(template, template.default(spec, arch_device(arch)))])}, arch).values()
    check_machine(machine, ORDERS)


# ---- mutants ------------------------------------------------------------------------------------

_OPCODE = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)")
_MUTATED: dict[str, tuple[Any, ...]] = {  # template, op, channels, height and width, K, dtype, decisions
    "tiles ahead": ("shared_patch", "conv", 8, 28, 7, "float32", {"turns": 4, "stages": 2, "planes": 2}),
    "strips ahead": ("strips", "conv_dx", 8, 28, 7, "float32", {"turns": 4, "stages": 2, "planes": 2}),
    "one tile": ("shared_patch", "conv", 4, 14, 7, "float16", {}),
    "planes": ("plane_lanes", "conv", 4, 14, 7, "float32", {}),
    "two passes": ("two_pass_dw", "conv_dw", 4, 28, 7, "float32", {}),
    "strips_dw": ("strips_dw", "conv_dw", 4, 14, 7, "float32", {}),
}


def mutants(code: str, warps: int) -> Iterator[tuple[str, str]]:
    """(what, code) with one barrier, wait or commit that has something to do gone, one wait too early or too lax, one copy too late.

    Nothing has to be done by a barrier of one warp, and by a wait or a commit before which nothing was copied since the last one.
    """
    lines = code.splitlines()
    opcodes = [match[1] if (match := _OPCODE.match(line)) else "" for line in lines]

    def before(index: int, *names: str) -> int:
        return max((i for i in range(index) if opcodes[i] in names), default=-1)

    def after(index: int, *names: str) -> int:
        return min((i for i in range(index + 1, len(lines)) if opcodes[i] in names), default=-1)

    def moved(start: int, to: int) -> str:
        rest = [*lines[:start], *lines[start + 1 :]]
        return "\n".join([*rest[:to], lines[start], *rest[to:]])

    def changed(index: int, text: str) -> str:
        return "\n".join([*lines[:index], text, *lines[index + 1 :]])

    for i, (text, name) in enumerate(zip(lines, opcodes, strict=True)):
        gone, copy = re.sub(r"(\*/\s+)[^;]*;", r"\1NOP ;", text), before(i, "LDGSTS")
        if name == "BAR" and warps > 1:
            yield "barrier removed", changed(i, gone)
        if name == "DEPBAR" and copy > before(i, "DEPBAR"):
            yield "wait removed", changed(i, gone)
            yield "wait laxer", changed(i, re.sub(r"0x(\d)", lambda last: hex(int(last[1]) + 1), text))
            yield "wait before the commit", moved(i, before(i, "LDGDEPBAR"))
        if name == "LDGDEPBAR" and copy > before(i, "LDGDEPBAR"):
            yield "commit removed", changed(i, gone)
            yield "commit before a copy", moved(i, copy)
            if (barrier := after(i, "BAR")) >= 0:
                yield "copy after the barrier", moved(copy, barrier)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_mutant_is_found(arch: str) -> None:
    device, built, tried = arch_device(arch), {}, 0
    for i, (name, op, channels, size, taps, dtype, decisions) in enumerate(_MUTATED.values()):
        template, spec = schedules.find(name), spec_of(op, channels, size, size, line(45, k=taps), dtype=dtype)
        built[f"mutant{i}"] = spec, [Choice.of(template, {**template.default(spec, device), **decisions})]
    survived = []
    for what, machine in zip(_MUTATED, machines(built, arch).values(), strict=True):
        given = operands(machine.spec, 2)
        assert_close(outcome(machine, given), machine.spec, given)
        for index, launch in enumerate(machine.launches):
            for kind, code in mutants(launch.kernel.code, -(-launch.threads // 32)):
                tried += 1
                try:
                    assert_close(outcome(machine.with_code(index, code), given), machine.spec, given)
                except (Fault, AssertionError):
                    continue
                survived.append((what, index, kind))
    assert survived == [], f"{len(survived)} of {tried} mutants"
    assert tried >= 40
