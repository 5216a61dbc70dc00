"""The layers: a package imports only from lower ones. Read from the source, so imports inside functions and under TYPE_CHECKING count."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sources import NAMES, ROOT, file_graph, imports, module_of

# lowest first: a package, or a file of the top folder, imports from lower lines alone; neighbours on a line never import one another
LAYERS = (
    ("errors", "notices", "forks"),
    ("env",),
    ("problem",),
    ("toolchain", "sass", "records"),
    ("perf_model",),
    ("codegen",),
    ("schedules",),
    ("compiler",),
    ("evaluate", "kernels"),
    ("tuning", "runtime"),
    ("ops",),
    ("functional", "bench"),
    ("nn",),
    ("tools", "torch_hook"),
    ("__init__",),
    ("cli",),
    ("__main__",),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
# what loads slowly or may be missing, and the packages that may import it; everything else about third parties is in pyproject.toml
MAY_IMPORT = {
    "tvm": {"toolchain", "codegen", "schedules", "compiler", "evaluate", "tuning"},
    "tvm_ffi": {"toolchain", "codegen", "compiler", "runtime", "evaluate", "tuning"},
    "torch": {"toolchain", "evaluate", "tuning", "runtime", "ops", "functional", "bench", "nn", "tools", "cli"},
    "matplotlib": {"tools"},
}
NEVER = {("tuning", "kernels")}  # beside the order: they meet in the records
MAX_LINES = 400
TESTS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py"))


def unit_of(module: tuple[str, ...]) -> str:
    """Return the name that LAYERS has for a module of the package, or the name that it lacks."""
    return module[1] if len(module) > 1 else "__init__"


def why_not(module: tuple[str, ...], target: tuple[str, ...]) -> str | None:
    """Return why a module may not import a target; None where it may."""
    unit, top = unit_of(module), target[0]
    if top in ("schedules", "tuning_logs"):
        return f"makes a second copy of the package: import it as tvm_orient.{top}"
    if top in MAY_IMPORT and unit not in MAY_IMPORT[top]:
        return f"only {', '.join(sorted(MAY_IMPORT[top]))} may import {top}"
    if top != "tvm_orient":
        return None
    other = target[1] if len(target) > 1 and target[1] in LAYER else "__init__"
    if len(target) > 2 and target[1] not in LAYER:
        return f"{target[1]} has no layer: add it to LAYERS in {Path(__file__).name}"
    if other == unit or (LAYER[other] < LAYER[unit] and (unit, other) not in NEVER):
        return None
    return f"{unit} is on layer {LAYER[unit]}, {other} on layer {LAYER[other]}"


def breaches(name: str, source: str) -> list[str]:
    """Return every import of a file that breaks the layers, as file:line: what, why."""
    module = module_of(name)
    found = ((line, target, why_not(module, target)) for line, target in imports(source, module))
    return [f"{name}:{line}: {'.'.join(target)}: {reason}" for line, target, reason in found if reason]


def circle(edges: dict[str, set[str]]) -> list[str]:
    """Return the nodes of a circle in a graph, in order, the first one repeated at the end; empty where there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            if found := visit(other, [*path, node]):
                return found
        done.add(node)
        return []

    for node in sorted(edges):
        if found := visit(node, []):
            return found
    return []


@pytest.mark.parametrize("name", NAMES)
def test_imports_only_from_lower_layers(name: str) -> None:
    unit = unit_of(module_of(name))
    assert unit in LAYER, f"{name} has no layer: add {unit!r} to LAYERS in {Path(__file__).name}, one above the highest package that it imports"
    found = breaches(name, (ROOT / name).read_text())
    assert not found, "\n".join(["imports against the layers:", *found])


def test_no_file_imports_itself_by_way_of_others() -> None:
    assert circle(file_graph((name, (ROOT / name).read_text()) for name in NAMES)) == []


