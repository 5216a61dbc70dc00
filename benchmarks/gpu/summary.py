"""Write the last lines of a GPU run: what was done, what went wrong, the targets, and what candidates gained; short enough for a cut log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_MAX_CHARACTERS = 11_500  # characters of all lines together
_MAX_FAULTS = 30  # lines of kernels that failed
_MAX_GAINS = 20  # lines of what candidates gained
_WIDTH = 200  # characters of a line
_Results = dict[str, dict[str, Any]]


def summary(found: _Results, facts: dict[str, Any]) -> list[str]:
    """Returns lines of at most 11,500 characters in all."""
    lines, size = [], 0
    for line in _lines(found, facts):
        size += len(line) + 1
        if size > _MAX_CHARACTERS:
            return [*lines, "..."]
        lines.append(line)
    return lines


def _lines(found: _Results, facts: dict[str, Any]) -> Iterator[str]:
    device = facts.get("device", {})
    yield f"=== {device.get('name', 'no device')} ({device.get('slug', '')}): {len(found)} results"
    parts: dict[str, list[dict[str, Any]]] = {}
    for name, result in found.items():
        parts.setdefault(name.partition("/")[0], []).append(result)
    for part, results in parts.items():
        bad = sum("error" in result or "found" in result for result in results)
        yield f"{part:20} {len(results):5} results, {bad} bad"
    faults = [(name, result) for name, result in found.items() if "error" in result or "found" in result]
    for name, result in faults[:_MAX_FAULTS]:
        yield f"BAD {name.rpartition('/')[0]}: {result.get('fault', '')} {result.get('error') or result.get('found')}"[:_WIDTH]
    if len(faults) > _MAX_FAULTS:
        yield f"... and {len(faults) - _MAX_FAULTS} more"
    yield from _verdict(found)
    finals = [result for result in found.values() if result.get("do") == "final" and "default" in result]
    better = sorted((result for result in finals if result["median"] < result["default"]), key=lambda result: result["median"] / result["default"])
    if finals:
        yield f"candidates that beat their default in turn, the most first, {len(better)} of {len(finals)}:"
    for result in better[:_MAX_GAINS]:
        yield f"  {result['name']:26} {result['choices'][0][0]:14} {result['line']}"


def _verdict(found: _Results) -> Iterator[str]:
    """Yields the targets, over the rows of this run."""
    from tvm_orient.bench.rows import Row, cells

    from ..report.targets import lines, report

    kept: dict[tuple[str, int], list[Row]] = {}
    for result in found.values():
        kept |= cells(Row(**row) for row in result.get("rows", ()))
    rows = [row for cell in kept.values() for row in cell]
    if rows:
        yield from report(lines(rows))
