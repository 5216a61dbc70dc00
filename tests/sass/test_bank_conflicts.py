"""Wavefronts of accesses to shared memory."""

from __future__ import annotations

import numpy as np

from tvm_orient.sass import bank_conflicts


def test_wavefronts() -> None:
    lane, every = np.arange(32), np.ones(32, bool)
    cases = [(4 * lane, 4, 1), (8 * lane, 4, 2), (0 * lane, 4, 1), (16 * lane, 16, 4), (16 * lane, 4, 4), (8 * lane, 8, 2), (128 * lane, 4, 32)]
    for address, size, wavefronts in cases:
        assert bank_conflicts.wavefronts(address, size, every) == wavefronts, (address, size)
    assert bank_conflicts.wavefronts(128 * lane, 4, lane < 3) == 3
    assert bank_conflicts.wavefronts(132 * lane, 4, every) == 1
    assert bank_conflicts.wavefronts(132 * lane, 4, every, through_cache=True) == 32
