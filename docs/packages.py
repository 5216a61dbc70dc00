"""Writes the table of packages into docs/design.md and CONTRIBUTING.md, and draws docs/img/layers.png, from the source alone.

    python docs/packages.py

The order is LAYERS of tests/project/test_layers.py, which holds the source to it; what a package holds is the first sentence of its docstring;
an arrow of the picture is an import that stands in the source and does not follow from other arrows. The same matplotlib gives the same bytes.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "docs" / "design.md", ROOT / "CONTRIBUTING.md")
PICTURE = ROOT / "docs" / "img" / "layers.png"
_MARKED = re.compile(r"(<!-- packages -->\n\n)((?:\|.*\n)*)\n*")
_INK, _ARROW, _BANDS = "#222222", "#8a8a8a", ("#ffffff", "#f4f4f4")
_FACES = {(): "#e4e4e4", ("tvm",): "#a6cee3", ("torch",): "#fdcc8a", ("torch", "tvm"): "#cdb5dc"}  # by which of the two a package may import
_MEANING = {(): "neither", ("tvm",): "TVM", ("torch",): "PyTorch", ("torch", "tvm"): "both"}
_ACROSS = {  # where boxes stand, from 0 to 10, so that few arrows cross; a package that is not here stands in the middle
    "errors": 3.0, "notices": 5.0, "forks": 7.0, "env": 3.6, "problem": 5.0, "sass": 1.0, "toolchain": 5.0, "records": 8.6, "perf_model": 1.6,
    "codegen": 3.2, "schedules": 2.2, "compiler": 2.2, "kernels": 2.4, "evaluate": 7.5, "runtime": 2.4, "tuning": 8.8, "ops": 2.4,
    "functional": 3.6, "bench": 6.0, "nn": 3.6, "torch_hook": 1.0, "tools": 6.0, "__init__": 2.4, "cli": 4.4, "__main__": 4.4,
}  # fmt: skip
_WIDTH = 1.5  # of a box, where the page is ten wide
_HEIGHT = 0.52  # of a box, where a layer is one high
_ROUND = "round,pad=0,rounding_size=0.08"  # corners of a box


def main() -> None:
    """Writes the tables and the picture."""
    for page in PAGES:
        page.write_text(documented(page.read_text()))
    draw(PICTURE)


def layers() -> ModuleType:
    """Returns tests/project/test_layers.py as a module: the layers, and how imports are read."""
    found = importlib.util.spec_from_file_location("test_layers", ROOT / "tests" / "project" / "test_layers.py")
    if found is None or found.loader is None:
        raise FileNotFoundError("tests/project/test_layers.py has the order of the layers, and is not there")
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def documented(text: str) -> str:
    """Returns a page with its table of packages as it is today."""
    return _MARKED.sub(lambda match: match[1] + "".join(f"{line}\n" for line in table()) + "\n", text)


def table() -> Iterator[str]:
    """Yields the lines of the table: highest layer last, packages inside a package below it."""
    rules = layers()
    yield "| layer | package | what it holds | may import |"
    yield "| ---: | --- | --- | --- |"
    for number, names in enumerate(rules.LAYERS):
        for name in names:
            libraries = ", ".join(library for library, units in rules.MAY_IMPORT.items() if name in units)
            for path in _files(name):
                shown = path.relative_to(ROOT).as_posix()
                if shown != "tvm_orient/__init__.py":
                    shown = shown.removesuffix("__init__.py")
                yield f"| {number} | `{shown}` | {_purpose(path)} | {libraries} |"


def _files(name: str) -> list[Path]:
    """Returns the files whose docstrings describe a unit: its own, or those of a package and of the packages in it."""
    folder = ROOT / name if name == "schedules" else ROOT / "tvm_orient" / name
    if not folder.is_dir():
        return [folder.with_suffix(".py")]
    return [folder / "__init__.py", *sorted(folder.glob("*/__init__.py"))]


def _purpose(path: Path) -> str:
    """Returns the first sentence of a file's docstring."""
    text = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split("\n\n")[0].split())
    return text.partition(". ")[0].rstrip(".")


def edges() -> dict[str, set[str]]:
    """Returns which unit imports which, without what follows from the rest: a to c is left out where a imports b and b imports c."""
    rules = layers()
    found: dict[str, set[str]] = {name: set() for name in rules.LAYER}
    for name in rules.NAMES:
        module = rules.module_of(name)
        for _, target in rules.imports((ROOT / name).read_text(), module):
            if target[0] == "tvm_orient":
                found[rules.unit_of(module)].add(target[1] if len(target) > 1 and target[1] in rules.LAYER else "__init__")

    def below(name: str) -> set[str]:
        return set().union(*({other} | below(other) for other in found[name] - {name}))

    return {name: {o for o in others if o != name and not any(o in below(p) for p in others - {name, o})} for name, others in found.items()}


def draw(path: Path) -> None:
    """Draws the layers: a row a layer, the lowest below, arrows from who imports to what is imported."""
    rules = layers()
    matplotlib.rcdefaults()  # nobody's own settings
    page = Figure(figsize=(8.6, 9.4), facecolor="white")
    axes = page.add_axes((0.0, 0.045, 1.0, 0.95))
    axes.set(xlim=(-0.75, 10.0), ylim=(-0.6, len(rules.LAYERS) - 0.4))
    axes.axis("off")
    for number in range(len(rules.LAYERS)):
        axes.add_patch(Rectangle((-0.75, number - 0.5), 10.75, 1, facecolor=_BANDS[number % 2], zorder=-2))
        axes.text(-0.55, number, str(number), ha="center", va="center", fontsize=9, color=_ARROW)
    for name, others in edges().items():
        for other in sorted(others):
            start, end = (_place(name), rules.LAYER[name] - _HEIGHT / 2), (_place(other), rules.LAYER[other] + _HEIGHT / 2)
            arrow = {"arrowstyle": "-|>", "color": _ARROW, "linewidth": 0.9, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
            axes.annotate("", end, start, arrowprops=arrow, zorder=0)
    for name, number in rules.LAYER.items():
        across, face = _place(name), _FACES[_allowed(rules, name)]
        corner = (across - _WIDTH / 2, number - _HEIGHT / 2)
        axes.add_patch(FancyBboxPatch(corner, _WIDTH, _HEIGHT, _ROUND, facecolor=face, edgecolor=_INK, linewidth=0.8))
        axes.text(across, number, name, ha="center", va="center", fontsize=9, color=_INK, zorder=3)
    for place, (kinds, face) in enumerate(_FACES.items()):
        page.add_artist(Rectangle((0.33 + 0.15 * place, 0.014), 0.02, 0.018, facecolor=face, edgecolor=_INK, linewidth=0.8, transform=page.transFigure))
        page.text(0.357 + 0.15 * place, 0.023, _MEANING[kinds], va="center", fontsize=8.5, color=_INK)
    page.text(0.04, 0.023, "colour: what a package may import", va="center", fontsize=8.5, color=_INK)
    page.savefig(path, dpi=110, metadata={"Software": None})


def _place(name: str) -> float:
    return _ACROSS.get(name, 5.0)


def _allowed(rules: ModuleType, name: str) -> tuple[str, ...]:
    """Returns which of torch and tvm a unit may import."""
    return tuple(library for library in ("torch", "tvm") if name in rules.MAY_IMPORT[library])


if __name__ == "__main__":
    main()
