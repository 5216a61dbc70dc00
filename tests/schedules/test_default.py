"""The choice without a record: of the least estimate, in blocks that make sense, with code that a cache holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.cuda import GPU
from tests.support.helpers import (
    EIGHT,
    line,
    spec_of,
)
from tvm_orient.perf_model import block_cost, gpu_specs
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice, default_choices
from tvm_orient.schedules.default import CLOSE


def estimated(spec: ConvSpec, template: Any, config: Any) -> float:
    """Clocks of an SM for 32 outputs: the slowest resource's, and those for which it waits for code."""
    clocks = template.estimate(spec, GPU, config)
    units = spec.outputs * gpu_specs.BATCH / 32 / gpu_specs.gpu_spec("sm_90a").sms
    return block_cost.soft_maximum(clocks.among(block_cost.ALONE)) + block_cost.FETCH * clocks.code / units


@pytest.mark.parametrize("size", [56, 28, 14, 7])
@pytest.mark.parametrize("op", ["conv", "conv_dw"])
def test_the_default_is_of_the_least_estimate(op: str, size: int) -> None:
    """Or of one that is close to it and compiles much sooner."""
    spec = spec_of(op, 512, size, size, line(45, k=7))
    chosen = estimated(spec, *registry.default(spec, GPU))
    every = [(t, trial) for t in registry.candidates(spec, GPU)[0] for trial in t.worth_estimating(spec, GPU) or [t.default(spec, GPU)]]
    least = min(estimated(spec, *choice) for choice in every)
    assert len(every) > 5
    assert least <= chosen <= CLOSE * least


def test_blocks_of_one_thread_are_no_default() -> None:
    assert registry.default(spec_of("conv", 67, 7, 7, line(0, k=3)), GPU)[0].name != "whole_plane"  # 67 is prime


def test_long_code_is_for_no_launch() -> None:
    """A thread that owns a plane of 14x14 unrolls thousands of multiply-adds, which are fetched in each launch; strips of it do with fewer."""
    spec, (whole, strips) = spec_of("conv_dw", 512, 14, 14, line(22.5, k=31)), map(registry.find, ("two_pass_dw", "strips_dw"))
    template, config = registry.default(spec, GPU)
    assert template is strips
    assert 0 < strips.unrolled(spec, config) < 2048 < whole.unrolled(spec, dataclasses.replace(whole.default(spec, GPU), whole=1))


@pytest.mark.parametrize("size", [56, 28, 14])
def test_a_layer_keeps_its_code_in_the_instruction_cache(size: int) -> None:
    """Eight angles of K=31 by the choices of each alone would not fit: a launch would fetch all of it anew."""
    spec = spec_of("conv", 512, size, size, Taps.oriented(EIGHT, 31))
    parts = [part for _, _, part in spec.parts()]

    def code(choices: Any) -> float:
        return sum(template.estimate(part, GPU, config).code for part, (template, config) in zip(parts, choices, strict=True))

    together = code(registry.together(parts, GPU))
    assert together <= block_cost.CODE_CACHE
    if size > 14:
        assert code([registry.default(part, GPU) for part in parts]) > block_cost.CODE_CACHE
    assert default_choices(spec, GPU) == tuple(Choice.of(*choice) for choice in registry.together(parts, GPU))
