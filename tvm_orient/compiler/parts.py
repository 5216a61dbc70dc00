"""Describes the parts of a layer that are compiled apart: one for each angle group, and the same for every layer that has such a group.

Nothing here needs a compiler: which parts a kernel is made of is asked before one is started.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..errors import BuildFailed
from ..problem.device import Device
from ..problem.spec import DTYPES, ConvSpec, Operand
from ..schedules.choices import Choice

ALIGNMENT = {"cpu": 64, "cuda": 16}  # bytes by kind of device that vector loads of generated code count on; TVM itself checks nothing
_WORKSPACE_STEP = 16  # elements of a workspace that parts begin at multiples of: 64 bytes of float32
FORMAT = 1  # of the bytes of a compiled part


@dataclass(frozen=True)
class Part:
    """One angle group of a layer as it is compiled: all that its code depends on, beside the device.

    Attributes:
        spec: of the angle alone, over all channels of the layer.
        channels: how many of them it computes.
        offset: channels between the one whose address is given and the first that it computes; less than what keeps vectors aligned.
        choice: how it is scheduled; without the step of the lookup that it came from, which changes nothing.
    """

    spec: ConvSpec
    channels: int
    offset: int
    choice: Choice

    @property
    def plain(self) -> list[Any]:
        """Returns the part as JSON can hold it; `of_plain` makes it again."""
        return [self.spec.key, self.channels, self.offset, self.choice.plain]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> Part:
        """Returns the part that `plain` was made of."""
        key, channels, offset, choice = plain
        return cls(ConvSpec.from_key(key), channels, offset, Choice.of_plain(choice))

    @property
    def symbol(self) -> str:
        """Returns the name of its functions in an object file, without the number of each: one that no other part of a layer has."""
        return "tvm_orient_part_" + hashlib.sha256(json.dumps(self.plain).encode()).hexdigest()[:20]


class Placed(NamedTuple):
    """A part where it stands in a layer, and the layer's channel whose addresses it is given."""

    part: Part
    channel: int


@dataclass(frozen=True)
class PartLaunch:
    """A kernel of a part, or on a CPU a function.

    Attributes:
        each: tasks for an image, blocks on a GPU.
        more: tasks beside those.
        threads: of a block; 1 on a CPU.
        names: of its parameters, in order, on a GPU; a function on a CPU has every operand, the batch and the task.
        scratch: bytes of each array that a function on a CPU is lent, in the order of the parameters that follow those.
    """

    each: int
    more: int
    threads: int
    names: tuple[str, ...] = ()
    scratch: tuple[int, ...] = ()

    def tasks(self, n: Any) -> Any:
        """Returns the tasks of n images, where n is a number or an expression."""
        return n * self.each + self.more if self.each and self.more else n * self.each if self.each else self.more


@dataclass(frozen=True)
class CompiledPart:
    """A part, compiled.

    Attributes:
        launches: its kernels or functions, in the order in which they run.
        workspace: (bands, taps) that conv_dw keeps for each image and channel; None for another op.
        code: an object file for a CPU, PTX for a GPU.
        source: CUDA source; empty for a CPU.
    """

    launches: tuple[PartLaunch, ...]
    workspace: tuple[int, int] | None
    code: bytes
    source: str

    @property
    def payload(self) -> bytes:
        """Returns it as bytes, whose first line has a checksum of all others; `of_payload` makes it again."""
        launches = [dataclasses.astuple(one) for one in self.launches]
        head = json.dumps({"launches": launches, "workspace": self.workspace, "code": len(self.code)}).encode()
        rest = b"\n".join([head, self.code + self.source.encode()])
        return _sealed(rest) + b"\n" + rest

    @classmethod
    def of_payload(cls, payload: bytes) -> CompiledPart:
        """Returns the part that `payload` was made of.

        Raises:
            BuildFailed: the bytes are no whole part of this format.
        """
        seal, _, rest = payload.partition(b"\n")
        if seal != _sealed(rest):
            raise BuildFailed(
                f"a compiled part must be whole, and begin with its format {FORMAT} and its checksum, got {len(payload)} other bytes: it is compiled again"
            )
        line, _, body = rest.partition(b"\n")
        head = json.loads(line)
        launches = tuple(PartLaunch(each, more, threads, tuple(names), tuple(scratch)) for each, more, threads, names, scratch in head["launches"])
        space, size = head["workspace"], head["code"]
        return cls(launches, None if space is None else (space[0], space[1]), body[:size], body[size:].decode())


def _sealed(rest: bytes) -> bytes:
    """Returns the first line of the bytes of a compiled part whose other lines these are: the format, and their checksum."""
    return f"tvm_orient part {FORMAT} {hashlib.sha256(rest).hexdigest()}".encode()


def placed_parts(spec: ConvSpec, choices: Sequence[Choice], device: Device) -> list[Placed]:
    """Returns the parts of a layer, first channel to last.

    Args:
        choices: one for each of `spec.parts()`, none of them generic.
    """
    step = _aligned_channels(spec, device)
    found = []
    for (start, stop, part), choice in zip(spec.parts(), choices, strict=True):
        offset = start % step
        found.append(Placed(Part(part, stop - start, offset, dataclasses.replace(choice, step="")), start - offset))  # the same by whatever step
    return found


def _aligned_channels(spec: ConvSpec, device: Device) -> int:
    """Returns the least number of channels that moves the address of every operand by whole vectors."""
    alignment = ALIGNMENT[device.kind]
    steps = (channel_elements(one) * DTYPES[one.dtype] for one in spec.operands(1) if one.role != "workspace")
    return math.lcm(*(alignment // math.gcd(step, alignment) for step in steps))


def channel_elements(operand: Operand) -> int:
    """Returns the elements between one channel of an operand and the next."""
    return math.prod(operand.shape[operand.channel_axis + 1 :])


def workspaces(spec: ConvSpec, spaces: Sequence[tuple[int, tuple[int, int] | None]]) -> tuple[list[int], tuple[int, int] | None]:
    """Returns where in a layer's workspace each part's begins, in elements for each image, and the (bands, taps) that the whole needs a channel.

    Args:
        spec: of the layer.
        spaces: channels and workspace of each part.
    """
    starts, total = [], 0
    for channels, space in spaces:
        if space is not None:
            total = -(-total // _WORKSPACE_STEP) * _WORKSPACE_STEP
        starts.append(total)
        total += channels * space[0] * space[1] if space is not None else 0
    return starts, (1, -(-total // spec.channels)) if total else None
