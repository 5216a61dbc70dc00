"""The machine code itself, executed with values: every template's cubin against the oracle, and faults of all kinds found."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.helpers import AHEAD, assert_close, choice_of, line, nvrtc_missing, of_kind, operands, spec_of, with_template
from tests.support.machine_code import Case, check_machine, machines, outcome
from tests.support.sampling import sampled
from tvm_orient.errors import BuildFailed, InvalidArgument
from tvm_orient.problem.device import arch_device
from tvm_orient.sass import cubin
from tvm_orient.sass.checked_memory import Fault
from tvm_orient.sass.executor import ORDERS, execute
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, default_choices, generic_choices
from tvm_orient.toolchain import nvrtc

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")

ARCHS = ["sm_80", "sm_90a"]
DTYPES = ("float32", "float16", "bfloat16")
EACH = sampled(itertools.product(DTYPES, ARCHS), pairs=lambda *_: (), once=lambda dtype, arch: (dtype, arch))


def cases(dtype: str, arch: str) -> dict[str, Case]:
    """By name, the default of every template on small problems of every op and layout that it serves, and with copies ahead where they fit."""
    device, found = arch_device(arch), {}
    for template, op in [(one, op) for one in of_kind("cuda") for op in one.ops]:
        for layout in template.layouts:
            taps = line(135, k=5) if template.name == "lines" else line(*(22.5, 90)[: 2 if dtype == "float32" and op != "conv_dx" else 1], k=5)
            height, width = (7, 7) if template.name == "whole_plane" else (9, 14)
            spec = spec_of(op, 4, height, width, taps, 1, "zeros", dtype, layout)
            choices = with_template(template, spec, device)
            assert choices is not None, f"{template.name} declines {spec}"
            found[f"{template.name}_{op}_{layout}"] = spec, choices
            parts = [part for _, _, part in spec.parts()]
            ahead = [{**template.default(part, device).decisions(), **AHEAD} for part in parts]
            if all(template.invalid(part, device, decisions) is None for part, decisions in zip(parts, ahead, strict=True)):
                found[f"{template.name}_{op}_{layout}_ahead"] = spec, [choice_of(template, decisions) for decisions in ahead]
    return found


# ---- every template -----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "arch"), EACH)
def test_machine_code_of_every_template(dtype: str, arch: str) -> None:
    """In every order of warps."""
    for name, machine in machines(cases(dtype, arch), arch).items():
        check_machine(machine, ORDERS, note=name)


@pytest.mark.parametrize("arch", [pytest.param("sm_80", marks=pytest.mark.long), "sm_90a"])
def test_machine_code_of_the_generic_kernel(arch: str) -> None:
    device, found = arch_device(arch), {}
    for op in ("conv", "conv_dx", "conv_dw"):
        for padding, dtype in (("zeros", "float32"), ("circular", "float64"), ("zeros", "float16"), ("zeros", "bfloat16")):
            spec = spec_of(op, 3, 9, 7, line(22.5, 90, k=5), (2, 1), padding, dtype)
            found[f"{op}_{padding}_{dtype}"] = spec, generic_choices(spec, device)
    for machine in machines(found, arch).values():
        check_machine(machine, ORDERS)


@pytest.mark.parametrize(("dtype", "arch"), EACH)
def test_machine_code_of_fused_epilogues(dtype: str, arch: str) -> None:
    device, found = arch_device(arch), {}
    for activation, layout in zip(("relu", "silu", "gelu"), ("nhwc", "nchw", "nhwc"), strict=True):
        spec = dataclasses.replace(spec_of("conv", 4, 9, 14, line(67.5, k=5), dtype=dtype, layout=layout), bias=True, activation=activation)
        found[activation] = spec, default_choices(spec, device)
    for name, machine in machines(found, arch).items():
        check_machine(machine, note=name)


@pytest.mark.parametrize("arch", ARCHS)
def test_both_passes_of_strips_dw(arch: str) -> None:
    """14x14, K=31, 67.5 degrees: a case of which an interpreter of other machine code has said that the second pass is wrong."""
    template, spec = registry.find("strips_dw"), spec_of("conv_dw", 4, 14, 14, line(67.5, k=31))
    (machine,) = machines({"case": (spec, [Choice.of(template, template.default(spec, arch_device(arch)))])}, arch).values()
    check_machine(machine, ORDERS)


@pytest.mark.parametrize("arch", ARCHS)
def test_copies_of_several_planes_of_no_whole_quads(arch: str) -> None:
    """Planes of 9 x 14 floats side by side, copied by two: the first float of each is at an even place."""
    template, spec = registry.find("strips_dw"), spec_of("conv_dw", 8, 9, 14, line(22.5, k=5))
    decisions = {"patch_h": 1, "patch_w": 14, "channels_per_block": 8, "vector": 2, "lanes_across_channels": 1}
    (machine,) = machines({"case": (spec, [choice_of(template, decisions)])}, arch).values()
    check_machine(machine, ORDERS)


# ---- mutants ------------------------------------------------------------------------------------

_OPCODE = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)")
_MUTATED: dict[str, tuple[Any, ...]] = {  # template, op, channels, height and width, K, dtype, decisions
    "tiles ahead": ("shared_patch", "conv", 8, 28, 7, "float32", {"tiles_per_block": 4, "stages": 2, "channels_per_block": 2}),
    "strips ahead": ("strips", "conv_dx", 8, 28, 7, "float32", {"tiles_per_block": 4, "stages": 2, "channels_per_block": 2}),
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


@pytest.mark.parametrize("arch", ["sm_80", pytest.param("sm_90a", marks=pytest.mark.long)])
def test_every_mutant_is_found(arch: str) -> None:
    device, built, tried = arch_device(arch), {}, 0
    for i, (name, op, channels, size, taps, dtype, decisions) in enumerate(_MUTATED.values()):
        template, spec = registry.find(name), spec_of(op, channels, size, size, line(45, k=taps), dtype=dtype)
        built[f"mutant{i}"] = spec, [choice_of(template, {**template.default(spec, device).decisions(), **decisions})]
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


# ---- code written for the purpose ---------------------------------------------------------------


_COPY = 'asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" :: "r"((unsigned)__cvta_generic_to_shared(&s[t])), "l"(x + t) : "memory");'
_SENT, _ARRIVED = 'asm volatile("cp.async.commit_group;" ::: "memory");', 'asm volatile("cp.async.wait_group 0;" ::: "memory");'


_FAULTS = [  # of a body of two blocks of 64 threads t; s is shared, b the block's first place in y; and what is said of it
    ("s[t] = x[t]; y[b + t] = s[63 - t];", "another warp touches in the same epoch|nothing wrote"),
    ("s[t] = x[t]; __syncthreads(); float v = s[63 - t]; s[t] = v; __syncthreads(); y[b + t] = s[t];", r"LD?S.*, after .*(STS|LDS).* another warp touches"),
    ("if (t < 32) s[t] = x[t]; __syncthreads(); y[b + t] = s[t];", "LDS .* reads shared memory that nothing wrote"),
    ("y[b + t + 256] = x[t];", "STG.* touches global memory outside every array"),
    ("y[t] = x[t];", "STG.* writes global memory that another thread of the launch wrote|another thread writes too"),
    ("y[b + t] = x[t]; y[b + t] += y[(b + t + 1) % 128];", "LDG.* reads global memory that another thread"),
    ("*(float2*)(y + t + 1) = make_float2(x[t], 0);", "STG.* touches global memory that is not aligned to its 8 bytes"),
    ("((volatile float*)s)[0] = x[t]; __syncthreads(); y[b + t] = s[0];", "STS.* writes two values to one place|another warp"),
    ("if (t < 32) __syncthreads(); y[b + t] = 1;", "is a barrier that only some threads of a block reach"),
    ("s[t] = x[t]; if (t >= 40) return; __syncthreads(); y[b + t] = s[t];", "is a barrier that only some threads of a block reach"),
    ("y[b + t] = 1; if (t >= 32) return; s[t] = x[t]; __syncthreads(); y[b + t] = s[31 - t];", "is a barrier that only some threads of a block reach"),
    (
        "s[t] = x[t]; __syncthreads(); float v = s[63 - t]; __syncthreads(); if (t >= 40) { y[b + t] = v; return; }"
        " s[t] = v; __syncthreads(); y[b + t] = s[39 - t];",
        "is a barrier that only some threads of a block reach",
    ),
    (f"{_COPY} {_SENT} y[b + t] = s[t];", r"LDS .*, after .*LDGSTS.* reads shared memory into which a copy is on its way"),
    (f"{_COPY} {_ARRIVED} y[b + t] = s[t];", r"LDS .*, after .*LDGSTS.* reads shared memory into which a copy is on its way"),
    (f"{_COPY} {_SENT} s[t] = 1; {_ARRIVED} y[b + t] = s[t];", r"STS .*, after .*LDGSTS.* writes shared memory into which a copy is on its way"),
    (f"{_COPY} {_SENT} {_ARRIVED} y[b + t] = s[63 - t];", "another warp touches|a copy is on its way|nothing wrote"),
]
_VALUES: list[tuple[str, Any]] = [  # of an expression of three floats, and what it is
    ("fmaf(a, b, c)", lambda a, b, c: a.astype(np.float64) * b + c),
    ("__fadd_rn(a, -b) * fabsf(c)", lambda a, b, c: (a - b) * np.abs(c)),
    ("fminf(a, b) + fmaxf(b, c)", lambda a, b, c: np.minimum(a, b) + np.maximum(b, c)),
    ("a > b ? c : a", lambda a, b, c: np.where(a > b, c, a)),
    ("__expf(a) + sqrtf(b * b) + 1 / (c * c + 1)", lambda a, b, c: np.exp(a) + np.abs(b) + 1 / (c * c + 1)),
    ("(float)(int)(a * 100) + (float)(unsigned)(b * b * 10)", lambda a, b, c: np.trunc(a * 100) + np.trunc(b * b * 10)),
    ("__half2float(__float2half_rn(a)) + __bfloat162float(__float2bfloat16_rn(b))", lambda a, b, c: a.astype(np.float16).astype(np.float32) + bfloat(b)),
    (
        "__shfl_xor_sync(~0u, a, 5) - __shfl_down_sync(~0u, b, 3, 8)",
        lambda a, b, c: a[np.arange(64) ^ 5] - b[np.arange(64) + np.where(np.arange(64) % 8 < 5, 3, 0)],
    ),
    (
        "__shfl_sync(~0u, a, 7, 16) - __shfl_up_sync(~0u, b, 2)",
        lambda a, b, c: a[np.arange(64) // 16 * 16 + 7] - b[np.arange(64) - np.where(np.arange(64) % 32 > 1, 2, 0)],
    ),
    ("(float)((double)a * b + c)", lambda a, b, c: a.astype(np.float64) * b + c),
    ("(float)((int)(a * 1000) / 7 + (int)(b * 1000) % 13)", lambda a, b, c: np.trunc(np.trunc(a * 1000) / 7) + np.fmod(np.trunc(b * 1000), 13)),
    ("(float)((unsigned)(threadIdx.x * 977) / (unsigned)n)", lambda a, b, c: np.arange(64) * 977 // 3),
    ("(float)(int)((((long long)threadIdx.x << 33) * n) >> 32)", lambda a, b, c: np.arange(64) * 6),
    ("(float)(int)(((((long long)n << 33) - ((long long)__float_as_int(a) << (32 + n - n))) >> 32) + __float_as_int(a))", lambda a, b, c: 6.0),
    ("((long long)__float_as_int(a) * n < (long long)__float_as_int(b) << 3) ? 1.f : 0.f", lambda a, b, c: whole(a) * 3 < whole(b) * 8),
    ("__low2float(__hfma2(__float2half2_rn(a), __float2half2_rn(b), __float2half2_rn(c)))", lambda a, b, c: half(half(a) * half(b) + half(c))),
    ("__high2float(__hadd2(__floats2half2_rn(c, a), __floats2half2_rn(c, b)))", lambda a, b, c: half(half(a) + half(b))),
    ("__low2float(__hmul2(__floats2bfloat162_rn(a, c), __floats2bfloat162_rn(b, c)))", lambda a, b, c: bfloat(bfloat(a) * bfloat(b))),
]
_TURNED = "s[t] = x[t]; __syncthreads(); float v = s[{last} - t]; __syncthreads(); s[t] = v + n; __syncthreads(); y[b + t] = s[{last} - t];"
_LACKING = (1, 31, 32, 40, 63)  # threads of a block of 64 that go on; the others end before they touch memory
_BODIES = {
    **{
        f"lacking{i}": f"__shared__ float s[64]; const int t = threadIdx.x, b = blockIdx.x * 64; if (t >= {i}) return; {_TURNED.format(last=i - 1)}"
        for i in _LACKING
    },
    **{f"fault{i}": f"__shared__ float s[64]; const int t = threadIdx.x, b = blockIdx.x * 64; {body}" for i, (body, _) in enumerate(_FAULTS)},
    **{f"value{i}": f"const int t = threadIdx.x; const float a = x[t], b = x[64 + t], c = x[128 + t]; y[t] = {text};" for i, (text, _) in enumerate(_VALUES)},
    "times": "y[threadIdx.x] = x[threadIdx.x] * n + 1;",
    "late": f"__shared__ float s[64]; const int t = threadIdx.x; {_COPY} {_SENT} {_ARRIVED} y[t] = s[t]; x += 64; {_COPY} {_SENT} {_ARRIVED} y[64 + t] = s[t];",
    "atomic": "atomicAdd(y, x[threadIdx.x]);",
}


@functools.cache
def written(arch: str) -> dict[str, cubin.KernelFacts]:
    """Kernels with these bodies, all of one source."""
    texts = [f'extern "C" __global__ void {name}(const float* x, float* y, int n) {{ {body} }}' for name, body in _BODIES.items()]
    source = "\n".join(["#include <cuda_fp16.h>", "#include <cuda_bf16.h>", *texts])
    return {kernel.name: kernel for kernel in cubin.kernels(nvrtc.compile_cubin(source, arch))}


def whole(value: Any) -> Any:
    """The bits of a float32 as a whole number."""
    return value.view(np.int32).astype(np.int64)


def half(value: Any) -> Any:
    """To float16 and back."""
    return np.asarray(value, np.float32).astype(np.float16).astype(np.float64)


def bfloat(value: Any) -> Any:
    """To bfloat16 and back."""
    return torch.from_numpy(np.asarray(value, np.float32)).bfloat16().float().numpy().astype(np.float64)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("index", range(len(_FAULTS)))
def test_faults(index: int, order: str, arch: str) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 256)).astype(np.float32)
    with pytest.raises(Fault, match=_FAULTS[index][1]):
        execute(written(arch)[f"fault{index}"], 2, 64, [x, y, 3], order)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("index", range(len(_VALUES)))
def test_what_instructions_compute(index: int, arch: str) -> None:
    a, b, c = np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)
    y = np.zeros(64, np.float32)
    execute(written(arch)[f"value{index}"], 1, 64, [np.concatenate([a, b, c]), y, 3])
    np.testing.assert_allclose(y, _VALUES[index][1](a, b, c), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", _LACKING)
def test_threads_that_end_before_they_touch_memory_hold_no_barrier_up(count: int, order: str, arch: str) -> None:
    """As on a GPU: whole warps of them, and some lanes of a warp; those that are left wait for each other."""
    x, y = np.arange(256, dtype=np.float32), np.full(256, -1, np.float32)
    execute(written(arch)[f"lacking{count}"], 2, 64, [x, y, 3], order)
    for block in np.split(y[:128], 2):
        np.testing.assert_array_equal(block, np.where(np.arange(64) < count, x[:64] + 3, -1))
    assert (y[128:] == -1).all()


@pytest.mark.parametrize("arch", ARCHS)
def test_a_register_that_nothing_wrote(arch: str) -> None:
    x, y = np.ones((2, 64), np.float32)
    kernel = written(arch)["times"]
    execute(kernel, 1, 64, [x, y, 3])
    assert (y == 4).all()
    lacking = re.sub(r"S2R [^;]*SR_TID.X ;", "NOP ;", kernel.code)
    with pytest.raises(Fault, match=r"reads R\d+, which nothing wrote"):
        execute(dataclasses.replace(kernel, code=lacking), 1, 64, [x, y, 3])


@pytest.mark.parametrize(
    ("join", "other", "reads"), [("AND", "P1", False), ("AND", "!P1", True), ("OR", "P1", True), ("OR", "!P1", False), ("XOR", "P1", True)]
)
def test_a_register_that_nothing_wrote_is_compared_where_the_result_is_known(join: str, other: str, reads: bool) -> None:
    """The compiler computes a register under a predicate, and joins its comparison with that predicate for all lanes."""
    x, y = np.ones((2, 64), np.float32)
    kernel = written("sm_90a")["times"]
    compared = f"/*0000*/ ISETP.GE.AND P1, PT, RZ, 0x1, PT ;\n/*0010*/ ISETP.LT.U32.{join} P0, PT, R99, 0x6, {other} ;\n/*0020*/ EXIT ;\n"
    code = dataclasses.replace(kernel, code=compared)
    if not reads:
        execute(code, 1, 64, [x, y, 3])
        return
    with pytest.raises(Fault, match="reads R99, which nothing wrote"):
        execute(code, 1, 64, [x, y, 3])


@pytest.mark.parametrize("arch", ARCHS)
def test_what_a_copy_overwrites_is_there_until_it_lands(arch: str) -> None:
    x, y = np.arange(128, dtype=np.float32), np.zeros(128, np.float32)
    execute(written(arch)["late"], 1, 64, [x, y, 3])
    assert (y == x).all()


def test_what_is_refused() -> None:
    x, y = np.ones((2, 64), np.float32)
    kernel = written("sm_80")["times"]
    with pytest.raises(InvalidArgument, match="times takes 3 arguments, got 2"):
        execute(kernel, 1, 64, [x, y])
    with pytest.raises(InvalidArgument, match="order must be one of ascending, descending, random, got 'sideways'"):
        execute(kernel, 1, 64, [x, y, 3], "sideways")
    with pytest.raises(BuildFailed, match=r"(ATOM|RED).* is not followed"):
        execute(written("sm_80")["atomic"], 1, 64, [x, y, 3])
