"""Every CUDA template in its serial form on the CPU against the oracle, with every value of every knob."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.cases import CUDA_CASES as CASES
from tests.support.cuda import GPU, TEMPLATES
from tests.support.helpers import (
    EIGHT,
    OPS,
    check_blocks,
    check_serial,
    choice_of,
    covering,
    drawn,
    fitted,
    line,
    served,
    spec_of,
    variations,
    with_template,
)
from tests.support.sampling import facets, sampled
from tvm_orient.compiler import library, lower
from tvm_orient.problem.device import arch_device, recorded_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import Template
from tvm_orient.schedules.choices import Choice

SMALL_GPU = arch_device("sm_89")  # 99 KiB of shared memory a block
# each is built once for every value of every knob
RAGGED: tuple[Any, ...] = (4, 9, 12, line(22.5, k=5))
WRAPPED: tuple[Any, ...] = (4, 8, 10, line(67.5, k=5), 2, "circular")
SWEEPS = [(t, fitted(t, spec_of(op, *(WRAPPED if op == "conv_dx" else RAGGED)))) for t in TEMPLATES for op in t.ops]
FIRST = ["odd", "stride 3x2", "circular, ragged stride", "fewer channels than groups", "7x7", "B5: K=63 on 7x7", "one pixel"]
NETWORKS = [
    spec_of(op, channels, size, size, Taps.oriented([EIGHT[i] for i in (0, 1, 3, 6)], k), stride)
    for op in OPS
    for channels, size in [(64, 224), (96, 56), (384, 14), (768, 7), (10, 115)]
    for k in ((7, 31, 63) if size == 14 else (7, 31))
    for stride in (1, 2)
]


@pytest.mark.parametrize(
    ("case", "op"), sampled(itertools.product(CASES, OPS), pairs=lambda *_: (), once=lambda case, op: (case, *enumerate(facets(spec_of(op, *CASES[case])))))
)
def test_default(case: str, op: str) -> None:
    check_serial(spec_of(op, *CASES[case]), batches=(1, 3) if CASES[case][1] < 20 else (2,))


@pytest.mark.parametrize(
    ("template", "op", "case"),
    sampled(
        served(TEMPLATES, FIRST, CASES, GPU),
        pairs=lambda template, op, case: (template.name, *facets(fitted(template, spec_of(op, *CASES[case])))),
        once=lambda template, op, case: (case,),
    ),
)
def test_default_of_each_template(template: Template, op: str, case: str) -> None:
    """Those that are not the first choice work as well."""
    spec = fitted(template, spec_of(op, *CASES[case]))
    check_serial(spec, with_template(template, spec, GPU), batches=(2,))


@pytest.mark.long
@pytest.mark.parametrize(("template", "spec"), SWEEPS)
def test_every_knob(template: Template, spec: ConvSpec) -> None:
    """Each value of each knob, several at once; and a reason for every step from the default that is none."""
    tried, default = covering(template, spec, GPU), template.default(spec, GPU).decisions()
    for decisions in tried:
        check_serial(spec, [choice_of(template, decisions)], batches=(2,))
    for decisions, reason in variations(template, spec, GPU):
        changed = next(name for name in decisions if decisions[name] != default[name])
        assert reason is None or reason.strip()
        assert reason is not None or any(one[changed] == decisions[changed] for one in tried)
    assert tried or not any(len(values) > 1 for values in template.knobs(spec, GPU).values())


@pytest.mark.parametrize(
    ("template", "op"), sampled([(t, op) for t in TEMPLATES for op in t.ops], pairs=lambda template, op: (template.name,), once=lambda template, op: (op,))
)
def test_decisions_drawn_at_random(template: Template, op: str) -> None:
    """What tuning may propose: all knobs away from the default at once."""
    spec = fitted(template, spec_of(op, 8, 14, 18, line(45, k=9), 1 if op == "conv" else 2))
    for decisions in drawn(template, spec, GPU):
        check_serial(spec, [choice_of(template, decisions)], batches=(2,))


@pytest.mark.parametrize(
    "specs",
    [
        pytest.param([spec_of(op, *case) for op in OPS for case in CASES.values()] + NETWORKS[::5], id="some"),
        pytest.param(NETWORKS, id="networks", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_the_default_is_always_valid(template: Template, specs: list[ConvSpec]) -> None:
    device, served = SMALL_GPU, 0
    for spec in specs:
        for _, _, part in fitted(template, spec).parts():
            if template.declines(part, device) is None:
                served += 1
                default = template.default(part, device).decisions()
                assert template.invalid(part, device, default) is None, (part, default)
                assert all(type(value) is int for value in default.values())
    assert served > 10, "too few of these problems are served to say that it is always valid"


@pytest.mark.parametrize("op", OPS)
def test_tiles_of_columns(op: str) -> None:
    """Tiles that do not part the plane, in bands that do not either; with vectors and without. Whole rows of a strided plane cannot be loaded by vectors."""
    spec = spec_of(op, 4, 22, 60 if op != "conv_dx" else 72, line(22.5, k=9), 2)
    template = registry.find("two_pass_dw" if op == "conv_dw" else "shared_patch")
    rows = {"lanes_h": 2, "patches_per_lane": 1, "dy_shared": 0, "lanes_w": 7} if op == "conv_dw" else {"patches_h": 2, "store_via_smem": 0}
    common = {**template.default(spec, GPU).decisions(), "patch_h": 4, "patch_w": 2, "channels_per_block": 1, "row_pad": 0, **rows}
    for tile, vector in ((16 if op == "conv_dx" else 14, 4), (28, 1)):
        decisions = {**common, "tile": tile, "vector": vector}
        assert template.invalid(spec, GPU, decisions) is None
        check_serial(spec, [choice_of(template, decisions)], batches=(2,))
    check_blocks(spec, [choice_of(template, decisions)])
    if op == "conv_dx":
        assert "do not part into groups of 4" in str(template.invalid(spec, GPU, {**common, "tile": 28, "vector": 4}))
    else:
        assert "parted by the stride" in str(template.invalid(spec, GPU, {**common, "tile": 0, "vector": 4}))


@pytest.mark.parametrize("op", ["conv", "conv_dx"])
def test_angles_of_which_one_has_a_single_offset_lower_together(op: str) -> None:
    """On a plane of one column the first of these lines has one tap that lands. Its group has fewer threads than the other, so that none may hold a barrier."""
    spec = spec_of(op, 3, 13, 1, line(22.5, 90, k=7))
    parts = [part for _, _, part in spec.parts()]
    serving = [template for template in registry.TEMPLATES if all(template.declines(part, GPU) is None for part in parts)]
    assert serving
    for template in serving:
        choices = [Choice.of(template, template.default(part, GPU)) for part in parts]
        assert "main_kernel" in library.cuda_source(lower.scheduled(spec, GPU, choices), GPU), template.name


def test_no_room_for_rows_that_do_not_exist() -> None:
    """14 rows by 4 at once: TVM would stage 16, and planes would begin in other banks than the template chose."""
    spec, template = spec_of("conv_dw", 4, 28, 28, line(45, k=7), dtype="float16"), registry.find("two_pass_dw")
    decisions = {
        "patch_h": 7, "patch_w": 7, "lanes_w": 4, "lanes_h": 2, "patches_per_lane": 1, "channels_per_block": 4, "vector": 4, "dy_shared": 1, "row_pad": 0,
        "whole": 0, "tile": 0,
    }  # fmt: skip
    assert template.invalid(spec, GPU, decisions) is None
    source = library.cuda_source(lower.scheduled(spec, GPU, [choice_of(template, decisions)]), GPU)
    assert f"float dys_shared_ptr[{4 * 14 * 28}]" in source


@pytest.mark.parametrize("template", [t for t in TEMPLATES if "conv" in t.ops], ids=lambda t: t.name)
def test_no_weight_is_read_where_no_tap_lands(template: Template) -> None:
    """A schedule that stages weights must not look for them there."""
    spec = fitted(template, spec_of("conv", *CASES["no live tap"]))
    decisions = template.default(spec, GPU).decisions()
    check_serial(spec, [choice_of(template, {**decisions, **({"weights_shared": 1} if "weights_shared" in decisions else {})})], batches=(2,))


RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def test_choices_that_were_timed_are_of_todays_templates() -> None:
    """Else estimates could not be compared with their times, nor a kernel be built again."""
    device, timed = recorded_device("nvidia-h200", "sm_90a", 132), []
    for name in ("nvidia-h200-trials.csv", "nvidia-h200-counters.csv"):
        with (RESULTS / name).open(newline="") as file:
            for row in csv.DictReader(file):
                choices = json.loads(row["choices"]) if "choices" in row else [[row["template"], int(row["version"]), json.loads(row["decisions"]).items()]]
                parts = [part for _, _, part in ConvSpec.from_key(row["spec"]).parts()]
                timed += [(part, *choice[:2], dict(choice[2])) for part, choice in zip(parts, choices, strict=True)]
    assert len(timed) > 200
    for part, template, version, decisions in timed:
        assert registry.find(template).version == version, (template, version)
        assert registry.find(template).invalid(part, device, decisions) is None, (part, template, decisions)


def test_choices_of_the_static_tables_are_of_todays_templates() -> None:
    listed = 0
    for path in RESULTS.glob("static-*.csv"):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if "decisions" in row:
                    words = (word.partition("=") for word in row["decisions"].split())
                    assert registry.find(row["template"]).config({name: int(value) for name, _, value in words})
                    listed += 1
    assert listed > 400
