"""The arguments that generic kernels get at run time: offset tables and sizes of a spec, for they know no spec when they are compiled.

CPU kernels stage bands of a plane between its halo, so a tap is one linear offset into the stage. CUDA kernels load directly, so
a tap is a row and a column.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import Unsupported
from .device import Device
from .spec import DTYPES, ConvSpec
from .stencil import alive, nearest, round_up

BAND = 32  # rows of outputs that a block of a GPU sums at a time
_MAX_BANDS = (64, 32)  # rows of outputs that a CPU stages at a time: the first whose stage the nearest cache holds, else the last
_MAX_NEAR = 2**13  # elements of a stage that the nearest cache holds
IMAGES = 4  # images whose weight gradients a task of the CPU sums, before it adds up the lanes of its vectors
PATCH = 8  # rows, or taps of conv_dw, that a CPU sums side by side
_MAX_VECTOR = 32  # bytes of a vector of a CPU kernel: an unaligned one straddles cache lines half as often as one of 64
_MAX_STAGED = 2**31 - 1  # elements of a staged band: kernels index with 32 bits


@dataclass(frozen=True)
class GenericArgs:
    """Arguments of a generic kernel beside its operands, in order: the tables, then the numbers.

    Attributes:
        tables: on a GPU one, (G, K, 2): the row and the column of each tap. On a CPU two: (G, T, 2), for each tap that reads the plane its place in
            the stage and its index, and (G,), how many these are.
        numbers: on a GPU the stride. On a CPU the stride of the stage, the rows and columns of halo before the plane, rows and columns of the
            stage, rows of outputs of a band; of conv and conv_dx then the stride of the result.
        workspace: (bands, taps) of conv_dw's partial sums of an image and channel; a CPU sums all bands in one. (0, 0) of the other ops.
    """

    tables: tuple[NDArray[np.int32], ...]
    numbers: tuple[int, ...]
    workspace: tuple[int, int]


def vector_lanes(device: Device, sums: str) -> int:
    """Return the number of sums of a dtype in a vector of a CPU's generic kernel: 32 bytes at most, for longer ones waste more of a short row."""
    return min(device.vector_bytes, _MAX_VECTOR) // DTYPES[sums]


def key(spec: ConvSpec) -> str:
    """Return the key of the generic kernel that serves a spec: all that it depends on, in the place of a spec's key."""
    return f"{spec.op}-generic-{spec.padding_mode}-{spec.dtype}-nchw"


def generic_args(spec: ConvSpec, kind: str, lanes: int = 1) -> GenericArgs:
    """Return the arguments for a spec.

    Args:
        spec: the problem.
        kind: of the device, "cuda" or "cpu".
        lanes: sums in a vector of the CPU.

    Raises:
        Unsupported: a staged band would need 2^31 elements or more.
    """
    return _direct(spec) if kind == "cuda" else _staged(spec, lanes)


def _offsets(spec: ConvSpec) -> NDArray[np.int64]:
    """Return (G, K, 2): output row i reads row i * step + offset of the source (conv_dx: of dy spread out by the stride), and columns alike."""
    offsets = spec.taps.offsets.astype(np.int64)
    return -offsets if spec.op == "conv_dx" else offsets


def _direct(spec: ConvSpec) -> GenericArgs:
    """Return the arguments of a CUDA kernel, which loads every tap from the source itself."""
    plane = np.array([spec.height, spec.width])
    offsets = _offsets(spec)
    # no product or sum may overflow: circular offsets lie in [0, plane), and what never lands stays outside when clipped
    table = offsets % plane if spec.padding_mode == "circular" else np.clip(offsets, -plane, plane)
    workspace = (-(-spec.out_height // BAND), spec.kernel_size) if spec.op == "conv_dw" else (0, 0)
    return GenericArgs((np.ascontiguousarray(table, np.int32),), spec.stride, workspace)


def _staged(spec: ConvSpec, lanes: int) -> GenericArgs:
    """Return the arguments of a CPU kernel, which stages bands of the plane between its halo, columns by their phase."""
    forward = spec.op != "conv_dx"
    plane, step = (spec.height, spec.width), spec.stride if forward else (1, 1)
    out = (spec.out_height, spec.out_width) if forward else plane
    lines = _reaching(spec, out, step)
    every = [tap for line in lines for tap in line]
    (top, low), (left, right) = ((max([0, *(-tap[axis] for tap in every)]), max([0, *(tap[axis] for tap in every)])) for axis in (0, 1))
    if step[1] != 1:
        left = round_up(left, lanes * step[1])
        columns = max(round_up(out[1], lanes) + (right + left) // step[1], -(-(left + plane[1]) // step[1]))  # whole source rows are copied, read or not
    elif spec.padding_mode == "circular":
        left = round_up(left, plane[1])  # a row begins where one of the source does
        columns = left + out[1] + right
    else:
        columns = plane[1] + max(left, right)  # the zeros between two rows are the halo of both
    columns = round_up(columns, lanes)
    for most in _MAX_BANDS:
        band = round_up(-(-out[0] // -(-out[0] // most)), PATCH)  # as few as may be, and alike
        rows = (band - 1) * step[0] + 1 + top + low
        staged = rows * step[1] * columns + left + plane[1] + 2 * lanes  # and what stands before the first row and after the last one
        if staged <= _MAX_NEAR:
            break
    if staged > _MAX_STAGED:
        raise Unsupported(f"a band of {spec} with its halo takes {staged} elements, at most {_MAX_STAGED}: cut the plane into tiles")
    length = round_up(max(1, *(len(line) for line in lines)) if lines else 1, PATCH)
    table = np.zeros((len(lines), length, 2), np.int32)
    for g, line in enumerate(lines):
        for i, (h, w, s) in enumerate(line):
            table[g, i] = ((h + top) * step[1] + (w + left) % step[1]) * columns + (w + left) // step[1], s
    count = np.array([len(line) for line in lines], np.int32)
    numbers = (*step, top, left, rows, columns, band)
    if spec.op == "conv_dw":
        return GenericArgs((table, count), numbers, (1, length))
    return GenericArgs((table, count), (*numbers, *((1, 1) if forward else spec.stride)), (0, 0))


def _reaching(spec: ConvSpec, out: tuple[int, int], step: tuple[int, int]) -> list[list[tuple[int, int, int]]]:
    """Return by group (row, column, index) of each tap that reads the plane from some of out outputs, which lie step apart.

    Offsets of circular taps are taken modulo the plane, to the nearest of those that read the same.
    """
    plane, lines = (spec.height, spec.width), []
    for line in _offsets(spec).tolist():
        if spec.padding_mode == "circular":
            found = [(nearest(h, plane[0]), nearest(w, plane[1]), s) for s, (h, w) in enumerate(line)]
        else:
            found = [(h, w, s) for s, (h, w) in enumerate(line) if alive(h, out[0], step[0], plane[0]) and alive(w, out[1], step[1], plane[1])]
        lines.append(found)
    return lines
