"""docs/templates.md is what its script writes, and says something of every template."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import sources
from tvm_orient.schedules.base import Generic, Template
from tvm_orient.schedules.registry import GENERIC, TEMPLATES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """docs/templates_page.py as a module."""
    return sources.script("docs/templates_page.py")


def test_the_page_is_what_the_script_writes(script: ModuleType) -> None:
    assert script.PAGE.read_text() == script.page(), "run `make docs-pages`"


@pytest.mark.parametrize("template", [pytest.param(template, id=template.name) for template in (*TEMPLATES, *GENERIC.values())])
def test_every_template_says_what_it_does(script: ModuleType, template: Template | Generic) -> None:
    text = inspect.cleandoc(type(template).__dict__["__doc__"])
    assert text.startswith("Computes "), f"{template.name}: the first sentence says what is computed"
    assert len(text.split()) > 30, f"{template.name}: how it does that is not said"
    for file in re.findall(r"`((?:tvm_orient|schedules)/[\w/]+\.py)`", text):
        assert (ROOT / file).is_file(), f"{template.name} names {file}"
