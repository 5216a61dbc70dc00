"""The documentation builds without a warning, holds every public name, and its pictures are what the library computes today."""

from __future__ import annotations

import ast
import importlib
import inspect
import pydoc
import re
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_orient as to
from benchmarks.report import page_tables
from tests.support.once import once
from tvm_orient.evaluate import reference
from tvm_orient.problem import device

ROOT = Path(__file__).resolve().parents[2]
# modules whose public names are all in the reference
DOCUMENTED = (
    "errors", "problem.taps", "problem.device", "evaluate.reference", "evaluate.tolerance", "kernels.resolve", "kernels.build", "kernels.build_key",
    "kernels.bundle", "kernels.cache", "kernels.manifest", "tuning.tune", "records.store", "records.merge",
    "tools.plots.taps", "tools.plots.responses", "tools.plots.speed",
    "nn.oriented", "nn.published", "nn.moving",
)  # fmt: skip
# errors that docstrings may name beside those of tvm_orient.errors
OTHER_ERRORS = (
    "FileNotFoundError", "IndexError", "Interrupted", "KeyboardInterrupt", "OSError", "TooBusy", "TypeError", "Unreadable", "ValueError",
)  # fmt: skip
# modules of which some are: those that a page lists one by one
LISTED = {
    "functional": ("oriented_conv2d", "tap_conv2d", "warmup"),
    "runtime.makings": ("compiling", "Compiling"),
    "problem.spec": ("ConvSpec",),
    "problem.line_offsets": ("angles_between", "from_degrees", "in_radians", "oriented_offsets"),
    "kernels.source_hash": ("source_hash",),
    "toolchain.versions": ("toolchain",),
    "tuning.result": ("Progress", "Outcome", "Interrupted", "TooBusy"),
    "records.record": ("Record",),
}


def own(module: str) -> dict[str, Any]:
    """The public functions and classes that a module defines."""
    found = importlib.import_module(f"tvm_orient.{module}")
    return {name: thing for name, thing in vars(found).items() if not name.startswith("_") and getattr(thing, "__module__", "") == found.__name__}


@pytest.fixture(scope="module")
def site(shared: Path) -> Path:
    """The pages, as `make docs` builds them."""
    pytest.importorskip("sphinx", reason="the docs extra is not installed")

    def make(out: Path) -> None:
        command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q", "-E", "-d", str(out / "state"), "docs", str(out / "html")]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not done.stderr.strip(), done.stderr

    return once(shared / "site", make) / "html"


def described(site: Path) -> set[int]:
    """The identity of everything that the pages describe, under whatever name."""
    from sphinx.util.inventory import InventoryFile

    read = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return {id(pydoc.locate(name)) for kind, items in read.data.items() if kind.startswith("py:") for name in items}


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    shown = described(site)
    things = {f"tvm_orient.{name}": getattr(to, name) for name in to.__all__ if name != "nn"}
    for module in (*DOCUMENTED, *LISTED):
        for name, thing in own(module).items():
            if name in LISTED.get(module, (name,)) and (inspect.isclass(thing) or inspect.isfunction(thing)):
                things[f"tvm_orient.{module}.{name}"] = thing
    assert not [name for name, thing in things.items() if id(thing) not in shown]


def test_a_page_for_everything_and_no_broken_picture(site: Path) -> None:
    for page in ("index", "semantics", "transforms", "tuning", "performance", "design", "api/index", "api/functions"):
        assert (site / f"{page}.html").is_file(), page
    shown = set(re.findall(r'src="_images/([\w.]+)"', (site / "semantics.html").read_text()))
    assert {f"{path.stem}.svg" for path in (ROOT / "docs" / "img").glob("*.svg")} == shown


def test_docstrings_read_as_they_are_meant(site: Path) -> None:
    """A line such as `batch: N.` would start a list with letters, and a colon in an attribute's docstring would end its type."""
    for page in (site / "api").glob("*.html"):
        found = re.findall(r'<ol class="[^"]*alpha|>Type<span class="colon">|class="system-message', page.read_text())
        assert not found, f"{page.name}: {found}"


def test_nothing_is_fetched_by_a_reader(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]*"', page.read_text()), page


def test_the_operators_page_has_the_schemas() -> None:
    page = (ROOT / "docs" / "api" / "ops.rst").read_text()
    for op in (to.ops.conv, to.ops.conv_dx, to.ops.conv_dw):
        assert f"   {op._schema}\n" in page


def documented() -> list[tuple[str, Any]]:
    """The public functions and classes, and the public methods of the classes."""
    found = [(f"{module}.{name}", thing) for module in (*DOCUMENTED, *LISTED) for name, thing in own(module).items() if callable(thing)]
    methods = [
        (f"{name}.{method}", getattr(thing, method))
        for name, thing in found
        if inspect.isclass(thing)
        for method, body in vars(thing).items()
        if not method.startswith("_") and isinstance(body, classmethod | property) | inspect.isfunction(body)
    ]
    return found + methods


