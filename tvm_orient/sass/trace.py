"""Trace: what the warps of some blocks executed, counted."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import NamedTuple


class Overlap(NamedTuple):
    """The work that a block did between sending copies and waiting for them, while they were on their way.

    Attributes:
        instructions: warp instructions of the busiest warp.
        exposed_waits: waits for global memory.
    """

    instructions: int
    exposed_waits: int


@dataclass
class Trace:
    """Counts of what the blocks that were run did, all of them together.

    Attributes:
        blocks: how many were run.
        warps: of all these blocks.
        warp_instructions: executed, by opcode (its first word); "NEVER" counts padding under a guard that is never true.
        wavefronts: of shared memory and L1 by opcode, those of bank conflicts included.
        sectors: pieces of 32 bytes of global memory. "load" counts those that a block touches, each once, since the cache has the rest;
            "store" counts those of every store, since L1 keeps none of them back.
        stored: bytes of global memory that were written, each counted once.
        exposed_waits: times that the lanes waited for a load of global memory, or for copies from it.
        overlaps: by the index of an exposed wait, for those that waited for copies while later ones were on their way: what overlapped with them.
        instructions_of_a_warp: warp instructions of the busiest warp.
    """

    blocks: int
    warps: int
    warp_instructions: collections.Counter[str] = field(default_factory=collections.Counter)
    wavefronts: collections.Counter[str] = field(default_factory=collections.Counter)
    sectors: dict[str, int] = field(default_factory=lambda: {"load": 0, "store": 0})
    stored: int = 0
    exposed_waits: int = 0
    overlaps: dict[int, Overlap] = field(default_factory=dict)
    instructions_of_a_warp: int = 0

    def count(self, *opcodes: str) -> int:
        """Return the number of warp instructions of these opcodes; where none is named, of all but padding."""
        return sum(n for name, n in self.warp_instructions.items() if (name in opcodes if opcodes else name != "NOP"))
