"""Lets copies of half precision into shared memory in CUDA source go by batches: all loads of a batch are on their way before one is converted.

As TVM prints it, a thread loads a value, waits for it, converts it and stores it, once for every turn of the staging loop: each turn waits
for DRAM again. A copy that converts cannot be asynchronous (`async_copy`). So a batch of turns is loaded into registers as it lies in memory,
with zeros outside the plane, and then converted and stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from .. import names
from .rewritten import Rewritten

_MAX_HELD = 32  # registers of a batch, which has at most that many turns
MAX_UNROLLED_TURNS = 128  # turns that are all unrolled, so that they add constants to addresses
_HALF = "(?:half|nv_bfloat16)"
_RAW = {"": "unsigned short", "2": "unsigned", "4": "uint2"}  # by lanes: the type that holds them as they lie in memory
_LOOP = re.compile(
    r"(?m)^(?P<indent> *)for \(int (?P<turn>\w+) = 0; (?P=turn) < (?P<turns>\d+); \+\+(?P=turn)\) \{\n(?P<body>(?:(?P=indent) +.*\n)+)(?P=indent)\}\n"
)
_ANY = rf"\w+{names.POINTER}"  # the name of a buffer
_SHARED = rf"\w+{names.SHARED_POINTER}"  # the name of a buffer in shared memory
_POINTER = re.compile(rf"({_HALF})\* __restrict__ ({_ANY})")
_LOAD = re.compile(rf"\*\((?P<type>{_HALF}(?P<lanes>[24]))\*\)\((?P<wide>{_ANY}) \+ |(?P<one>{_ANY})\[")
_STORE = re.compile(rf"(?m)^ *(?:\*\(\w+\*\)\({_SHARED} \+ .*\)|{_SHARED}\[.*\]) = ")
_FLOATS = re.compile(rf"\*\(float[24]\*\)\((?P<to>{_SHARED} \+ .*)\) = (?P<value>\w+);")  # a vector of them, stored to shared memory
_WORDS = re.compile(rf"\*\({_HALF}[24]\*\)\({_SHARED} \+ .*\) = ")  # stored as they were loaded, which `async_copy` does better
_OTHERWISE = re.compile(r"\} else \{\n(.*)\n")
_ZERO = re.compile(r" *\w+ = (?:make_float[24]\((?:0x0p\+0f[^,()]*,? ?)+\)|0x0p\+0f.*);")
_TEST = re.compile(r" *if (\(.*\)) \{")
_PLACE = re.compile(r" *int \w+ = .*;")


def batches(turns: int, lanes: int) -> int:
    """Returns how many batches as many turns make, each of which loads so many lanes."""
    return -(-turns // (_MAX_HELD // -(-lanes // 2)))


class _Load(NamedTuple):
    """An expression of the text that loads from global memory."""

    start: int  #: index of its first character
    end: int  #: index just after its last one
    type: str  #: as CUDA names it, of all its lanes
    lanes: str  #: "2", "4", or "" for one
    address: str  #: expression of the first lane's address


def batched(source: str) -> Rewritten:
    """Returns the source with every loop that copies half precision from global to shared memory parted into batches of turns."""
    types = {name: kind for kind, name in _POINTER.findall(source)}
    if not types:
        return Rewritten(source, 0)
    places = 0

    def change(loop: re.Match[str]) -> str:
        nonlocal places
        parted = _parted(loop, types)
        if parted is None:  # a loop over tiles, say, which may hold one that copies
            first, last = loop.start("body") - loop.start(), loop.end("body") - loop.start()
            return loop[0][:first] + _LOOP.sub(change, loop["body"]) + loop[0][last:]
        places += 1
        return parted

    return Rewritten(_LOOP.sub(change, source), places)


def _parted(loop: re.Match[str], types: dict[str, str]) -> str | None:
    """Returns the loop by batches of turns; None where it is no single copy of half precision that converts."""
    body, turn, turns = loop["body"], loop["turn"], int(loop["turns"])
    if _WORDS.search(body):
        return None
    loads, otherwise = list(_loads(body, types)), _OTHERWISE.findall(body)
    one_copy = len(loads) == len(_STORE.findall(body)) == 1 and not ("for (" in body or names.BARRIER in body)
    if not one_copy or len(otherwise) > 1 or not all(map(_ZERO.fullmatch, otherwise)):
        return None
    load = loads[0]
    before = body[: load.start].splitlines()[:-1]
    if any(line.strip() == "}" for line in before):  # a test that ends before the load is none of it
        return None
    tests = [test[1] for test in map(_TEST.fullmatch, before) if test]
    each = -(-turns // batches(turns, int(load.lanes or 1)))
    ragged = f"({turn} < {turns})" if turns % each else ""
    held, raw = "tvm_orient_held[tvm_orient_turn]", _RAW[load.lanes]
    inside = " & ".join([*tests, ragged] if ragged else tests).replace("&&", "&") or "true"  # no jumps: nothing here may not be computed
    fetch = [*(line for line in before if _PLACE.fullmatch(line)), f"{held} = {names.LOAD}<{raw}>({load.address}, {inside});"]
    store = _guarded(_without_test(f"{body[: load.start]}*({load.type}*)&{held}{body[load.end :]}"), ragged)
    lines = [
        f"#pragma unroll {turns if turns <= MAX_UNROLLED_TURNS else 1}",
        f"for (int tvm_orient_first = 0; tvm_orient_first < {turns}; tvm_orient_first += {each}) {{",
        f"  {raw} tvm_orient_held[{each}];",
    ]
    for part in (fetch, store):
        lines += ["  #pragma unroll", f"  for (int tvm_orient_turn = 0; tvm_orient_turn < {each}; ++tvm_orient_turn) {{"]
        lines += [f"    const int {turn} = tvm_orient_first + tvm_orient_turn;", *(f"    {line.strip()}" for line in part), "  }"]
    return "".join(f"{loop['indent']}{line}\n" for line in [*lines, "}"])


def _guarded(store: list[str], ragged: str) -> list[str]:
    """Returns the lines of a store: of floats with a predicate in place of the tests around it and of the one that a last batch needs.

    Other stores stand under the test of a last batch.
    """
    tests = [test for test in map(_TEST.fullmatch, store) if test]
    flat = [line for line in store if not _TEST.fullmatch(line)]
    inner = flat[: len(flat) - len(tests)]
    target = _FLOATS.fullmatch(inner[-1].strip()) if inner else None
    if not (tests or ragged) or target is None or any(line.strip() != "}" for line in flat[len(inner) :]):
        return [f"if {ragged} {{", *store, "}"] if ragged else store
    where = " & ".join([*(test[1] for test in tests), *([ragged] if ragged else [])]).replace("&&", "&")
    return [*inner[:-1], f"{names.STORE}({target['to']}, {target['value']}, {where});"]


def _loads(body: str, types: dict[str, str]) -> Iterator[_Load]:
    """Yields the loads of half precision from global memory."""
    for match in _LOAD.finditer(body):
        pointer = match["wide"] or match["one"]
        if pointer in types:
            end = _closing(body, match.end())
            address = f"{pointer} + ({body[match.end() : end - 1]})"
            yield _Load(match.start(), end, match["type"] or types[pointer], match["lanes"] or "", address)


def _closing(text: str, start: int) -> int:
    """Returns the index just after the bracket that closes the one before start."""
    depth = 1
    while depth:
        depth += {"(": 1, "[": 1, ")": -1, "]": -1}.get(text[start], 0)
        start += 1
    return start


def _without_test(body: str) -> list[str]:
    """Returns the lines of a turn without the test of what lies outside the plane, which is held as zeros."""
    lines = body.splitlines()
    middle = next((i for i, line in enumerate(lines) if line.lstrip() == "} else {"), None)
    if middle is None:
        return lines
    indent = lines[middle].partition("}")[0]
    head = max(i for i in range(middle) if lines[i].startswith(f"{indent}if ("))
    return [*lines[:head], f"{indent}{{", *lines[head + 1 : middle], *lines[lines.index(f"{indent}}}", middle) :]]
