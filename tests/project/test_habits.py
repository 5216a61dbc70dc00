"""The habits of the sources: short functions of few parameters, docstrings that begin with what is done, one constant or attribute a line."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from tests.support.sources import ROOT

MAX_LINES = 60  # of a function, its decorators apart
MAX_PARAMETERS = 8  # of a function, self and cls apart
# what a docstring does not begin with: it then tells of a thing, and leaves out what the function does with it
NO_BEGINNING = re.compile(r"(?:Of|As|What|That|Whether)\b")
NO_CONSTANT = re.compile(r"_?(?:MOST|FEWEST|LEAST)(?:_|$)")  # a limit is called MAX or MIN
BOUND = ("self", "cls")  # first parameters that a call does not give

_COMMAND = "a command line: each option is a parameter that typer reads"
_CONV2D = "takes what torch.nn.Conv2d takes"
_KERNEL = "TVMScript: the parameters of a kernel, and of its macros, are its operands and its sizes"
# by file and name of a function: why it has more than MAX_PARAMETERS
MANY_PARAMETERS = {
    "benchmarks/gpu/kit.py: main": _COMMAND,
    "benchmarks/speed/run.py: main": _COMMAND,
    "tvm_orient/cli/check.py: check": _COMMAND,
    "tvm_orient/cli/tune.py: tune": _COMMAND,
    "tvm_orient/nn/oriented.py: OrientedConv2d.__init__": _CONV2D,
    "tvm_orient/nn/published.py: DepthwiseOrientedConv1d.__init__": _CONV2D,
    "tvm_orient/functional.py: oriented_conv2d": "the options of conv2d and of an epilogue, by keyword: grouped they would be harder to call",
    "tvm_orient/tuning/tune.py: tune": "the options of a run, by keyword, as `tvm-orient tune` has them",
    "schedules/cpu/generic_stage.py: fill.filled": _KERNEL,
    "schedules/cpu/generic_stage.py: _rows_between_zeros.fill_rows": _KERNEL,
    "schedules/cpu/generic_stage.py: _repeated_rows.fill_rows": _KERNEL,
    "schedules/cpu/generic_stage.py: _wrapped.fill_elements": _KERNEL,
    "schedules/cpu/generic_stage.py: _parted.fill_columns": _KERNEL,
    "schedules/cpu/generic.py: _patch.patch": _KERNEL,
    "schedules/cpu/generic.py: _taps.gathered": _KERNEL,
    "schedules/cpu/generic.py: _conv.main": _KERNEL,
    "schedules/cpu/generic.py: _dw.main": _KERNEL,
}


def functions(node: ast.AST, outside: str = "") -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Yield every function below a node, with its name: those of the classes and functions that it stands in come first, with dots between."""
    for child in ast.iter_child_nodes(node):
        name = outside
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            name = f"{outside}.{child.name}" if outside else child.name
            if not isinstance(child, ast.ClassDef):
                yield name, child
        yield from functions(child, name)


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many parameters a function has; *args and **kwargs are one each."""
    given = function.args
    plain = [one.arg for one in (*given.posonlyargs, *given.args)]
    return len(plain) - (plain[:1] != [] and plain[0] in BOUND) + len(given.kwonlyargs) + sum(one is not None for one in (given.vararg, given.kwarg))


def long_functions(source: str) -> Iterator[str]:
    """Yield the names of the functions that have more than MAX_LINES lines."""
    for name, function in functions(ast.parse(source)):
        assert function.end_lineno is not None
        if function.end_lineno - function.lineno + 1 > MAX_LINES:
            yield name


def wide_functions(source: str) -> Iterator[str]:
    """Yield the names of the functions that have more than MAX_PARAMETERS parameters."""
    for name, function in functions(ast.parse(source)):
        if parameters(function) > MAX_PARAMETERS:
            yield name


def bad_beginnings(source: str) -> Iterator[str]:
    """Yield the first lines of the docstrings that begin with a word which no docstring begins with."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node) or ""
            if NO_BEGINNING.match(text):
                yield text.splitlines()[0]


def assigned(body: Iterable[ast.stmt]) -> Iterator[list[str]]:
    """Yield the names that each assignment of a module's or a class's body gives a value."""
    for statement in body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            yield [node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def constants(source: str) -> Iterator[list[str]]:
    """Yield the names in capitals that each assignment at the top of a module gives a value."""
    return ([name for name in names if name.isupper()] for names in assigned(ast.parse(source).body))


def packed_constants(source: str) -> Iterator[str]:
    """Yield the constants of the module, and the attributes of its classes, that are assigned several in a statement, as one text a statement."""
    yield from (", ".join(names) for names in constants(source) if len(names) > 1)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            yield from (f"{node.name}: {', '.join(names)}" for names in assigned(node.body) if len(names) > 1)


def misnamed_constants(source: str) -> Iterator[str]:
    """Yield the constants whose names say most, fewest or least."""
    return (name for names in constants(source) for name in names if NO_CONSTANT.match(name))


def sources() -> dict[str, str]:
    """Return the sources by file, named from the root."""
    files = (path for folder in ("tvm_orient", "schedules", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in files}


SOURCES = sources()


def test_functions_are_short() -> None:
    assert [f"{file}: {name}" for file, source in SOURCES.items() for name in long_functions(source)] == []


def test_functions_have_few_parameters() -> None:
    found = {f"{file}: {name}" for file, source in SOURCES.items() for name in wide_functions(source)}
    assert sorted(name for name in found - MANY_PARAMETERS.keys()) == []
    assert sorted(MANY_PARAMETERS.keys() - found) == [], "exceptions that are no longer needed"


def test_docstrings_begin_with_what_is_done() -> None:
    assert [f"{file}: {line}" for file, source in SOURCES.items() for line in bad_beginnings(source)] == []


def test_constants_stand_alone() -> None:
    assert [f"{file}: {names}" for file, source in SOURCES.items() for names in packed_constants(source)] == []


def test_limits_are_called_max_and_min() -> None:
    assert [f"{file}: {name}" for file, source in SOURCES.items() for name in misnamed_constants(source)] == []


def test_what_is_found() -> None:
    """Every habit is looked for where it may be broken: in methods, in functions inside others, behind an annotation."""
    long = "class Box:\n    def put(self):\n" + "        pass\n" * 59
    assert list(long_functions(long)) == []
    assert list(long_functions(long + "        pass\n")) == ["Box.put"]
    assert list(wide_functions("class Box:\n    def put(self, a, b, c, d, e, f, /, g, *, h): ...\n")) == []
    assert list(wide_functions("def out():\n    async def put(a, b, c, d, e, *f, g, h, **i): ...\n")) == ["out.put"]
    assert list(bad_beginnings('"""Offers a box."""\nclass Box:\n    """As it was.\n\n    More.\n    """\n')) == ["As it was."]
    assert list(bad_beginnings('async def put():\n    """Whether it fits."""\n')) == ["Whether it fits."]
    assert list(packed_constants("A, _B = 1, 2\nc, d = 3, 4\nE = 5\nF = G = 6\ndef put():\n    H, I = 7, 8\n")) == ["A, _B", "F, G"]
    assert list(packed_constants("class Box:\n    name, size = 'box', 1\n    lid = 2\n")) == ["Box: name, size"]
    assert list(misnamed_constants("_MOST_S: float = 1.0\nMOSTLY = 2\nLEAST = 3\n_FEWEST_LINES = 4\nMAX = 5\n")) == ["_MOST_S", "LEAST", "_FEWEST_LINES"]
