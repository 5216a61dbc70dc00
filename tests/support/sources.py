"""The sources of the package as they lie in a checkout, and what they import."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(path for folder in ("tvm_orient", "schedules") for path in (ROOT / folder).rglob("*.py"))
NAMES = [path.relative_to(ROOT).as_posix() for path in FILES]


def script(path: str) -> ModuleType:
    """Return a script of the checkout, such as docs/packages.py, as a module."""
    found = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def module_of(name: str) -> tuple[str, ...]:
    """Return the dotted path, in parts, of a file named from the root: schedules/cuda/direct.py is tvm_orient.schedules.cuda.direct."""
    parts = Path(name).with_suffix("").parts
    return parts if parts[0] == "tvm_orient" else ("tvm_orient", *parts)


def imports(source: str, module: tuple[str, ...]) -> Iterator[tuple[int, tuple[str, ...]]]:
    """Yield (line, dotted path in parts) of everything imported anywhere; `from a import b` gives a.b, relative ones are resolved."""
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
                dots = len(text) - len(text.lstrip("."))
                yield node.lineno, (package[: len(package) - dots + 1] if dots else ()) + tuple(part for part in text.split(".") if part)


def file_graph(sources: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Return which file imports which. An __init__ gathers its package, so it is no node: what is imported through it counts as its file."""
    known = {".".join(module_of(name)): source for name, source in sources}
    edges: dict[str, set[str]] = {}
    for name, source in known.items():
        if name.endswith("__init__"):
            continue
        edges[name] = set()
        for _, target in imports(source, tuple(name.split("."))):
            whole = ".".join(target)
            found = whole if whole in known else ".".join(target[:-1])
            if found in known and found != name:
                edges[name].add(found)
    return edges
