"""CUDA: the constants that the estimates of several templates share, as kernels showed them on an H200 and in machine code."""

from __future__ import annotations

VECTOR = 4  # float32 that a thread loads at once: 16 bytes
SECTOR = 8  # float32 of a sector of L2, which stores one by one write so often
STAGED = 2.3  # wavefronts for a word of each lane that goes to shared memory: the asynchronous copies write it, and fetch it
FETCHED = 1.3  # wavefronts for a word of each lane that is fetched from memory
MISALIGNED = 0.3  # of these, those that are due to copies which begin anywhere in a line
UNALIGNED = 0.9  # wavefronts of a warp for each turn of copies that begin anywhere in a line, where they are counted by turns