def test_a_circle_is_seen() -> None:
    files = [("tvm_orient/a.py", "from .b import x"), ("tvm_orient/b.py", "def f():\n    from . import c"), ("tvm_orient/c.py", "import tvm_orient.a")]
    assert circle(file_graph(files)) == ["tvm_orient.a", "tvm_orient.b", "tvm_orient.c", "tvm_orient.a"]
    assert circle(file_graph(files[:2])) == []


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("tvm_orient/env.py", "from .problem.spec import ConvSpec", "env is on layer 1, problem on layer 2"),
        ("tvm_orient/problem/taps.py", "from .. import records", "problem is on layer 2, records on layer 3"),
        ("tvm_orient/problem/taps.py", "import tvm_orient.compiler.lower", "problem is on layer 2, compiler on layer 7"),
        ("tvm_orient/problem/taps.py", "import importlib\nimportlib.import_module('..ops', __package__)", "problem is on layer 2"),
        ("tvm_orient/problem/taps.py", "if TYPE_CHECKING:\n    from tvm_orient.ops import conv", "problem is on layer 2, ops on layer 10"),
        ("tvm_orient/problem/spec.py", "def f():\n    import torch.nn", "may import torch"),
        ("tvm_orient/runtime/serving.py", "def f():\n    from tvm import te", "may import tvm"),
        ("tvm_orient/records/store.py", "from .. import VERSION", "__init__ on layer 14"),
        ("tvm_orient/tuning/tune.py", "from ..kernels.build import build", "tuning is on layer 9, kernels on layer 8"),
        ("tvm_orient/kernels/cache.py", "from ..evaluate.reference import conv", "kernels is on layer 8, evaluate on layer 8"),
        ("tvm_orient/functional.py", "from .cli import app", "cli on layer 15"),
        ("tvm_orient/kernels/build.py", "from schedules.base import Template", "second copy"),
        ("tvm_orient/kernels/build.py", "from ..news.paper import today", "news has no layer"),
        ("schedules/cuda/direct.py", "from ...records.store import read", None),
        ("schedules/cuda/direct.py", "from ...compiler import lower", "schedules is on layer 6, compiler on layer 7"),
        ("tvm_orient/cli/explain.py", "import matplotlib", "may import matplotlib"),
    ],
)
def test_the_check_sees(name: str, source: str, reason: str | None) -> None:
    found = breaches(name, source)
    assert [reason in one for one in found] == [True] if reason else found == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tvm_orient/ops/calls.py", "import torch\nfrom ..runtime.serving import kernel\nfrom ..problem.spec import ConvSpec"),
        ("tvm_orient/runtime/loader.py", "import tvm_ffi"),
        ("tvm_orient/cli/tune.py", "from .output import table\nfrom ..tuning.tune import tune\nfrom .. import records"),
        ("schedules/cuda/direct.py", "from ..base import Template\nfrom .. import base\nfrom tvm_orient.codegen.te.config import StageConfig"),
    ],
)
def test_the_check_lets_pass(name: str, source: str) -> None:
    assert breaches(name, source) == []


@pytest.mark.parametrize("name", NAMES)
def test_no_assert_and_not_too_long(name: str) -> None:
    source = (ROOT / name).read_text()
    lines = [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assert)]
    assert not lines, f"{name} asserts on lines {lines}: raise a tvm_orient.errors class, an assert vanishes under -O"
    length = len(source.splitlines())
    assert length <= MAX_LINES, f"{name} has {length} lines, {MAX_LINES} at most: is it one job?"


@pytest.mark.parametrize("name", TESTS)
def test_tests_are_not_too_long(name: str) -> None:
    length = len((ROOT / name).read_text().splitlines())
    assert length <= MAX_LINES, f"{name} has {length} lines, {MAX_LINES} at most: is it one subject?"


def test_import_is_light() -> None:
    code = "import json, sys, tvm_orient; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"tvm", "typer", "click", "matplotlib"}.intersection(json.loads(done.stdout.splitlines()[-1]))
