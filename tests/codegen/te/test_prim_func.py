"""What is computed: the unscheduled TE in every config against the oracle."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from tests.support.helpers import OPS, check, compiled, line, space_of, spec_of
from tests.support.sampling import sampled
from tvm_orient.codegen.te.config import DwStageConfig, StageConfig
from tvm_orient.codegen.te.prim_func import part_func
from tvm_orient.errors import InvalidArgument
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps

STEPS = [((1, 1), "zeros"), ((1, 1), "circular"), ((2, 1), "circular"), ((2, 2), "zeros"), ((3, 2), "zeros")]
FREE = Taps.from_offsets([[[0, 1], [0, 1], [-2, 0], [1, -3], [9, -8]]])  # a collision, and a tap that reaches nothing
FORMS = {
    "plain": StageConfig(),
    "halo and pitch": StageConfig(halo=4, pitch=4),
    "vectors": StageConfig(vector=4, halo=4, pitch=4),
    "vectors, tap loop": StageConfig(vector=4, halo=4, pitch=4, reduce=True),
    "wide vectors": StageConfig(vector=16),
}
DW_FORMS = {
    "bands": DwStageConfig(rows=2),
    "bands of vectors": DwStageConfig(vector=4, halo=4, pitch=4, rows=3),
    "runs": DwStageConfig(vector=2, run=3),
    "row lanes": DwStageConfig(vector=2, rows=4, row_lanes=2),
    "runs and ragged row lanes": DwStageConfig(vector=1, run=2, rows=5, row_lanes=2),
    "taps innermost": DwStageConfig(vector=3, rows=4, row_lanes=2, dy_quad=1),
    "groups of lanes": DwStageConfig(vector=3, rows=4, row_lanes=2, dy_quad=1, joins=3),
    "slices of images": DwStageConfig(vector=2, rows=2, slices=2, images_in_flight=2),
    "whole planes": DwStageConfig(dy_quad=1, slices=3, whole=True),
}
CASES = [(op, name) for op in OPS for name in {**FORMS, **(DW_FORMS if op == "conv_dw" else {})}]


def of_op(op: str, config: StageConfig) -> StageConfig:
    """The config as conv_dw wants it, where it is one for all ops."""
    return DwStageConfig(**dataclasses.asdict(config)) if op == "conv_dw" and not isinstance(config, DwStageConfig) else config


def check_te(spec: ConvSpec, config: StageConfig, **rest: Any) -> None:
    import tvm

    module = tvm.IRModule({"main": part_func(spec, spec.channels, of_op(spec.op, config))})
    check(spec, compiled(module), workspace=space_of(spec, module), note=config, **rest)


@pytest.mark.parametrize(
    ("op", "name", "stride", "padding"),
    sampled(
        [(op, name, *step) for op, name in CASES for step in (STEPS if op != "conv_dw" else STEPS[::2])],
        pairs=lambda *_: (),
        once=lambda op, name, stride, padding: ((op, name), (op, stride, padding)),
    ),
)
def test_every_form_computes_the_same(op: str, name: str, stride: tuple[int, int], padding: str) -> None:
    check_te(spec_of(op, 2, 5, 7, FREE, stride, padding), {**FORMS, **DW_FORMS}[name], batches=(2,))


@pytest.mark.parametrize("op", ["conv", "conv_dx"])
@pytest.mark.parametrize("quad", [2, 4])
@pytest.mark.parametrize("config", [StageConfig(), StageConfig(vector=4), StageConfig(vector=4, reduce=True)], ids=["plain", "vectors", "tap loop"])
def test_columns_staged_in_groups(op: str, quad: int, config: StageConfig) -> None:
    config = dataclasses.replace(config, quad=quad, halo=4, pitch=4)
    check_te(spec_of(op, 2, 3, 8, line(22.5, k=7)), config, batches=(2,))


@pytest.mark.parametrize(
    ("spec", "config"),
    [
        (spec_of("conv", 1, 4, 6, line(0, k=3)), StageConfig(halo=4, pitch=4, quad=4)),  # the row is not whole groups
        (spec_of("conv", 1, 4, 8, line(0, k=3)), StageConfig(halo=1, pitch=4, quad=4)),  # nor is the halo
        (spec_of("conv", 1, 4, 8, line(0, k=3)), StageConfig(halo=4, pitch=1, quad=4)),  # nor the pitch
        (spec_of("conv", 1, 4, 8, line(0, k=3), 2), StageConfig(halo=4, pitch=4, quad=4)),
        (spec_of("conv", 1, 4, 8, line(0, k=3), padding="circular"), StageConfig(halo=4, pitch=4, quad=4)),
        (spec_of("conv_dw", 1, 4, 6, line(0, k=3)), DwStageConfig(vector=2, run=4, dy_quad=4)),
    ],
    ids=["width", "halo", "pitch", "stride", "circular", "dy"],
)
def test_columns_that_cannot_be_grouped_are_refused(spec: ConvSpec, config: StageConfig) -> None:
    with pytest.raises(InvalidArgument, match="4 at a time"):
        part_func(spec, 1, of_op(spec.op, config))


@pytest.mark.parametrize("op", OPS)
def test_no_live_tap_gives_zeros(op: str) -> None:
    for config in (StageConfig(), StageConfig(vector=4, reduce=True)):
        check_te(spec_of(op, 2, 3, 4, Taps.from_offsets([[[3, 0], [0, 4]]])), config, batches=(2,))


@pytest.mark.parametrize("op", OPS)
def test_float64_is_summed_in_float64(op: str) -> None:
    check_te(spec_of(op, 2, 6, 5, line(45, k=7), (2, 1), dtype="float64"), StageConfig(vector=4, halo=4, pitch=4))


@pytest.mark.parametrize("op", OPS)
def test_a_batch_may_be_fixed(op: str) -> None:
    check_te(spec_of(op, 2, 4, 5, line(45, k=3)), StageConfig(batch=2), batches=(2,))
    with pytest.raises(Exception, match="shape"):
        check_te(spec_of(op, 2, 4, 5, line(45, k=3)), StageConfig(batch=2), batches=(3,))