@pytest.mark.parametrize(("name", "thing"), [pytest.param(name, thing, id=name) for name, thing in documented()])
def test_docstrings(name: str, thing: Any) -> None:
    """Each has one; what its Args section names are its parameters; an error stands on a line of its own, and exists."""
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    sections = dict(re.findall(r"^(Args|Raises):\n((?:[ ]{4}.*\n?|\n)+)", text + "\n", flags=re.M))
    heads = {section: re.findall(r"^[ ]{4}(\S[^:\n]*):", body, flags=re.M) for section, body in sections.items()}
    if "Args" in heads:
        takes = inspect.signature(thing).parameters
        named = [argument for head in heads["Args"] for argument in head.split(", ")]
        assert set(named) <= set(takes), f"{name} takes {list(takes)}"
    for line in sections.get("Raises", "").splitlines():
        assert not re.search(r"\. [A-Z]\w+: ", line), f"{name}: one error a line: {line.strip()}"
    if inspect.isfunction(thing):
        body = ast.walk(ast.parse(textwrap.dedent(inspect.getsource(thing))))
        raised = {ast.unparse(node.exc.func) for node in body if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)}
        assert all(error in sections.get("Raises", "") for error in raised), f"{name} raises {raised}"
    for error in (error for head in heads.get("Raises", []) for error in head.split(", ")):
        assert hasattr(to, error) or error in OTHER_ERRORS, f"{name} raises {error}, no error of ours"


@pytest.mark.long
def test_pictures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    pinned = re.search(r"^matplotlib==(.*)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
    assert pinned
    if version("matplotlib") != pinned[1]:
        pytest.skip(f"matplotlib is {version('matplotlib')}; the pictures were drawn with {pinned[1]}")
    done = subprocess.run([sys.executable, "docs/pictures.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    committed = {path.name: path for path in (ROOT / "docs" / "img").glob("*.svg")}
    drawn = {path.name: path for path in tmp_path.glob("*.svg")}
    assert set(committed) == set(drawn)
    stale = [name for name, path in drawn.items() if path.read_bytes() != committed[name].read_bytes()]
    assert not stale, f"{stale} are not what docs/pictures.py draws: run `make docs-pictures`"
    assert all(path.stat().st_size < 150_000 for path in drawn.values())


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs").glob("*.md")))
def test_tests_that_a_page_names_exist(page: str) -> None:
    for file, name in re.findall(r"`([\w/]+\.py)::(test_\w+)`", (ROOT / "docs" / page).read_text()):
        assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text(), f"{page}: {file} has no {name}"


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_pages_read_well_in_a_browser(page: str) -> None:
    """Code fits the width that wide.css gives it; a link is called by what it leads to, not by a file of the repository; a table ends with an empty line."""
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```(\S*).*?\n(.*?)^```$", text, flags=re.S | re.M)
    code = [line for kind, block in blocks if not kind.startswith("{") for line in block.splitlines()]
    assert not [line for line in code if len(line) > 100]
    assert not re.findall(r"\[(?:docs|tuning_logs)/[^]]*\]", text)
    assert not re.findall(r"^\|.*\|\n(?=[^|\n])", text, flags=re.M)


def test_the_table_of_versions_is_that_of_the_package() -> None:
    rows = dict(re.findall(r"^\| ([\w-]+) \| (.*) \|$", (ROOT / "docs" / "faq.md").read_text(), flags=re.M))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert project["requires-python"] == f">={rows['Python'].removesuffix(' or later')}"
    assert f"torch>={rows['PyTorch'].removesuffix(' or later')}" in extras["torch"]
    assert f"apache-tvm=={rows['apache-tvm']}" in extras["compile"]
    least, below = rows["apache-tvm-ffi"].split(" or later, below ")
    assert f"apache-tvm-ffi>={least},<{below}" in project["dependencies"]
    assert all(f">={rows['CUDA'].partition(',')[0]},<14" in need for need in extras["compile"] if need.startswith(("cuda", "nvidia")))
    assert rows["GPU"].startswith("compute capability 8.0 to {}.{}; 7.5 by".format(*device.capability(device.archs()[-1])))


def test_the_readme_says_what_the_op_is() -> None:
    """The few lines of PyTorch under "Equivalent to"."""
    found = re.search(r"## Equivalent to\n.*?```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    assert found
    names: dict[str, Any] = {"torch": torch, "F": torch.nn.functional}
    exec(found[1], names)
    x, weight = torch.randn(2, 6, 16, 17), torch.randn(6, 31)
    for theta in (0.0, 0.4, 1.2, 2.5):
        assert torch.allclose(names["oriented"](x, weight, theta).double(), reference.conv(x, weight, to.Taps.oriented(theta, 31)), atol=1e-5)


def test_tables_are_those_of_the_files() -> None:
    """`python -m benchmarks.report.page_tables` would change nothing."""
    page = page_tables.PAGE.read_text()
    assert len(page_tables._MARKED.findall(page)) == 22
    assert page_tables.documented(page) == page
