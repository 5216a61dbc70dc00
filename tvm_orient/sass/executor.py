"""Executes the machine code of a kernel, with values, on arrays over lanes: what the GPU would compute, without one.

All blocks of a grid run side by side: one warp of each at a time, from barrier to barrier, in an order that the caller chooses.
Asynchronous copies land as late as their waits allow. What the code may not do is an error that names the instructions: see `checked_memory`;
also a barrier that only some threads of a block reach, and a read of a register that nothing wrote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import InvalidArgument
from .bank_conflicts import WARP
from .checked_memory import Fault, Shared
from .cubin import KernelFacts
from .decode import INSTRUCTION_BYTES
from .launch import KernelLaunch
from .warps import Warps

ORDERS = ("ascending", "descending", "random")  # in which the warps of a block can run between two barriers
_MAX_LANES = 1 << 14  # lanes that run side by side: what a CPU's cache holds of them


def execute(kernel: KernelFacts, grid: int, threads: int | tuple[int, int], arguments: Sequence[Any], order: str = "ascending", seed: int = 0) -> None:
    """Run a kernel; the arrays among its arguments are pointers and are changed in place.

    Args:
        kernel: as `cubin.kernels` reads it.
        grid: how many blocks there are, all along x.
        threads: of a block, or (along x, along y).
        arguments: of the kernel in order: NumPy arrays for its pointers, whole numbers for the others.
        order: in which the warps of a block run between two barriers, one of ORDERS.
        seed: of the garbage in registers and memory that nobody wrote, and of a random order.

    Raises:
        Fault: the kernel breaks a rule of memory, of registers or of barriers.
        BuildFailed: it does something that is not followed here.
        InvalidArgument: arguments or an order that the kernel does not have.
    """
    if order not in ORDERS:
        raise InvalidArgument(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if len(arguments) != len(kernel.parameters):
        raise InvalidArgument(f"{kernel.name} takes {len(kernel.parameters)} arguments, got {len(arguments)}")
    launch = KernelLaunch(kernel, grid, (threads, 1) if isinstance(threads, int) else threads, arguments, order, seed)
    together = max(1, _MAX_LANES // WARP)
    for first in range(0, grid, together):
        try:
            _Blocks(launch, np.arange(first, min(grid, first + together))).run()
        except Fault as fault:
            places = ", after ".join(f"/*{INSTRUCTION_BYTES * at:04x}*/ {launch.steps[at]}" for at in fault.at)
            raise Fault(f"{kernel.name}: {places} {fault.what}" if places else f"{kernel.name}: {fault.what}", *fault.at) from fault
    launch.memory.give_back()


class _Blocks:
    """Blocks side by side, and the warps of each, which take turns."""

    def __init__(self, launch: KernelLaunch, blocks: Any) -> None:
        """Start blocks with these indices in the grid, (blocks,) int64."""
        halves = any(step.opcode[0] in ("LDS", "STS") and "U16" in step.opcode for step in launch.steps)
        self._launch = launch
        self._shared = Shared(len(blocks), launch.shared_bytes, 2 if halves else 4, launch.random)
        across, down = launch.threads
        count = -(-across * down // WARP)
        names = np.tile(np.arange(count), (len(blocks), 1))  # the warp of each block that a turn runs
        if launch.order == "random":
            names = launch.random.permuted(names, axis=1)
        self._warps = [Warps(launch, self._shared, blocks, names[:, turn]) for turn in range(count)]

    def run(self) -> None:
        """Run every warp from barrier to barrier until all have ended.

        Raises:
            Fault, BuildFailed: as `execute`.
        """
        while any(warps.groups for warps in self._warps):
            turns = list(range(len(self._warps)))
            if self._launch.order == "descending":
                turns.reverse()
            elif self._launch.order == "random":
                self._launch.random.shuffle(turns)
            for turn in turns:
                self._warps[turn].run()
            self._release()

    def _release(self) -> None:
        """Let the lanes that wait at a barrier go on into the next epoch: all of a block must have come to the same one.

        Those that have ended hold no barrier up (PTX ISA, exit). Where they ended before they touched memory they were never needed, as threads of a
        block that has more than the angle it computes; where they touched some, the barrier was meant for them, too.
        """
        places = sorted({at for warps in self._warps for at in warps.parked})
        seen: dict[int, Any] = {}
        for at in places:
            for warps in self._warps:
                for block in np.unique(warps.block[warps.parked[at]]) if at in warps.parked else ():
                    if seen.setdefault(int(block), at) != at:
                        raise Fault("is a barrier where other threads of the block wait at another", at - 1, seen[int(block)] - 1)
        for warps in self._warps:
            waiting = np.logical_or.reduce([*warps.parked.values(), np.zeros(len(warps.block), bool)])
            left = warps.exists & warps.touched & ~waiting & np.isin(warps.block, list(seen))
            if left.any():
                raise Fault("is a barrier that only some threads of a block reach", seen[int(warps.block[left][0])] - 1)
            warps.groups, warps.parked = warps.parked, {}
        self._shared.epoch += 1
