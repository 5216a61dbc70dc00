"""Loads, stores and asynchronous copies of one warp of each block, with values."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .checked_memory import Shared
from .lane_operands import LaneOperands
from .launch import STACK_BYTES, Access, KernelLaunch


class LanePlaces(NamedTuple):
    """Who each lane is.

    Attributes:
        block: (lanes,) int64, its block among those that run side by side.
        warp: (lanes,) int64, its warp in that block.
        thread: (lanes,) int64, its thread among all of the launch.
    """

    block: Any
    warp: Any
    thread: Any


class _Copy(NamedTuple):
    """A copy that is on its way, of some of the lanes.

    Attributes:
        lanes: (n,) int64, the lanes that sent it.
        group: (n,) int64, how many groups each of them had committed before.
        address: (n,) int64, where in shared memory it goes.
        size: bytes of a lane.
        at: the index of the instruction that sent it.
        words: what it carries, an (n,) uint32 for each word of 4 bytes.
    """

    lanes: Any
    group: Any
    address: Any
    size: int
    at: int
    words: list[Any]

    def part(self, chosen: Any) -> _Copy:
        """Return the same copy of those of its lanes that are chosen, (n,) bool."""
        return _Copy(self.lanes[chosen], self.group[chosen], self.address[chosen], self.size, self.at, [word[chosen] for word in self.words])


class WarpMemory:
    """Moves values between the registers of lanes and global, shared and local memory."""

    def __init__(self, launch: KernelLaunch, shared: Shared, lanes: LaneOperands, places: LanePlaces) -> None:
        """Start with no copy on its way and with garbage in local memory."""
        self._launch = launch
        self._shared = shared
        self._lanes = lanes
        self._places = places
        self._commits = np.zeros(len(places.block), np.int64)  # groups of copies that each lane has committed
        self._copies: list[_Copy] = []
        self._local: Any = None  # (words, lanes) uint32, from the first access on

    def access(self, at: int, active: Any, whole: bool) -> None:
        """Execute the load, store or copy at an index of the code.

        Args:
            at: the index.
            active: (lanes,) bool, the lanes that execute it.
            whole: whether these are all that live.

        Raises:
            Fault: it breaks a rule of memory.
            BuildFailed: it moves values of a kind that is not followed here.
        """
        access = self._launch.access(at)
        if access.space == "copy":
            self._copy(access, at, active)
            return
        lanes = slice(None) if whole and self._lanes.alive == len(active) else np.flatnonzero(active)
        address = self._lanes.address(access.addresses[0])[lanes]
        if access.load:
            self._load(access, at, address, lanes, active, whole)
        else:
            self._store(access, at, address, lanes, active)

    def commit(self, active: Any) -> None:
        """Make the copies that the lanes of active, (lanes,) bool, sent since their last commit a group."""
        self._commits = self._commits + active

    def await_groups(self, last: int, active: Any) -> None:
        """Let the copies land that the lanes of active, (lanes,) bool, have sent, but for their last so many groups."""
        left = []
        for copy in self._copies:
            due = active[copy.lanes] & (copy.group < self._commits[copy.lanes] - last)
            if due.any():
                landed = copy.part(due)
                block, warp = self._places.block[landed.lanes], self._places.warp[landed.lanes]
                self._shared.arrive(block, warp, landed.address, landed.size, landed.at, landed.words)
            if not due.all():
                left.append(copy.part(~due))
        self._copies = left

    def _load(self, access: Access, at: int, address: Any, lanes: Any, active: Any, whole: bool) -> None:
        """Fill registers; lanes: those of active as a slice or as indices, address: theirs."""
        blanks: list[Any] = [None] * len(access.registers)  # for each word, which lanes found nothing written
        if access.space == "local":
            words = [self._stack()[address // 4 + i, self._indices(lanes)] for i in range(access.size // 4)]
        elif access.space == "global":
            words = self._launch.memory.load(self._places.thread[lanes], address, access.size, at)
        else:
            words, blanks = self._shared.load(self._places.block[lanes], self._places.warp[lanes], address, access.size, at)
        for register, word, blank in zip(access.registers, words, blanks, strict=True):
            self._lanes.write(register, self._spread(word, lanes), active, whole)
            if blank is not None:
                self._lanes.forget(register, self._spread(blank, lanes))

    def _store(self, access: Access, at: int, address: Any, lanes: Any, active: Any) -> None:
        """Write what registers hold; the arguments are those of `_load`."""
        words = [np.broadcast_to(self._lanes.bits(register), active.shape)[lanes] for register in access.registers]
        if access.space == "local":
            for i, word in enumerate(words):
                self._stack()[address // 4 + i, self._indices(lanes)] = word
        elif access.space == "global":
            self._launch.memory.store(self._places.thread[lanes], address, access.size, at, words)
        else:
            self._shared.store(self._places.block[lanes], self._places.warp[lanes], address, access.size, at, words)

    def _copy(self, access: Access, at: int, active: Any) -> None:
        """Send a copy; it carries zeros where a condition is false. Its source is read now, since nobody may write it during a launch."""
        inside = active
        for condition in access.conditions:
            inside = inside & self._lanes.bits(condition)
        words = [np.zeros(len(active), np.uint32) for _ in range(access.size // 4)]
        target, source = access.addresses
        if inside.any():
            taken = np.flatnonzero(inside)
            found = self._launch.memory.load(self._places.thread[taken], self._lanes.address(source)[taken], access.size, at)
            for word, part in zip(words, found, strict=True):
                word[taken] = part
        lanes = np.flatnonzero(active)
        to = self._lanes.address(target)[lanes]
        self._shared.send(self._places.block[lanes], self._places.warp[lanes], to, access.size, at)
        self._copies.append(_Copy(lanes, self._commits[lanes], to, access.size, at, [word[lanes] for word in words]))

    def _spread(self, values: Any, lanes: Any) -> Any:
        """Return (lanes,): values of some lanes among all, 0 for the others."""
        if isinstance(lanes, slice):
            return values
        every = np.zeros(len(self._places.block), values.dtype)
        every[lanes] = values
        return every

    def _indices(self, lanes: Any) -> Any:
        """Return the indices of lanes that are given as a slice or as indices."""
        return np.arange(len(self._places.block))[lanes]

    def _stack(self) -> Any:
        """Return local memory, (words, lanes) uint32."""
        if self._local is None:
            garbage = self._launch.random.integers(0, 1 << 32, (STACK_BYTES // 4, len(self._places.block)), np.uint64)
            self._local = garbage.astype(np.uint32)
        return self._local
