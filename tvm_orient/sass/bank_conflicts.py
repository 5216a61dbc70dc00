"""Passes that an access to shared memory or L1 takes, from the addresses of a warp's lanes."""

from __future__ import annotations

from typing import Any

import numpy as np

WARP = 32


def wavefronts(address: Any, size: int, active: Any, lines: bool = False) -> int:
    """Passes that an access takes, by warps of lanes: 32 banks of 4 bytes, each one word a pass.

    16 bytes a lane go by quarters of a warp, 8 by halves. lines: through the cache, which looks up one line of 128 bytes a pass.
    """
    words = max(1, size // 4)
    spot = (address[:, None] // 4 + np.arange(words)).reshape(-1, WARP)  # a row is what one pass could serve
    live = np.repeat(active, words).reshape(-1, WARP)
    spot = np.where(live, spot, spot[np.arange(len(spot)), live.argmax(1)][:, None])
    passes = np.where(live.any(1), _most_in_a_bank(spot), 0).reshape(-1, words).sum(1)
    if lines:
        line = np.where(live, spot // WARP, -1).reshape(len(passes), -1)
        line.sort(axis=1)
        passes = np.maximum(passes, (line[:, :1] >= 0).sum(1) + ((line[:, 1:] != line[:, :-1]) & (line[:, 1:] >= 0)).sum(1))
    return int(passes.sum())


def _most_in_a_bank(spot: Any) -> Any:
    """Of each row of 32 words, how many distinct ones lie in the bank that has most."""
    spot = np.sort(spot, axis=1)
    fresh = np.ones_like(spot, bool)
    fresh[:, 1:] = spot[:, 1:] != spot[:, :-1]
    row = np.broadcast_to(np.arange(len(spot))[:, None], spot.shape)
    return np.bincount((row * WARP + spot % WARP)[fresh], minlength=len(spot) * WARP).reshape(-1, WARP).max(1)
