"""Random problems, biased to edges, against the oracle: op x dtype x layout x padding x stride x taps x size.

The generic kernels need no compiling for a new size, so most of the problems are theirs; the templates get some of each run.
`make fuzz` runs all of this longer, from a fresh seed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from tests.support.helpers import OPS, assert_close, check_cpu, check_generic, check_serial, operands, stored_rounding
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ACTIVATIONS, DTYPES, LAYOUTS, PADDING_MODES, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import serving
from tvm_orient.schedules import choices

pytestmark = pytest.mark.filterwarnings("ignore:theta is in radians")  # some of these are more than a turn

SIZES = st.sampled_from([1, 2, 3, 7, 8, 9, 13, 15, 16, 17, 31, 32, 33, 40]) | st.integers(1, 70)
STRIDES = st.sampled_from([(1, 1), (1, 1), (2, 2), (2, 1), (1, 3), (4, 4), (5, 7)])
ANGLES = st.sampled_from([math.pi * i / 12 for i in range(-12, 25)]) | st.floats(-7, 7, width=32)
OFFSETS = st.integers(-3, 3) | st.integers(-80, 80)
_SETTINGS: dict[str, Any] = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}


@st.composite
def lines(draw: st.DrawFn, longest: int) -> Taps:
    """One to eight oriented lines."""
    anchor: Any = draw(st.sampled_from(["center", "center", "start"]))
    size = 2 * draw(st.integers(0, longest // 2)) + 1
    return Taps.oriented(draw(st.lists(ANGLES, min_size=1, max_size=8)), size, draw(st.integers(1, 3)), anchor)


@st.composite
def free(draw: st.DrawFn) -> Taps:
    """Any offsets, colliding ones and ones that never land too."""
    size = draw(st.integers(1, 6))
    line = st.lists(st.tuples(OFFSETS, OFFSETS), min_size=size, max_size=size)
    return Taps.from_offsets(draw(st.lists(line, min_size=1, max_size=3)))


@st.composite
def specs(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES), longest: int = 101, most: int = 70, templates: bool = False) -> ConvSpec:
    """A problem of at most a few thousand pixels. templates: any layout and epilogue, of which a generic kernel knows nothing."""
    height = min(most, draw(SIZES))
    width = min(most, draw(SIZES), max(1, 1600 // height))
    taps = draw(lines(longest) | free())
    op = draw(st.sampled_from(OPS))
    ended = templates and op == "conv"
    return ConvSpec(
        op,
        draw(st.integers(1, 9) | st.integers(1, 40) if templates else st.integers(1, 9)),
        height,
        width,
        taps,
        stride=draw(STRIDES),
        padding_mode=draw(st.sampled_from(PADDING_MODES)),
        dtype=draw(st.sampled_from(dtypes)),
        layout=draw(st.sampled_from(LAYOUTS if templates else LAYOUTS[:1])),
        bias=draw(st.booleans()) if ended else False,
        activation=draw(st.sampled_from(ACTIVATIONS)) if ended else "none",
    )


@settings(max_examples=settings().max_examples * 3, **_SETTINGS)
@given(specs(templates=True), st.integers(1, 3))
def test_generic_on_a_cpu(spec: ConvSpec, batch: int) -> None:
    """As it is; or as a call gets it, with torch around it for the layouts and epilogues that it knows nothing of."""
    note(spec.key)
    if spec.layout == "nchw" and spec == spec.plain:
        check_generic(spec, "cpu", (batch,))
        return
    given = operands(spec, batch, seed=batch)
    laid = [t.contiguous(memory_format=torch.channels_last) if spec.layout == "nhwc" and t.dim() == 4 else t for t in given]
    rounded = stored_rounding(spec, given)  # of the sum, before torch's epilogue
    assert_close(serving.load(spec, cpu_device(), choices.generic_choices(spec, cpu_device()))(*laid), spec, given, extra=rounded)


@settings(max_examples=settings().max_examples * 2, **_SETTINGS)
@given(specs(), st.integers(1, 3))
def test_generic_for_cuda(spec: ConvSpec, batch: int) -> None:
    note(spec.key)
    check_generic(spec, "cuda", (batch,))


@settings(max_examples=max(10, settings().max_examples // 4), **_SETTINGS)
@given(specs(longest=31, most=40, templates=True), st.integers(1, 3))
def test_templates_on_a_cpu(spec: ConvSpec, batch: int) -> None:
    note(spec.key)
    check_cpu(spec, batches=(batch,))


@settings(max_examples=max(10, settings().max_examples // 8), **_SETTINGS)
@given(specs(("float32", "float16", "bfloat16"), longest=31, most=40, templates=True), st.integers(1, 3))
def test_templates_for_cuda(spec: ConvSpec, batch: int) -> None:
    note(spec.key)
    check_serial(spec, batches=(batch,))
