"""The template that docs/design.md shows is one: it serves, is compared, runs and is right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.helpers import check_serial, choice_of, line, spec_of
from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.compiler import library, lower
from tvm_orient.problem.device import arch_device
from tvm_orient.schedules import registry
from tvm_orient.schedules.base import Config, Template
from tvm_orient.schedules.choices import Choice

PAGE = Path(__file__).resolve().parents[2] / "docs" / "design.md"
GPU = arch_device("sm_90a")


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[Template]:
    """The one of the page, last in the list."""
    found = re.search(r"<!-- template -->\n\n```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    assert found
    names = {"Template": Template, "Config": Config, "StageConfig": StageConfig, "dataclass": dataclass}
    exec(compile(found[1], str(PAGE), "exec"), names)
    added = names["TEMPLATE"]
    assert isinstance(added, Template)
    monkeypatch.setattr(registry, "TEMPLATES", (*registry.TEMPLATES, added))
    registry._estimated.cache_clear()
    registry._chosen.cache_clear()
    yield added
    registry._estimated.cache_clear()
    registry._chosen.cache_clear()


@pytest.mark.parametrize("case", [(3, 9, 13, line(22.5, k=7)), (2, 5, 40, line(0, k=15)), (2, 6, 7, line(90, k=3))])
def test_it_runs_and_is_right(case: tuple[object, ...], template: Template) -> None:
    spec = spec_of("conv", *case)
    assert template.declines(spec, GPU) is None
    for threads in template.knobs(spec, GPU)["threads"]:
        assert template.invalid(spec, GPU, {"threads": threads}) is None
        check_serial(spec, [choice_of(template, {"threads": threads})])
    assert "(32) main_kernel" in library.cuda_source(lower.scheduled(spec, GPU, [Choice.of(template, template.default(spec, GPU))]), GPU)


def test_it_is_compared_with_the_others(template: Template) -> None:
    spec = spec_of("conv", 64, 28, 28, line(0, k=7))
    (own,) = (one for one in registry.compare(spec, GPU)[0] if one[0] is template)
    assert own[2] == {"memory": pytest.approx(2 * 7 * 32 / 28)}
    assert len(registry._estimated(spec, GPU)) > 1, "a template without an estimate would end the comparison"
    assert template not in registry.candidates(spec_of("conv", 64, 28, 28, line(0, k=31)), GPU)[0]
    assert registry.candidates(spec_of("conv", 64, 28, 28, line(0, k=31)), GPU)[1]["one_pixel"] == "for stride 1 and at most 15 taps"


def test_a_list_of_reasons_names_every_method_of_a_template() -> None:
    """What a template may define stands in the page."""
    page = PAGE.read_text()
    told = page[page.index("## Add a template") : page.index("## Write documentation")]
    for name, thing in vars(Template).items():
        if callable(thing) and not name.startswith("__") and name not in ("declines", "invalid", "worth_estimating"):
            assert f"`{name}(" in told, name
    for name in Template.__annotations__:
        assert f"`{name}`" in told, name
