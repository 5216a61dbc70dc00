"""Every CPU template, with its default and with every value of every knob, against the oracle."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest

from tests.support.cases import CPU_CASES as CASES
from tests.support.helpers import EIGHT, OPS, check_cpu, choice_of, covering, drawn, fitted, line, of_kind, spec_of, variations, with_template
from tests.support.sampling import facets, sampled
from tvm_orient.compiler import lower
from tvm_orient.errors import InvalidArgument, Unsupported
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.problem.spec import LAYOUTS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import Template
from tvm_orient.schedules.choices import Choice
from tvm_orient.schedules.tiling import divisors, most_dividing

CPU = cpu_device()
TEMPLATES = of_kind("cpu")
# few and small: each is built once for every value of every knob
RAGGED: tuple[Any, ...] = (2, 9, 21, line(22.5, k=5))
WRAPPED: tuple[Any, ...] = (2, 8, 10, line(67.5, k=5), (2, 2), "circular")
SWEEPS = [(t, fitted(t, spec_of(op, *case))) for t in TEMPLATES for op in t.ops for case in [WRAPPED if op == "conv_dx" else RAGGED]]
FIRST = ["odd", "stride 3x2", "circular, ragged stride", "wider than the plane", "float64"]
REAL = [
    spec_of(op, channels, size, size, Taps.oriented(EIGHT, k), stride)
    for op, (channels, size), k, stride in itertools.product(OPS, [(64, 224), (128, 56), (256, 28), (512, 14), (768, 7)], [7, 15, 31, 63], [1, 2])
]


@pytest.mark.parametrize(
    ("case", "op"), sampled(itertools.product(CASES, OPS), pairs=lambda case, op: facets(spec_of(op, *CASES[case])), once=lambda case, op: (case,))
)
def test_default(case: str, op: str) -> None:
    check_cpu(spec_of(op, *CASES[case]))


@pytest.mark.parametrize(
    ("template", "op", "case"),
    sampled(
        [(template, op, case) for template in TEMPLATES for op in template.ops for case in FIRST],
        pairs=lambda template, op, case: (template.name, *facets(fitted(template, spec_of(op, *CASES[case])))),
        once=lambda template, op, case: (case,),
    ),
)
def test_default_of_each_template(template: Template, op: str, case: str) -> None:
    """Those that are not the first choice work as well."""
    spec = fitted(template, spec_of(op, *CASES[case]))
    choices = with_template(template, spec, CPU)
    assert choices is not None, [template.declines(part, CPU) for _, _, part in spec.parts()]
    check_cpu(spec, choices, batches=(2,))


@pytest.mark.long
@pytest.mark.parametrize(("template", "spec"), SWEEPS, ids=lambda v: v.name if isinstance(v, Template) else v.key)
def test_every_knob(template: Template, spec: ConvSpec) -> None:
    """Each value of each knob, several at once."""
    for decisions in covering(template, spec, CPU):
        check_cpu(spec, [choice_of(template, decisions)], batches=(2,))


@pytest.mark.long
@pytest.mark.parametrize(("template", "spec"), SWEEPS, ids=lambda v: v.name if isinstance(v, Template) else v.key)
def test_every_knob_alone(template: Template, spec: ConvSpec) -> None:
    """Each value of each knob beside the other decisions of the default; and a reason for every step that is none."""
    valid = 0
    for decisions, reason in variations(template, spec, CPU):
        if reason is None:
            check_cpu(spec, [choice_of(template, decisions)], batches=(2,))
            valid += 1
        else:
            assert reason.strip()
    assert valid or not any(len(values) > 1 for values in template.knobs(spec, CPU).values())


@pytest.mark.parametrize(
    ("template", "op"), sampled([(t, op) for t in TEMPLATES for op in t.ops], pairs=lambda template, op: (template.name,), once=lambda template, op: (op,))
)
def test_decisions_drawn_at_random(template: Template, op: str) -> None:
    """What tuning may propose: all knobs away from the default at once."""
    spec = fitted(template, spec_of(op, 3, 14, 18, line(45, k=9), 1 if op == "conv" else 2))
    for decisions in drawn(template, spec, CPU):
        check_cpu(spec, [choice_of(template, decisions)], batches=(2,))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t.name)
def test_the_default_is_always_valid(template: Template) -> None:
    small = [spec_of(op, *case) for op in OPS for case in CASES.values()]
    served = 0
    for spec in small + REAL:
        for _, _, part in fitted(template, spec).parts():
            if template.declines(part, CPU) is None:
                served += 1
                default = template.default(part, CPU).decisions()
                assert template.invalid(part, CPU, default) is None, (part, default)
                assert all(type(value) is int for value in default.values())
    assert served > 100


def test_something_serves_every_spec() -> None:
    for spec in [spec_of(op, *case) for op in OPS for case in CASES.values()] + REAL:
        for _, _, part in spec.parts():
            for layout in LAYOUTS:
                registry.default(dataclasses.replace(part, layout=layout), CPU)


@pytest.mark.parametrize("template", registry.TEMPLATES, ids=lambda t: t.name)
def test_reasons_to_decline(template: Template) -> None:
    other = arch_device("sm_90a") if template.kind == "cpu" else CPU
    device = CPU if template.kind == "cpu" else arch_device("sm_90a")
    assert template.declines(spec_of(template.ops[0], 2, 8, 8, line(45, k=7)), other) == f"for {template.kind} only"
    for op in set(OPS) - set(template.ops):
        assert template.declines(spec_of(op, 2, 8, 8, line(45, k=7)), device) == f"for {', '.join(template.ops)} only"
    for op in template.ops:
        spec = fitted(template, spec_of(op, 2, 8, 8, line(45, k=7)))
        assert template.declines(spec, device) is None
        other_layout = dataclasses.replace(spec, layout="nchw" if spec.layout == "nhwc" else "nhwc")
        assert template.declines(other_layout, device) == f"for {spec.layout} only"


@pytest.mark.parametrize("template", registry.TEMPLATES, ids=lambda t: t.name)
def test_decisions_that_are_refused(template: Template) -> None:
    device = CPU if template.kind == "cpu" else arch_device("sm_90a")
    spec = fitted(template, spec_of(template.ops[0], 2, 8, 8, line(45, k=7)))
    default, knobs = template.default(spec, device).decisions(), template.knobs(spec, device)
    name = next(iter(knobs))
    assert f"{name} must be one of" in str(template.invalid(spec, device, {**default, name: 12345}))
    assert "12345" in str(template.invalid(spec, device, {**default, name: 12345}))
    assert "decisions must name" in str(template.invalid(spec, device, {**default, "spoon": 1}))
    assert "decisions must name" in str(template.invalid(spec, device, {k: v for k, v in default.items() if k != name}))


@pytest.mark.parametrize("template", registry.TEMPLATES, ids=lambda t: t.name)
def test_a_config_and_its_decisions_are_one_thing(template: Template[Any]) -> None:
    """Knobs, fields and decisions have the same names in the same order, and each is made of the other."""
    device = CPU if template.kind == "cpu" else arch_device("sm_90a")
    spec = fitted(template, spec_of(template.ops[0], 8, 8, 8, line(45, k=7)))
    config = template.default(spec, device)
    decisions = config.decisions()
    assert list(decisions) == list(template.knobs(spec, device)) == [field.name for field in dataclasses.fields(template.config_type)]
    assert template.config(decisions) == config == Choice.of(template, config).config
    name = next(iter(decisions))
    for wrong in ({**decisions, "spoon": 1}, {k: v for k, v in decisions.items() if k != name}):
        with pytest.raises(InvalidArgument, match="decisions must name"):
            template.config(wrong)
    for value in ("4", 4.0, True, None):
        with pytest.raises(InvalidArgument, match=f"{name} must be a whole number"):
            template.config({**decisions, name: value})  # type: ignore[dict-item]


def test_names_are_unique_and_found() -> None:
    names = [t.name for t in registry.TEMPLATES]
    assert len(names) == len(set(names))
    assert [registry.find(name).name for name in names] == names
    with pytest.raises(InvalidArgument, match="unknown template 'spoon'"):
        registry.find("spoon")


def test_a_spec_that_no_template_serves_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "TEMPLATES", tuple(t for t in registry.TEMPLATES if t.kind == "cuda"))
    with pytest.raises(Unsupported, match=r"no template serves conv-c2h8w8.*for cuda only"):
        registry.default(ConvSpec("conv", 2, 8, 8, line(45, k=7)), CPU)


def test_sums_of_a_patch_stay_in_registers() -> None:
    """A row of seven vectors by patches of two: LLVM keeps eight sums in registers, and stores each once, not with every multiply-add."""
    from tvm_orient.toolchain.tvm import load_tvm, target

    device, template = dataclasses.replace(CPU, vector_bytes=32), registry.find("cpu_rows")
    spec = spec_of("conv", 4, 56, 56, line(22.5, k=31))
    decisions = {"vector": 8, "patch_h": 4, "patch_v": 2, "band_patches": 14, "tap_outer": 1, "prefetch_planes": 0}
    assert template.invalid(spec, device, decisions) is None
    module = lower.scheduled(spec, device, [choice_of(template, decisions)])
    code = load_tvm().compile(module, target=target(CPU)).mod.inspect_source("ll")
    products, stores = code.count("@llvm.fmuladd.v8f32("), code.count("store <8 x float>")
    assert products >= 8 * len(spec.taps.distinct(0))
    assert stores < products / 4


def test_divisors() -> None:
    assert divisors(12, 5) == (1, 2, 3, 4)
    assert divisors(12, 100) == (1, 2, 3, 4, 6, 12)
    assert most_dividing(12, 5) == 4
    assert most_dividing(7, 5) == 1


@pytest.mark.parametrize("op", OPS)
def test_a_layer_of_eight_angles(op: str) -> None:
    """All angle groups merged into one function."""
    check_cpu(spec_of(op, 16, 6, 18, Taps.oriented(EIGHT, 5)), batches=(2,))
