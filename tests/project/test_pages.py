"""Pages for contributors: files that they name exist, generated tables and the picture of layers are what the scripts write."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest

from tests.support import sources

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("CONTRIBUTING.md", "docs/glossary.md", "docs/templates.md", "docs/design.md", "docs/performance.md", "docs/wrong-result.md", *sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs" / "contributing").glob("*.md")
))  # fmt: skip
SOURCES = ("tvm_orient", "schedules", "benchmarks", "tests", "docs")


@pytest.fixture(scope="module")
def packages() -> ModuleType:
    """docs/packages.py as a module."""
    return sources.script("docs/packages.py")


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    named = set(re.findall(r"`((?:tvm_orient|schedules|tests/project|docs)/[\w/.-]*)`", (ROOT / page).read_text()))
    made_up = {"schedules/cuda/one_pixel.py", "docs/img/"}  # the template that design.md shows as an example
    assert not sorted(name for name in named - made_up if not (ROOT / name).exists())


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_without_a_folder_exist(page: str) -> None:
    """Such as `passes.py`, and the scripts that it says to run."""
    text, files = (ROOT / page).read_text(), {path.name for folder in SOURCES for path in (ROOT / folder).rglob("*.py")}
    assert not sorted(set(re.findall(r"`(\w+\.py)`", text)) - files)
    assert not sorted(run for run in re.findall(r"python (\w+/[\w/]+\.py)", text) if not (ROOT / run).exists())
    modules = [run.replace(".", "/") for run in re.findall(r"python -m ((?:benchmarks|tvm_orient)[\w.]*)", text)]
    assert not sorted(run for run in modules if not (ROOT / f"{run}.py").exists() and not (ROOT / run / "__main__.py").exists())


@pytest.mark.parametrize("page", PAGES)
def test_pages_that_a_page_links_to_exist(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", (ROOT / page).read_text())
    assert not sorted(link for link in links if not ((ROOT / page).parent / link).exists())


def test_the_table_of_packages_is_that_of_the_source(packages: ModuleType) -> None:
    for page in packages.PAGES:
        text = page.read_text()
        assert text.count("<!-- packages -->") == 1, page
        assert packages.documented(text) == text, f"{page.name}: run `make docs-pages`"


def test_the_picture_of_layers_is_that_of_the_source(packages: ModuleType, tmp_path: Path) -> None:
    pinned = re.search(r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert pinned
    if version("matplotlib") != pinned[1]:
        pytest.skip(f"matplotlib is {version('matplotlib')}; the picture was drawn with {pinned[1]}")
    packages.draw(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes() == packages.PICTURE.read_bytes(), "run `make docs-pages`"
