"""Reads the text of generated CUDA source: its kernels and their parameters, and barriers that not all threads of a block may reach."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_THREADS = 1024  # threads of a block where a kernel states no bound
_DEFINITION = re.compile(r'extern "C" __global__ void (?:__launch_bounds__\((\d+)\) )?(\w+)\(([^)]*)\) \{')
_WORD = re.compile(r"[A-Za-z_]\w*")
_ASSIGNED = re.compile(r"(?:const )?(?:[\w*]+ )?(\w+)(?:\[.*?\])? = (.*)")
_BARRIER_OR_JUMP = re.compile(r"__syncthreads|\b(return|break|continue|goto)\b")


@dataclass(frozen=True)
class Definition:
    """A kernel as it stands in a source: name, most threads of a block, text of its parameters and of its body."""

    name: str
    bound: int
    parameters: str
    body: str

    @property
    def names(self) -> tuple[str, ...]:
        """Returns the names of the buffers and numbers that it takes, in order, without the ending that TVM gives a pointer."""
        return tuple(part.split()[-1].removesuffix("_ptr") for part in self.parameters.split(","))


def definitions(source: str) -> list[Definition]:
    """Returns every kernel that a source defines, in order."""
    return [Definition(match[2], int(match[1] or MAX_THREADS), match[3], _until_closed(source, match.end())) for match in _DEFINITION.finditer(source)]


def launches(source: str) -> list[tuple[str, int]]:
    """Returns (name, launch bound) of every kernel that a source defines."""
    return [(one.name, one.bound) for one in definitions(source)]


def divergent(source: str) -> list[str]:
    """Returns the barriers, and jumps that skip barriers, under a condition that the threads of a block need not agree on.

    Each is told as the headers above it and its line.
    """
    found = []
    for one in definitions(source):
        names = _thread_dependent(one.body)
        for headers, text in _walk(one.body):
            if _BARRIER_OR_JUMP.search(text) and any(_mentions(header, names) for header in headers):
                found.append(" > ".join([*headers, text]))
    return found


def _until_closed(source: str, start: int) -> str:
    """Returns the text from just after an opening brace to just before the one that closes it."""
    depth, i = 1, start
    while depth:
        depth += {"{": 1, "}": -1}.get(source[i], 0)
        i += 1
    return source[start : i - 1]


def _walk(body: str) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yields every line of a kernel with the headers (if, else, for) that it stands under."""
    headers: list[str] = []
    for raw in body.splitlines():
        text = raw.strip()
        closed = headers.pop() if text.startswith("}") else ""
        yield tuple(headers), text
        if text.endswith("{"):
            headers.append(f"{closed} {text}" if text.startswith("} else") else text)


def _thread_dependent(body: str) -> set[str]:
    """Returns the names that may differ between the threads of a block: computed from threadIdx, or set where threads have parted."""
    names, before = {"threadIdx"}, 0
    while len(names) > before:
        before = len(names)
        for headers, text in _walk(body):
            assigned = _ASSIGNED.match(text)
            if assigned and any(_mentions(part, names) for part in (*headers, assigned[2])):
                names.add(assigned[1])
    return names


def _mentions(text: str, names: set[str]) -> bool:
    return not names.isdisjoint(_WORD.findall(text))
