"""The floors: a file imports only from lower ones. Read from the source, so imports inside functions and under TYPE_CHECKING count."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# lowest first; "schedules" and "cli" are whole packages, "__init__" is tvm_orient itself
FLOORS = {
    name: floor
    for floor, names in enumerate(
        (
            "errors forks paths taps served cpus notices labels moving",
            "spec device form figures banks habits",
            "reference gather epilogue compute channels_last merge rewrite pipeline staging batches halves guarded predicated anysize serial published peers "
            "timers tvmkit nvrtc sass integers floats hazards operands execute lines leaning trace bound estimate whole pool expressions image_sums "
            "unrolled_dw views refusal driverless foreign cost rounding plausible confined",
            "schedules",
            "logs lookup lower search",
            "tune build compiler cache shared measure workshop journal predict contest quiet",
            "checks kernels launch ops speeds compiling",
            "functional angled published_module nn aot bench plots demo doctor doctor_files transforms flops registration scripted __init__",
            "cli __main__",
        )
    )
    for name in names.split()
}
# (file, what it may import) inside one floor
SAME_FLOOR = {
    ("paths", "errors"),
    ("served", "errors"),
    ("moving", "errors"),
    ("taps", "errors"),
    ("taps", "notices"),
    ("compute", "tvmkit"),
    ("compute", "gather"),
    ("compute", "epilogue"),
    ("epilogue", "tvmkit"),
    ("channels_last", "compute"),
    ("channels_last", "gather"),
    ("channels_last", "tvmkit"),
    ("serial", "tvmkit"),
    ("whole", "gather"),
    ("whole", "estimate"),
    ("build", "compiler"),
    ("build", "cache"),
    ("build", "shared"),
    ("compiler", "cache"),
    ("shared", "cache"),
    ("lookup", "logs"),
    ("tune", "workshop"),
    ("tune", "journal"),
    ("tune", "contest"),
    ("tune", "quiet"),
    ("contest", "measure"),
    ("workshop", "measure"),
    ("merge", "tvmkit"),
    ("rewrite", "tvmkit"),
    ("pipeline", "rewrite"),
    ("pipeline", "tvmkit"),
    ("staging", "pipeline"),
    ("anysize", "gather"),
    ("peers", "published"),
    ("trace", "sass"),
    ("trace", "integers"),
    ("operands", "floats"),
    ("operands", "hazards"),
    ("operands", "integers"),
    ("operands", "sass"),
    ("operands", "trace"),
    ("execute", "floats"),
    ("execute", "hazards"),
    ("execute", "integers"),
    ("execute", "operands"),
    ("execute", "sass"),
    ("execute", "trace"),
    ("bound", "trace"),
    ("estimate", "gather"),
    ("compute", "lines"),
    ("compute", "unrolled_dw"),
    ("compute", "expressions"),
    ("compute", "image_sums"),
    ("unrolled_dw", "compute"),
    ("unrolled_dw", "gather"),
    ("unrolled_dw", "expressions"),
    ("unrolled_dw", "image_sums"),
    ("unrolled_dw", "tvmkit"),
    ("image_sums", "expressions"),
    ("image_sums", "gather"),
    ("image_sums", "tvmkit"),
    ("expressions", "tvmkit"),
    ("confined", "tvmkit"),
    ("leaning", "rewrite"),
    ("leaning", "tvmkit"),
    ("lines", "expressions"),
    ("lines", "rewrite"),
    ("channels_last", "expressions"),
    ("channels_last", "image_sums"),
    ("lines", "compute"),
    ("lines", "gather"),
    ("lines", "tvmkit"),
    ("bound", "sass"),
    ("launch", "kernels"),
    ("compiling", "checks"),
    ("kernels", "checks"),
    ("driverless", "pool"),
    ("ops", "checks"),
    ("ops", "launch"),
    ("nn", "functional"),
    ("nn", "angled"),
    ("nn", "published_module"),
    ("published_module", "angled"),
    ("published_module", "functional"),
    ("nn", "scripted"),
    ("published_module", "scripted"),
    ("functional", "transforms"),
    ("doctor", "doctor_files"),
    ("demo", "functional"),
    ("demo", "nn"),
    ("demo", "bench"),
    ("demo", "plots"),
    ("__init__", "functional"),
    ("__init__", "nn"),
    ("__init__", "aot"),
    ("__init__", "registration"),
    ("registration", "flops"),
    ("__main__", "cli"),
}
EXTENDS = {
    "strips": "shared_patch",
    "shared_patch": "patches",
    "conv_dw": "two_pass",
    "strips_dw": "two_pass",
    "rows": "unrolled",
    "pixels": "unrolled",
}  # what a template is or schedules as, in part
NEITHER_SEES_THE_OTHER = ("tune", "build")  # they meet in the records
MAY_IMPORT_TVM = {
    "compute",
    "epilogue",
    "channels_last",
    "merge",
    "lines",
    "leaning",
    "expressions",
    "image_sums",
    "unrolled_dw",
    "confined",
    "rewrite",
    "pipeline",
    "serial",
    "search",
    "tvmkit",
    "nvrtc",
    "schedules",
    "lower",
    "tune",
    "build",
    "measure",
    "predict",
}
LOWEST_WITH_TORCH_OR_TVM = 2
MOST_LINES = 400

FILES = sorted(path for folder in ("tvm_orient", "schedules") for path in (ROOT / folder).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]


def module_of(name: str) -> tuple[str, ...]:
    """The dotted path, in parts, of a file named from the root: schedules/cuda/rows.py is tvm_orient.schedules.cuda.rows."""
    parts = Path(name).with_suffix("").parts
    return parts if parts[0] == "tvm_orient" else ("tvm_orient", *parts)


def unit_of(module: tuple[str, ...]) -> str:
    """The name that FLOORS has for a module of the package, or the name that it lacks."""
    return module[1] if len(module) > 1 else "__init__"


def imports(source: str, module: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, dotted path in parts) of everything imported anywhere; `from a import b` gives a.b, relative ones are resolved."""
    package = module[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, tuple(alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            for alias in node.names:
                yield node.lineno, (*base, alias.name)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module", "__import__"):
            for text in (arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)):
                yield node.lineno, (package if text.startswith(".") else ()) + tuple(part for part in text.split(".") if part)


def why_not(module: tuple[str, ...], target: tuple[str, ...]) -> str | None:
    """Why a module may not import a target; None where it may."""
    unit, top = unit_of(module), target[0]
    if top in ("schedules", "tuning_logs"):
        return f"makes a second copy of the package: import it as tvm_orient.{top}"
    if top in ("torch", "tvm", "tvm_ffi") and FLOORS[unit] < LOWEST_WITH_TORCH_OR_TVM:
        return f"floor {FLOORS[unit]} knows neither torch nor tvm"
    if top == "tvm" and unit not in MAY_IMPORT_TVM:
        return f"only {', '.join(sorted(MAY_IMPORT_TVM))} may import tvm: it costs 3 s, and a cached kernel needs none of it"
    if top != "tvm_orient":
        return None
    other = target[1] if len(target) > 1 and target[1] in FLOORS else "__init__"
    if len(target) > 2 and target[1] not in FLOORS:
        return f"{target[1]} has no floor: add it to FLOORS in {Path(__file__).name}"
    if other == unit:
        return why_not_inside(module, target)
    if FLOORS[other] < FLOORS[unit] or (unit, other) in SAME_FLOOR:
        return None
    return f"{unit} is on floor {FLOORS[unit]}, {other} on floor {FLOORS[other]}"


def why_not_inside(module: tuple[str, ...], target: tuple[str, ...]) -> str | None:
    """The same inside one package: a schedule template may import base and what it extends; an __init__ gathers the templates of its package."""
    if unit_of(module) != "schedules" or "base" in target or module[-1] == "__init__" or EXTENDS.get(module[-1]) in target:
        return None
    return "a template imports schedules/base and no other schedule"


def breaches(name: str, source: str) -> list[str]:
    """Every import of a file that breaks the floors, as file:line: what, why."""
    module = module_of(name)
    found = ((line, target, why_not(module, target)) for line, target in imports(source, module))
    return [f"{name}:{line}: {'.'.join(target)}: {reason}" for line, target, reason in found if reason]


@pytest.mark.parametrize("name", NAMES)
def test_imports_only_from_lower_floors(name: str) -> None:
    unit = unit_of(module_of(name))
    assert unit in FLOORS, f"{name} has no floor: add {unit!r} to FLOORS in {Path(__file__).name}, one above the highest file that it imports"
    found = breaches(name, (ROOT / name).read_text())
    assert not found, "\n".join(["imports against the floors:", *found])


def test_tune_and_build_never_reach_each_other() -> None:
    reach = {unit: {b for a, b in SAME_FLOOR if a == unit} for unit in FLOORS}
    for _ in FLOORS:
        reach = {unit: seen.union(*(reach[other] for other in seen)) for unit, seen in reach.items()}
    one, other = NEITHER_SEES_THE_OTHER
    assert other not in reach[one]
    assert one not in reach[other]


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("tvm_orient/taps.py", "from .spec import ConvSpec", "taps is on floor 0, spec on floor 1"),
        ("tvm_orient/taps.py", "from . import spec", "taps is on floor 0, spec on floor 1"),
        ("tvm_orient/taps.py", "import tvm_orient.spec", "taps is on floor 0, spec on floor 1"),
        ("tvm_orient/taps.py", "import importlib\nimportlib.import_module('.spec', __package__)", "taps is on floor 0, spec on floor 1"),
        ("tvm_orient/taps.py", "if TYPE_CHECKING:\n    from tvm_orient.ops import conv", "taps is on floor 0, ops on floor 6"),
        ("tvm_orient/spec.py", "def f():\n    import torch.nn", "knows neither torch nor tvm"),
        ("tvm_orient/launch.py", "def f():\n    from tvm import te", "may import tvm"),
        ("tvm_orient/logs.py", "from . import VERSION", "__init__ on floor 7"),
        ("tvm_orient/tune.py", "from .build import build", "tune is on floor 5, build on floor 5"),
        ("tvm_orient/checks.py", "from .launch import run", "checks is on floor 6, launch on floor 6"),
        ("tvm_orient/functional.py", "from .cli import app", "cli on floor 8"),
        ("tvm_orient/build.py", "from schedules.base import Rule", "second copy"),
        ("tvm_orient/build.py", "from .news import today", "news has no floor"),
        ("schedules/cuda/rows.py", "from .patch import Patch", "imports schedules/base and no other schedule"),
        ("schedules/cuda/rows.py", "from ...logs import read", "schedules is on floor 3, logs on floor 4"),
    ],
)
def test_the_check_sees(name: str, source: str, reason: str) -> None:
    found = breaches(name, source)
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("tvm_orient/ops.py", "import torch\nfrom .launch import run\nfrom .spec import ConvSpec"),
        ("tvm_orient/kernels.py", "import tvm_ffi"),
        ("tvm_orient/cli/run.py", "from .show import table\nfrom ..tune import tune\nfrom .. import logs"),
        ("schedules/cuda/rows.py", "from ..base import Rule\nfrom .. import base\nfrom ...spec import ConvSpec\nfrom tvm_orient.compute import conv"),
        ("schedules/cuda/__init__.py", "from . import rows\nfrom .patch import Patch"),
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
    assert length <= MOST_LINES, f"{name} has {length} lines, {MOST_LINES} at most: is it one job?"


def test_import_is_light() -> None:
    code = "import json, sys, tvm_orient; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"tvm", "typer", "click", "matplotlib"}.intersection(json.loads(done.stdout.splitlines()[-1]))
