"""Loads, stores and copies of lanes whose addresses are known: the wavefronts that they take, and the global memory that they touch."""

from __future__ import annotations

from typing import Any

import numpy as np

from .bank_conflicts import WARP, wavefronts
from .trace import Trace

_SECTOR = 32  # bytes of the pieces in which L2 and DRAM are read and written
_UNIT = 2  # bytes of the pieces by which stored memory is counted: no kernel stores less at once


class MemoryAccesses:
    """The accesses of the lanes of some blocks so far; the counts go to a trace."""

    def __init__(self, trace: Trace, block: Any) -> None:
        """Start with nothing accessed.

        Args:
            trace: gets the counts.
            block: (lanes,) int64, which of the blocks that are run a lane belongs to.
        """
        self._trace = trace
        self._block = block
        self._warps = len(block) // WARP
        self._loaded: list[Any] = []  # sectors of each load from global memory, told apart by block
        self._stored: list[Any] = []  # addresses of each store to global memory, one for every _UNIT

    def count(self, name: str, space: str, address: Any, size: int, active: Any) -> None:
        """Count the wavefronts of one access, and remember which sectors it touched.

        Args:
            name: the first word of its opcode.
            space: "global" or "shared".
            address: (lanes,) int64, the first byte of each lane.
            size: bytes that a lane moves.
            active: (lanes,) bool, the lanes that take part.
        """
        if not active.any():
            return
        self._trace.wavefronts[name] += wavefronts(address, size, active, through_cache=space == "global")
        if name == "LDG":
            self._loaded.append(np.unique(address[active] // _SECTOR * self._trace.blocks + self._block[active]))
        elif space == "global":
            warp = np.flatnonzero(active) // WARP
            self._trace.sectors["store"] += len(np.unique(address[active] // _SECTOR * self._warps + warp))
            self._stored.append((address[active, None] + np.arange(0, size, _UNIT)).ravel())

    def finish(self) -> None:
        """Put into the trace what is known only at the end: which sectors and bytes were touched at all."""
        self._trace.sectors["load"] = len(np.unique(np.concatenate(self._loaded))) if self._loaded else 0
        self._trace.stored = _UNIT * len(np.unique(np.concatenate(self._stored))) if self._stored else 0
