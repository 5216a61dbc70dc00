"""Memory that kernels run on where their machine code is executed: it holds values, and knows who touched each of them and when.

An epoch is what a block does between two barriers. Two warps that touch one piece of shared memory within one epoch, one of them
writing, race. An asynchronous copy arrives when it is waited for: until then whoever touches its target is at fault. Global memory has
bounds, and what one thread of a launch writes no other may touch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BuildFailed

# a tag says who touched a piece of memory last: its epoch, its warp and its instruction in one int64
_PLACE_BITS = 20  # bits of a tag that hold the index of an instruction
_INSTRUCTION = (1 << _PLACE_BITS) - 1  # mask of these bits
_WARPS = 64  # values that a tag can hold for a warp: more than a block can have
_SEVERAL_WARPS = 63  # the value that stands for more than one warp
_MAX_LOAD = 16  # bytes that a lane can load at once
_WALL = 512  # bytes between arrays in global memory that belong to none
_ALIGNMENT = 256  # bytes of which the addresses of the driver's allocations are multiples
_MIDDLE = 7 << 32  # address around which arrays lie, so that carries into the high word matter
_U32 = np.uint32


class Fault(BuildFailed):
    """A kernel breaks a rule of memory, of registers or of barriers.

    Attributes:
        what: what it does, in words that follow the text of the instruction.
        at: the indices of the instructions that do it, the later one first.
    """

    def __init__(self, what: str, *at: int) -> None:
        """Take what is wrong, and where."""
        super().__init__(what)
        self.what = what
        self.at = at


class Shared:
    """Shared memory of several blocks side by side.

    In its methods block, warp and address are (lanes,) int64: the block of each lane that takes part, its warp in that block, and the first byte
    that it touches; size is the bytes of a lane, at the index of the instruction, and words hold a (lanes,) uint32 for each word of 4 bytes.

    Attributes:
        size: bytes of a block.
        grain: bytes of the pieces by which accesses are told apart, 4 or 2.
        epoch: how many barriers the blocks have passed, and 1.
    """

    def __init__(self, blocks: int, size: int, grain: int, garbage: np.random.Generator) -> None:
        """Start with memory that nobody wrote, filled with garbage."""
        self.size = size
        self.grain = grain
        self.epoch = 1
        self._units = -(-size // _MAX_LOAD) * _MAX_LOAD // grain
        self._values = garbage.integers(0, 1 << 32, blocks * self._units * grain // 4, np.uint64).astype(_U32)
        # tags of who wrote and who read each piece last: 0 for nobody, the negative for a copy on its way
        self._wrote = np.zeros(blocks * self._units, np.int64)
        self._read = np.zeros(blocks * self._units, np.int64)

    def load(self, block: Any, warp: Any, address: Any, size: int, at: int) -> tuple[list[Any], list[Any]]:
        """Return the words that lanes read, and for each word which lanes found nothing written, (lanes,) bool, or None where all found something.

        Compilers join loads to wider ones, which may reach past what is written. So a load is at fault only where nothing of what it reads was written.

        Raises:
            Fault: that; or the address is not aligned or outside; or a copy is on its way there, or another warp wrote there in this epoch.
        """
        mine, now = self._tag(warp, at), self._now()
        blanks: list[Any] = []
        for unit in self._pieces(block, address, size, at, reading=True):
            wrote = self._wrote[unit]
            if wrote.min() <= 0 or wrote.max() >= now:
                self._legal(wrote, mine, at, "reads")
            blanks.append(wrote == 0)
            read, tag = self._read[unit], mine
            if read.max() >= now:
                others = (read >= now) & (read ^ mine >= 1 << _PLACE_BITS)
                tag = np.where(others, self.epoch * _WARPS + _SEVERAL_WARPS << _PLACE_BITS | read & _INSTRUCTION, mine)
            self._read[unit] = tag
        if np.logical_and.reduce(blanks).any():
            raise Fault("reads shared memory that nothing wrote", at)
        if size == 2:
            return [self._values.view(np.uint16)[self._places(block, address, 2)].astype(_U32)], [None]
        place, each = self._places(block, address, 4), 4 // self.grain
        lacking = [np.logical_and.reduce(blanks[i : i + each]) for i in range(0, len(blanks), each)]
        return [self._values[place + i] for i in range(size // 4)], [blank if blank.any() else None for blank in lacking]

    def store(self, block: Any, warp: Any, address: Any, size: int, at: int, words: Sequence[Any]) -> None:
        """Write words of lanes.

        Raises:
            Fault: the address is not aligned or outside; or a copy is on its way there, or another warp touched it in this epoch;
                or two lanes write different values to one place.
        """
        for unit in self._pieces(block, address, size, at):
            self._claim(unit, warp, at)
        self._put(block, address, size, at, words)

    def send(self, block: Any, warp: Any, address: Any, size: int, at: int) -> None:
        """Announce a copy into shared memory: nobody may touch its target until it arrives.

        Raises:
            Fault: as `store`.
        """
        for unit in self._pieces(block, address, size, at):
            self._claim(unit, warp, at)
            self._wrote[unit] = -self._wrote[unit]

    def arrive(self, block: Any, warp: Any, address: Any, size: int, at: int, words: Sequence[Any]) -> None:
        """Let a copy land that was announced with these lanes, addresses and instruction.

        Raises:
            Fault: two lanes write different values to one place.
        """
        for unit in self._pieces(block, address, size, at):
            self._wrote[unit] = self._tag(warp, at)
        self._put(block, address, size, at, words)

    def _now(self) -> int:
        """Return the least tag of this epoch."""
        return self.epoch * _WARPS << _PLACE_BITS

    def _tag(self, warp: Any, at: int) -> Any:
        """Return (lanes,) int64: the tags of these warps at an instruction, in this epoch."""
        return self.epoch * _WARPS + warp << _PLACE_BITS | at

    def _places(self, block: Any, address: Any, bytes_each: int) -> Any:
        """Return (lanes,) int64: where addresses lie in the memory of all blocks, in pieces of so many bytes."""
        return block * (self._units * self.grain // bytes_each) + address // bytes_each

    def _pieces(self, block: Any, address: Any, size: int, at: int, reading: bool = False) -> list[Any]:
        """Return the indices of the pieces of `grain` bytes that an access touches, (lanes,) int64 for the first of each lane, for the second, ..."""
        if (address % size).any():
            raise Fault(f"touches shared memory that is not aligned to its {size} bytes", at)
        if address.min() < 0 or address.max() + size > (-(-self.size // _MAX_LOAD) * _MAX_LOAD if reading else self.size):
            raise Fault(f"touches shared memory outside its {self.size} bytes", at)
        first = self._places(block, address, self.grain)
        return [first + i for i in range(max(1, size // self.grain))]

    def _legal(self, seen: Any, mine: Any, at: int, does: str) -> None:
        """Fail where the tags of pieces, seen, belong to a copy on its way, or to another warp in this epoch than mine do."""
        if seen.min() < 0:
            raise Fault(f"{does} shared memory into which a copy is on its way", at, -int(seen.min()) & _INSTRUCTION)
        other = (seen >= self._now()) & (seen ^ mine >= 1 << _PLACE_BITS)
        if other.any():
            raise Fault(f"{does} shared memory that another warp touches in the same epoch", at, int(seen[other][0]) & _INSTRUCTION)

    def _claim(self, unit: Any, warp: Any, at: int) -> None:
        """Note that lanes write pieces, where nobody forbids it."""
        mine, now = self._tag(warp, at), self._now()
        for seen in (self._wrote[unit], self._read[unit]):
            if seen.min() < 0 or seen.max() >= now:
                self._legal(seen, mine, at, "writes")
        self._wrote[unit] = mine

    def _put(self, block: Any, address: Any, size: int, at: int, words: Sequence[Any]) -> None:
        """Store words, where no two lanes store different values to one place."""
        values = self._values if size >= 4 else self._values.view(np.uint16)
        place = self._places(block, address, min(size, 4))
        for i, word in enumerate(words):
            word = (word & _U32(0xFFFF)).astype(np.uint16) if size == 2 else word
            values[place + i] = word
            if (values[place + i] != word).any():
                raise Fault("writes two values to one place of shared memory", at)


class Global:
    """Global memory that holds copies of some arrays.

    In its methods thread and address are (lanes,) int64: the thread of the launch that each lane is, and the first byte that it touches; the other
    arguments are those of `Shared`.

    Attributes:
        addresses: where each array begins, in bytes.
    """

    def __init__(self, arrays: Sequence[Any]) -> None:
        """Copy the arrays, of any shape and dtype, to places with walls between them."""
        self._arrays = arrays
        starts, end = [], _WALL
        for array in arrays:
            starts.append(end)
            end = -(-(end + array.nbytes) // _ALIGNMENT) * _ALIGNMENT + _WALL
        self._base = _MIDDLE - end // 2 // _ALIGNMENT * _ALIGNMENT
        self.addresses = [self._base + start for start in starts]
        self._bytes = np.zeros(end, np.uint8)
        self._inside = np.zeros(end // 2, bool)  # whether each 2 bytes belong to an array
        self._writer = np.zeros(end // 2, np.int64)  # thread that wrote each 2 bytes in this launch, counted from 1
        for start, array in zip(starts, arrays, strict=True):
            self._bytes[start : start + array.nbytes] = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            self._inside[start // 2 : (start + array.nbytes) // 2] = True
        self._starts = starts

    def give_back(self) -> None:
        """Copy what every array holds now back into the array that was given."""
        for start, array in zip(self._starts, self._arrays, strict=True):
            array[...] = self._bytes[start : start + array.nbytes].view(array.dtype).reshape(array.shape)

    def load(self, thread: Any, address: Any, size: int, at: int) -> list[Any]:
        """Return the words that lanes read.

        Raises:
            Fault: the address is not aligned, or outside every array; or another thread of the launch wrote there.
        """
        place = self._place(address, size, at)
        for edge in (place, place + size - 2):
            writer = self._writer[edge // 2]
            if ((writer > 0) & (writer != thread + 1)).any():
                raise Fault("reads global memory that another thread of the launch wrote", at)
        if size == 2:
            return [self._bytes.view(np.uint16)[place // 2].astype(_U32)]
        return [self._bytes.view(_U32)[place // 4 + i] for i in range(size // 4)]

    def store(self, thread: Any, address: Any, size: int, at: int, words: Sequence[Any]) -> None:
        """Write words of lanes.

        Raises:
            Fault: the address is not aligned, or outside every array; or another thread of the launch wrote there, or writes there now.
        """
        place = self._place(address, size, at)
        for i in range(size // 2):
            half = place // 2 + i
            writer = self._writer[half]
            if ((writer > 0) & (writer != thread + 1)).any():
                raise Fault("writes global memory that another thread of the launch wrote", at)
            self._writer[half] = thread + 1
            if (self._writer[half] != thread + 1).any():
                raise Fault("writes global memory that another thread writes too", at)
            self._bytes.view(np.uint16)[half] = (words[i // 2] >> _U32(16 * (i % 2)) & _U32(0xFFFF)).astype(np.uint16)

    def _place(self, address: Any, size: int, at: int) -> Any:
        """Return (lanes,) int64: where addresses lie in `_bytes`."""
        place = address - self._base
        if (place % size).any():
            raise Fault(f"touches global memory that is not aligned to its {size} bytes", at)
        if place.min() < 0 or place.max() + size > len(self._bytes) or not (self._inside[place // 2] & self._inside[(place + size - 2) // 2]).all():
            raise Fault("touches global memory outside every array", at)
        return place
