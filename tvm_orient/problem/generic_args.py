"""What the generic kernels are told at run time: offset tables and sizes of a spec. They know no spec when they are compiled.

CPU kernels stage bands of a plane between its halo, so a tap is one linear offset into the stage. CUDA kernels load directly, so
a tap is a row and a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsupported
from .spec import ConvSpec
from .stencil import alive, nearest, round_up

BAND = 32  # rows of outputs that are staged, or summed, at a time
PATCH = 8  # rows, or taps of conv_dw, that are summed side by side
_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class GenericArgs:
    """Arguments of a generic kernel beside its operands, in order: int32 tables, then whole numbers.

    workspace: (bands, taps) per image and channel of conv_dw's partial sums.
    """

    tables: tuple[NDArray[np.int32], ...]
    numbers: tuple[int, ...]
    workspace: tuple[int, int]


def key(spec: ConvSpec) -> str:
    """What a generic kernel depends on, in the place of a spec's key."""
    return f"{spec.op}-generic-{spec.padding_mode}-{spec.dtype}-nchw"


def generic_args(spec: ConvSpec, kind: str, lanes: int = 1) -> GenericArgs:
    """The arguments for a spec; lanes: sums in a CPU's vector.

    Raises:
        Unsupported: a staged band would need more than 2^31 elements.
    """
    return _direct(spec) if kind == "cuda" else _staged(spec, lanes)


def _offsets(spec: ConvSpec) -> NDArray[np.int64]:
    """(G, K, 2): output row i reads row i * step + offset of the source (conv_dx: of dy spread out by the stride)."""
    offsets = spec.taps.offsets.astype(np.int64)
    return -offsets if spec.op == "conv_dx" else offsets


def _direct(spec: ConvSpec) -> GenericArgs:
    plane = np.array([spec.height, spec.width])
    offsets = _offsets(spec)
    # no product or sum may overflow: circular offsets lie in [0, plane), and what never lands stays outside when clipped
    table = offsets % plane if spec.padding_mode == "circular" else np.clip(offsets, -plane, plane)
    workspace = (-(-spec.out_height // BAND), spec.kernel_size) if spec.op == "conv_dw" else (0, 0)
    return GenericArgs((np.ascontiguousarray(table, np.int32),), spec.stride, workspace)


def _staged(spec: ConvSpec, lanes: int) -> GenericArgs:
    forward = spec.op != "conv_dx"
    plane, step = (spec.height, spec.width), spec.stride if forward else (1, 1)
    out = (spec.out_height, spec.out_width) if forward else plane
    lines = []
    for line in _offsets(spec).tolist():
        if spec.padding_mode == "circular":
            found = [(nearest(h, plane[0]), nearest(w, plane[1]), s) for s, (h, w) in enumerate(line)]
        else:
            found = [(h, w, s) for s, (h, w) in enumerate(line) if alive(h, out[0], step[0], plane[0]) and alive(w, out[1], step[1], plane[1])]
        lines.append(found)
    every = [tap for line in lines for tap in line]
    top, low = max([0, *(-h for h, _, _ in every)]), max([0, *(h for h, _, _ in every)])
    left = round_up(max([0, *(-w for _, w, _ in every)]), lanes * step[1])
    rows = (round_up(min(out[0], BAND), PATCH) - 1) * step[0] + 1 + top + low
    reached = round_up(out[1], lanes) + max([0, *((w + left) // step[1] for _, w, _ in every)])
    columns = round_up(max(reached, -(-(left + plane[1]) // step[1])), lanes)  # whole source rows are copied, read or not
    if rows * step[1] * columns > _LIMIT:
        raise Unsupported(f"a band of {spec} with its halo takes {rows * step[1] * columns} elements, at most {_LIMIT}: cut the plane into tiles")
    length = round_up(max(1, *(len(line) for line in lines)) if lines else 1, PATCH)
    table = np.zeros((len(lines), length, 2), np.int32)
    for g, line in enumerate(lines):
        for i, (h, w, s) in enumerate(line):
            table[g, i] = ((h + top) * step[1] + (w + left) % step[1]) * columns + (w + left) // step[1], s
    count = np.array([len(line) for line in lines], np.int32)
    numbers = (*step, top, left, rows, columns)
    if spec.op == "conv_dw":
        return GenericArgs((table, count), numbers, (-(-out[0] // BAND), length))
    return GenericArgs((table, count), (*numbers, *((1, 1) if forward else spec.stride)), (0, 0))
