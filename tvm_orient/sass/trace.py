"""Trace: what the warps of some blocks executed, counted."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field


@dataclass
class Trace:
    """What the blocks that were run did, all together.

    warp_instructions: executed by opcode (its first word). wavefronts: of shared memory and L1 by opcode, bank conflicts included.
    sectors: 32-byte pieces of global memory: "load" has those that a block touches, each once (the cache has the rest); "store"
    those of every store, for L1 keeps none back. stored: bytes of global memory written, each counted once. rounds: times that
    lanes wait for a load of global memory. ahead: of a round that waits for copies before the last ones, the instructions of the
    busiest warp and the rounds between those copies and the wait. instructions_of_a_warp: executed by the busiest warp.
    """

    blocks: int
    warps: int
    warp_instructions: collections.Counter[str] = field(default_factory=collections.Counter)
    wavefronts: collections.Counter[str] = field(default_factory=collections.Counter)
    sectors: dict[str, int] = field(default_factory=lambda: {"load": 0, "store": 0})
    stored: int = 0
    rounds: int = 0
    ahead: dict[int, tuple[int, int]] = field(default_factory=dict)
    instructions_of_a_warp: int = 0

    def count(self, *opcodes: str) -> int:
        """Warp instructions of these opcodes, all but padding where none is named."""
        return sum(n for name, n in self.warp_instructions.items() if (name in opcodes if opcodes else name != "NOP"))
