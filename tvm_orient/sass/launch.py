"""A launch of a kernel whose machine code is executed: what all its blocks have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..errors import BuildFailed
from .checked_memory import Global
from .cubin import KernelFacts
from .decode import SPACES, Step, accessed_registers, bytes_per_lane, steps

STACK_BYTES = 1 << 12  # bytes of local memory of a thread
_STACK_ENDS = (0x28, 0x37C)  # places in constant bank 0 that hold the end of local memory
_THREADS = (0x0, 0x4, 0x8)  # places that hold the size of a block along x, y and z, up to sm_90
_BLOCKS = (0xC, 0x10, 0x14)  # places that hold the size of the grid along x, y and z, up to sm_90
_DESCRIPTORS = (0x118, 0x11C, 0x208, 0x20C)  # places that hold a descriptor of global memory, which is all the memory there is here


class Access(NamedTuple):
    """A load, a store or a copy, decoded.

    Attributes:
        space: "global", "shared", "local" or "copy".
        load: whether registers are filled, not read.
        addresses: operands that are addresses: the target and the source of a copy, one of any other.
        registers: those that are filled or read, one for each word of 4 bytes.
        size: bytes that a lane moves.
        conditions: predicates under which a copy reads its source.
    """

    space: str
    load: bool
    addresses: tuple[str, ...]
    registers: tuple[str, ...]
    size: int
    conditions: tuple[str, ...]


class KernelLaunch:
    """One launch: the code, what its constant banks hold, global memory, and in which order the warps of a block run.

    Attributes:
        name: of the kernel.
        shared_bytes: static shared memory of a block.
        steps: the code.
        constants: words of each constant bank by their place in bytes.
        memory: global memory, which holds the arrays among the arguments.
        threads: of a block along x and along y.
        order: in which the warps of a block run between two barriers, one of `executor.ORDERS`.
        random: where the garbage that nobody wrote comes from, and a random order.
    """

    def __init__(self, kernel: KernelFacts, grid: int, threads: tuple[int, int], arguments: Sequence[Any], order: str, seed: int) -> None:
        """Take the arguments of `executor.execute`, of which there must be as many as the kernel has parameters."""
        self.name = kernel.name
        self.shared_bytes = kernel.shared
        self.steps = steps(kernel.code)
        self.memory = Global([argument for argument in arguments if isinstance(argument, np.ndarray)])
        self.constants = {bank: _words(held) for bank, held in kernel.constants.items()}
        self.constants[0] = _launch_words(kernel, self.memory, arguments, threads, grid)
        self.threads = threads
        self.order = order
        self.random = np.random.default_rng(seed)
        self._accesses: dict[int, Access] = {}

    def access(self, at: int) -> Access:
        """Return the load, store or copy that stands at an index of the code.

        Raises:
            BuildFailed: it moves values of a kind that is not followed here.
        """
        found = self._accesses.get(at)
        if found is None:
            found = self._accesses[at] = _decoded(self.steps[at])
        return found


def _words(held: bytes) -> dict[int, int]:
    """Return the words of a constant bank by their place in bytes."""
    return dict(zip(range(0, len(held), 4), np.frombuffer(held, np.uint32).tolist(), strict=False))


def _launch_words(kernel: KernelFacts, memory: Global, arguments: Sequence[Any], threads: tuple[int, int], grid: int) -> dict[int, int]:
    """Return the words of constant bank 0 by their place in bytes: the parameters, and what the driver puts before them."""
    words = dict.fromkeys(_DESCRIPTORS, 0) | dict.fromkeys(_STACK_ENDS, STACK_BYTES)
    words |= dict(zip((*_THREADS, *_BLOCKS), (*threads, 1, grid, 1, 1), strict=True))
    addresses = iter(memory.addresses)
    for (offset, size), argument in zip(kernel.parameters, arguments, strict=True):
        value = next(addresses) if isinstance(argument, np.ndarray) else int(argument)
        for i in range(0, size, 4):
            words[offset + i] = value >> 8 * i & 0xFFFFFFFF
    return words


def _decoded(step: Step) -> Access:
    """Return the access that an instruction makes."""
    name, addresses, size = step.opcode[0], step.addresses, bytes_per_lane(step.opcode)
    if any(part in step.opcode for part in ("S16", "U8", "S8", "16")):
        raise BuildFailed(f"{step} is not followed")
    others = tuple(operand for operand in step.operands if operand not in addresses)
    if name == "LDGSTS":
        return Access("copy", False, addresses, (), size, others)
    zeros = others[0].startswith("RZ")  # a store of zeros, or a load that is thrown away
    registers = others[:1] * max(1, size // 4) if zeros else tuple(accessed_registers(step))
    return Access(SPACES[name], name.startswith("LD"), addresses, registers, size, ())
