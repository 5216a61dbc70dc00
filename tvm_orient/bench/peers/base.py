"""The class of a peer, which says when it applies and makes its function, and the geometry of lines that peers share."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...problem.line_offsets import Offset
from ...problem.spec import ConvSpec

Call = Callable[..., Tensor]
Box = tuple[int, int, int, int]  # least and greatest dh, least and greatest dw; always around (0, 0)
Line = tuple[int, int, tuple[tuple[Offset, tuple[int, ...]], ...]]  # first channel, stop channel, offsets with the taps there


@dataclass(frozen=True)
class Peer:
    """One way to compute a spec in PyTorch.

    applies(spec): None, or the reason why this peer cannot compute it. make(spec, device): a function of the operands of
    `reference.run`; device is a torch.device or its name. memory_format: the form of 4-d operands that it is fast on; it
    converts others inside the call. Enter `settings()` around every call that is timed or checked.
    """

    name: str
    describe: str
    applies: Callable[[ConvSpec], str | None]
    make: Callable[[ConvSpec, torch.device | str], Call]
    memory_format: torch.memory_format = torch.contiguous_format


def settings() -> AbstractContextManager[None]:
    """Returns the cuDNN settings that are fair to the peers: true float32 (no TF32), and cuDNN picks its algorithm by timing."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)


# ---- geometry -----------------------------------------------------------------------------------


def tap_lines(spec: ConvSpec) -> tuple[list[Line], Box]:
    """Returns for each group that has channels its distinct offsets that reach the plane, with their taps; and the box around them all.

    Circular offsets are brought to the nearest image of the plane.
    """
    lines, reached = [], [(0, 0)]
    for (lo, hi), line in zip(spec.taps.channel_ranges(spec.channels), spec.taps.table, strict=True):
        if lo == hi:
            continue
        places: dict[Offset, tuple[int, ...]] = {}
        for s, offset in enumerate(line):
            offset = _nearest(offset, spec)
            if _reaches(offset, spec):
                places[offset] = (*places.get(offset, ()), s)
        lines.append((lo, hi, tuple(places.items())))
        reached += places
    rows, columns = zip(*reached, strict=True)
    return lines, (min(rows), max(rows), min(columns), max(columns))


def _nearest(offset: Offset, spec: ConvSpec) -> Offset:
    if spec.padding_mode == "zeros":
        return offset
    (dh, dw), half_h, half_w = offset, spec.height // 2, spec.width // 2
    return (dh + half_h) % spec.height - half_h, (dw + half_w) % spec.width - half_w


def _reaches(offset: Offset, spec: ConvSpec) -> bool:
    axes = zip(offset, (spec.height, spec.width), spec.stride, strict=True)
    return spec.padding_mode == "circular" or all(d < size and -(d // step) < -(-size // step) for d, size, step in axes)


def around(box: Box) -> tuple[int, int, int, int]:
    """Returns F.pad's argument that gives every offset of the box a pixel."""
    return -box[2], box[3], -box[0], box[1]


def pad_images(x: Tensor, box: Box, spec: ConvSpec) -> Tensor:
    return F.pad(x, around(box), mode="constant" if spec.padding_mode == "zeros" else "circular")


def joined_lines(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def as_conv(spec: ConvSpec) -> ConvSpec:
    """Returns conv_dx of stride 1 as conv: it is conv of the negated taps on dy."""
    return spec if spec.op != "conv_dx" else dataclasses.replace(spec, op="conv", taps=spec.taps.negated)


def always(spec: ConvSpec) -> str | None:
    return None


def compiled_peer(function: Call) -> Call:
    # a code object of its own: torch.compile counts recompilations by code object, and refuses the ninth spec
    own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)
