"""What accesses count for: wavefronts of each, sectors that are loaded once a block, and bytes that are stored once."""

from __future__ import annotations

import numpy as np

from tvm_orient.sass.memory_access import MemoryAccesses
from tvm_orient.sass.trace import Trace

LANE = np.arange(64)  # two blocks of one warp
EVERY = np.ones(64, bool)


def counted(*accesses: tuple[str, str, np.ndarray, int, np.ndarray]) -> Trace:
    trace = Trace(2, 2)
    memory = MemoryAccesses(trace, LANE // 32)
    for access in accesses:
        memory.count(*access)
    memory.finish()
    return trace


def test_a_block_loads_a_sector_once() -> None:
    load = ("LDG", "global", 4 * (LANE % 32), 4, EVERY)
    trace = counted(load, load)
    assert trace.sectors == {"load": 2 * 4, "store": 0}
    assert trace.wavefronts == {"LDG": 2 * 2}


def test_every_store_writes_its_sectors_and_a_byte_counts_once() -> None:
    store = ("STG", "global", 4 * LANE, 4, EVERY)
    trace = counted(store, store)
    assert trace.sectors == {"load": 0, "store": 2 * 8}
    assert trace.stored == 256
    assert counted(("STG", "global", 2 * LANE, 2, LANE < 5)).stored == 10


def test_shared_memory_has_wavefronts_alone() -> None:
    trace = counted(("LDS", "shared", 8 * LANE, 4, EVERY), ("STS", "shared", 4 * LANE, 4, LANE < 0))
    assert trace.wavefronts == {"LDS": 2 * 2}
    assert (trace.sectors, trace.stored) == ({"load": 0, "store": 0}, 0)
