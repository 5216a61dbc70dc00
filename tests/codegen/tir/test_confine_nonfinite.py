"""NaN and infinity in the operands of conv_dw reach the taps that read them inside the plane, and no others."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.helpers import call, compiled, fitted, generic_function, line, of_kind, operands, space_of, spec_of, with_template
from tvm_orient import Taps, ops
from tvm_orient.compiler import lower
from tvm_orient.evaluate import reference, tolerance
from tvm_orient.problem import generic_args
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import DTYPES, ConvSpec
from tvm_orient.schedules.base import Template
from tvm_orient.toolchain.tvm import target

CPU = cpu_device()
TEMPLATES = [template for template in of_kind("cpu") if "conv_dw" in template.ops]
# channels, height, width, taps, stride, padding
CASES: dict[str, tuple[Any, ...]] = {
    "two angles, wider than the plane": (3, 7, 7, line(22.5, 57, k=9)),
    "stride 3x2, a vector and some": (2, 7, 35, line(157.5, k=7), (3, 2)),
    "circular, ragged stride": (2, 5, 7, line(67.5, k=7), (3, 2), "circular"),
    "free taps": (2, 6, 7, Taps.from_offsets([[[0, 1], [0, 1], [-2, 0], [1, -3], [9, -8]]])),
}


def places(image: Tensor) -> Iterator[tuple[int, int]]:
    """Corners, middles of edges and the centre of a plane."""
    height, width = image.shape[2:]
    return itertools.product(*({0, size // 2, size - 1} for size in (height, width)))


def spoiled(spec: ConvSpec) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """(what was done, operands) with one value of one image spoiled, at every edge and corner of x and of dy, and with everything NaN."""
    clean = operands(spec, 2)
    for which, value in itertools.product((0, 1), (math.nan, math.inf)):
        for row, column in places(clean[which]):
            given = [t.clone() for t in clean]
            given[which][1, 1, row, column] = value
            yield f"{value} in {['x', 'dy'][which]} at {row}, {column}", tuple(given)
    both = [t.clone() for t in clean]
    both[0][0, 0, 0, 0], both[1][1, 0, -1, -1], both[0][1, 1, -1, 0], both[0][0, 1, -1, 0] = math.inf, -math.inf, math.nan, -math.inf
    yield "several at a time", tuple(both)
    yield "all NaN", tuple(torch.full_like(t, math.nan) for t in clean)


def assert_confined(spec: ConvSpec, run: Callable[[tuple[Tensor, ...]], Tensor]) -> None:
    """NaN, infinities with their signs, and numbers stand where they do in the oracle's result; the numbers are right."""
    bound = tolerance.tolerance(spec, 2, *operands(spec, 2))
    for what, given in spoiled(spec):
        got, want = run(given), reference.run(spec, *given)
        for name, kind in (("NaN", torch.isnan), ("infinity", torch.isposinf), ("minus infinity", torch.isneginf)):
            wrong = (kind(got) != kind(want)).nonzero().tolist()
            assert not wrong, f"{spec}, {what}: {name}, or none, in dw at (channel, tap) {wrong}"
        finite = want.isfinite()
        assert float((got.double() - want)[finite].abs().max()) <= bound if finite.any() else True, f"{spec}, {what}"


FIRST = next(iter(CASES))
TRIED = [*((case, "float32") for case in CASES), *((FIRST, dtype) for dtype in DTYPES if dtype != "float32")]


@pytest.mark.parametrize(("case", "dtype"), TRIED)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_templates(template: Template, case: str, dtype: str) -> None:
    spec = dataclasses.replace(fitted(template, spec_of("conv_dw", *CASES[case])), dtype=dtype)
    choices = with_template(template, spec, CPU)
    assert choices is not None
    module = lower.scheduled(spec, CPU, choices)
    function, space = compiled(module, target(CPU)), space_of(spec, module)
    assert_confined(spec, lambda given: call(spec, function, given, space))


@pytest.mark.parametrize(("case", "dtype"), TRIED)
def test_generic(case: str, dtype: str) -> None:
    spec = dataclasses.replace(spec_of("conv_dw", *CASES[case]), dtype=dtype)
    plan = generic_args.generic_args(spec, "cpu", generic_args.vector_lanes(CPU, spec.sums))
    function = generic_function("cpu", spec.op, spec.padding_mode, spec.dtype)
    assert_confined(spec, lambda given: call(spec, function, given, plan.workspace, plan))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_op(layout: str) -> None:
    spec = spec_of("conv_dw", *CASES[FIRST])
    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    run = functools.partial(ops.conv_dw, taps=spec.taps.key, stride=spec.stride, padding_mode=spec.padding_mode)
    assert_confined(spec, lambda given: run(*(t.contiguous(memory_format=memory) for t in given)))
