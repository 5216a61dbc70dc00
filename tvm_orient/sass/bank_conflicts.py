"""Wavefronts of a memory access: how often shared memory or L1 is occupied by one load or store, from the addresses of a warp's lanes.

The word is Nsight Compute's. Shared memory and L1 are one pipe; it serves one wavefront a clock.
"""

from __future__ import annotations

from typing import Any

import numpy as np

WARP = 32  # lanes
_BANKS = 32  # banks of shared memory, each of which serves one word of 4 bytes in a wavefront
_WORD = 4  # bytes that a bank serves in a wavefront


def wavefronts(address: Any, size: int, active: Any, through_cache: bool = False) -> int:
    """Return how many wavefronts one access takes, all warps of these lanes together.

    A wavefront serves one word of 4 bytes from each of the 32 banks. An access of 16 bytes a lane goes by quarters of a warp, one of 8 bytes by halves.

    Args:
        address: (lanes,) int64, the first byte that each lane touches; lanes of a warp lie side by side, and their number is a multiple of 32.
        size: bytes that a lane touches.
        active: (lanes,) bool, the lanes that take part.
        through_cache: whether the access is to global memory, whose cache looks up one line of 128 bytes in a wavefront.
    """
    words = max(1, size // _WORD)
    spot = (address[:, None] // _WORD + np.arange(words)).reshape(-1, WARP)  # a row is what one wavefront could serve
    live = np.repeat(active, words).reshape(-1, WARP)
    spot = np.where(live, spot, spot[np.arange(len(spot)), live.argmax(1)][:, None])
    taken = np.where(live.any(1), _max_words_of_a_bank(spot), 0).reshape(-1, words).sum(1)
    if through_cache:
        line = np.where(live, spot // WARP, -1).reshape(len(taken), -1)
        line.sort(axis=1)
        taken = np.maximum(taken, (line[:, :1] >= 0).sum(1) + ((line[:, 1:] != line[:, :-1]) & (line[:, 1:] >= 0)).sum(1))
    return int(taken.sum())


def _max_words_of_a_bank(spot: Any) -> Any:
    """Return (rows,): for each row of 32 words the number of distinct words in the bank that holds most of them."""
    spot = np.sort(spot, axis=1)
    fresh = np.ones_like(spot, bool)
    fresh[:, 1:] = spot[:, 1:] != spot[:, :-1]
    row = np.broadcast_to(np.arange(len(spot))[:, None], spot.shape)
    return np.bincount((row * _BANKS + spot % _BANKS)[fresh], minlength=len(spot) * _BANKS).reshape(-1, _BANKS).max(1)
