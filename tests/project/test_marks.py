"""Which tests run when: what is marked long or sweep waits until it is asked for, and `make test-long` asks for all that is long."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.sampling import sampled

ROOT = Path(__file__).resolve().parents[2]


class Item:
    """A test with these marks."""

    def __init__(self, *marks: str) -> None:
        self.marks = marks

    def get_closest_marker(self, name: str) -> str | None:
        return name if name in self.marks else None


ITEMS = {"plain": Item(), "slow": Item("slow"), "long": Item("long"), "slow and long": Item("slow", "long"), "sweep": Item("sweep")}


def kept(request: pytest.FixtureRequest, expression: str) -> set[str]:
    """Names of ITEMS that tests/conftest.py leaves to an expression of -m, which pytest itself applies as well."""
    conftest: Any = request.config.pluginmanager.get_plugin(str(ROOT / "tests" / "conftest.py"))
    items, gone = list(ITEMS.values()), []
    hook = SimpleNamespace(pytest_deselected=lambda items: gone.extend(items))
    conftest.pytest_collection_modifyitems(SimpleNamespace(option=SimpleNamespace(markexpr=expression), hook=hook), items)
    assert len(gone) + len(items) == len(ITEMS), "pytest is told of all that is left out"
    return {name for name, item in ITEMS.items() if item in items}


@pytest.mark.parametrize(
    ("expression", "out"),
    [
        ("", {"long", "slow and long", "sweep"}),
        ("not slow", {"long", "slow and long", "sweep"}),
        ("longer or sweeping", {"long", "slow and long", "sweep"}),
        ("long", {"sweep"}),
        ("sweep", {"long", "slow and long"}),
        ("long or sweep", set()),
        ("slow and not long", {"sweep"}),
    ],
)
def test_what_is_left_out_unless_it_is_named(request: pytest.FixtureRequest, expression: str, out: set[str]) -> None:
    assert set(ITEMS) - kept(request, expression) == out


def test_make_test_long_runs_all_that_is_long_and_ci_runs_it() -> None:
    """The target narrows the choice by nothing but the mark, and no test that is long has another mark that keeps it from CI."""
    makefile, ci = (ROOT / "Makefile").read_text(), (ROOT / ".ci" / "run").read_text()
    (recipe,) = re.findall(r"^test-long:.*\n\t(.*)$", makefile, re.MULTILINE)
    assert recipe == "$(PYTHON) -m pytest -q -n auto --dist worksteal -m long"
    assert re.findall(r"\bmake ([\w-]+)", ci.partition("set -euo pipefail")[2]) == ["test", "test-long"]
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__)]
    long = [text for text in texts if re.search(r"mark\.long\b|\bsampled\(", text)]
    assert len(long) > 5
    assert not [text for text in long if re.search(r"pytestmark = .*mark\.(gpu|sweep)\b", text)]


# ---- samples of sweeps --------------------------------------------------------------------------


def chosen(*args: Any, **kwargs: Any) -> list[tuple[Any, ...]]:
    """The rows of a sample that every commit runs."""
    return [row.values for row in sampled(*args, **kwargs) if not row.marks]


def test_a_sample_covers_each_pair_and_leaves_no_row_out() -> None:
    rows = [(a, b, c, d) for a in "ab" for b in range(3) for c in "xyz" for d in range(4) if (a, d) != ("b", 3)]
    every = sampled(rows, pairs=lambda a, b, c, d: (a, b, c), once=lambda a, b, c, d: (d,))
    assert [row.values for row in every] == rows
    assert len({row.id for row in every}) == len(rows)
    few = chosen(rows, pairs=lambda a, b, c, d: (a, b, c), once=lambda a, b, c, d: (d,))
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert {(row[one], row[other]) for row in few} == {(row[one], row[other]) for row in rows}
    assert {row[3] for row in few} == {0, 1, 2, 3}
    assert 9 <= len(few) <= 12 < len(rows) == 63


def test_a_sample_is_the_same_in_any_order() -> None:
    rows = [(a, b) for a in range(7) for b in "pqr"]
    pick = lambda given: set(chosen(given, pairs=lambda a, b: (a % 2, b), once=lambda a, b: (a,)))  # noqa: E731
    assert pick(rows) == pick(rows[::-1]) == pick(rows[5:] + rows[:5])


def test_values_alone_are_covered_by_as_many_rows_as_the_longest_aspect_has() -> None:
    rows = [(a, b) for a in range(6) for b in range(3)]
    few = chosen(rows, pairs=lambda *_: (), once=lambda a, b: (a, b))
    assert len(few) == 6
    assert {b for _, b in few} == {0, 1, 2}
