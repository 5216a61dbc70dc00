# mypy: disable-error-code="valid-type,misc,no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"
"""CPU: any size, any taps, nothing known before run time; what an unseen problem can be given without compiling.

Written in TVMScript, since no schedule primitive applies to sizes that are not known. A task is a plane; bands of it are staged with
their halo (columns parted by the stride), so that a tap is one linear offset and every load a whole vector.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_orient.problem.device import Device
from tvm_orient.problem.generic_args import IMAGES, PATCH, vector_lanes
from tvm_orient.problem.spec import sums_of
from tvm_orient.toolchain.tvm import load_tvm

from ..base import Generic
from .generic_stage import fill, inside, row_copy

_BESIDE = {"avx2": 1, "x86_64": 1}  # vectors of a patch side by side by arch, where there are 16 vector registers; 2 where there are 32


class CpuGeneric(Generic):
    """Computes every op on a CPU with nothing known when it is compiled: sizes are arguments, and taps a table of integers.

    One kernel serves every problem of its op, padding mode and dtype. It runs what the templates decline, and what is not in the cache where
    compiling is off. Bands of rows are staged, by whole vectors where the columns are not spread out, and two rows share the zeros between them. A
    tap is one offset; 8 rows of two vectors are summed side by side, or 8 taps of `conv_dw`, of four images at a time. Vectors have 32 bytes at
    most: longer ones waste more of a short row, and straddle cache lines twice as often. Its parameters are the operands, a table (G, L, 2) of
    offset and tap, a count (G,), the workspace of conv_dw, the result, and numbers.
    """

    name = "cpu_generic"
    version = 2
    kind = "cpu"

    def func(self, op: str, padding_mode: str, dtype: str, device: Device) -> Any:
        load_tvm()
        sums, circular = sums_of(dtype), padding_mode == "circular"
        lanes = vector_lanes(device, sums)
        if op != "conv_dw":
            return _conv(dtype, sums, lanes, _BESIDE.get(device.arch, 2), circular, op == "conv_dx")
        from tvm_orient.codegen.tir.confine_nonfinite import confined_generic  # which needs the compiler

        return confined_generic(_dw(dtype, sums, lanes, circular), padding_mode)


def _at(lanes: int) -> Callable[[Any], Any]:
    """Returns a function from a place to the indices of the vector that begins there."""
    from tvm.script import tirx as T

    return lambda start: T.Ramp(start, 1, lanes)


def _patch(dtype: str, sums: str, lanes: int) -> Any:
    """Returns a macro that sums PATCH rows of `beside` vectors of outputs, and stores them: from `row` on, and from vector `block` on."""
    from tvm.script import tirx as T

    at, zeros = _at(lanes), T.Broadcast(T.Cast(sums, 0), lanes)

    def weighed(weight: Any, vector: Any) -> Any:
        """Returns an expression, for the weight must not be bound: TVM reads a bound bfloat16 as a whole number where the CPU has none."""
        return T.Broadcast(T.Cast(sums, weight), lanes) * vector

    @T.inline
    def stored(out, a, b, row, block, q, vector):
        if (block + 1) * lanes <= q:
            out[a, b, row, at(block * lanes)] = vector
        else:
            T.evaluate(T.masked_store(out, vector, a, b, row, at(block * lanes), inside(lanes, block, q)))

    @T.inline
    def patch(stage, start, pitch, w, table, taps, out, a, b, group, row, block, beside, p, q):
        acc = T.alloc_buffer((PATCH * beside * lanes,), sums)
        for i in T.unroll(PATCH * beside):
            acc[at(i * lanes)] = zeros
        for t in T.serial(taps):
            offset = T.bind(T.Cast("int64", table[group, t, 0]))  # in 64 bits, or LLVM adds up addresses in vectors
            for i in T.unroll(PATCH):
                for s in T.unroll(beside):
                    vector = T.bind(stage[at(offset + T.Cast("int64", start + block * lanes + i * pitch) + s * lanes)])
                    acc[at((i * beside + s) * lanes)] = acc[at((i * beside + s) * lanes)] + weighed(w[b, table[group, t, 1]], vector)
        for i in T.unroll(PATCH):
            if row + i < p:
                for s in T.unroll(beside):
                    stored(out, a, b, row + i, block + s, q, T.Cast(f"{dtype}x{lanes}", acc[at((i * beside + s) * lanes)]))

    return patch


def _conv(dtype: str, sums: str, lanes: int, beside: int, circular: bool, spread: bool) -> Any:
    """Returns the kernel of conv; or of conv_dx (spread), which is conv of stride 1 on dy spread out by the stride, zeros between.

    beside: vectors of a patch, side by side.
    """
    from tvm.script import tirx as T

    filled, patch = fill(dtype, sums, lanes, circular), _patch(dtype, sums, lanes)

    def plane(source: Any, result: Any) -> Any:
        return result if spread else source

    @T.prim_func
    def main(
        source_: T.handle, w_: T.handle, table_: T.handle, count_: T.handle, out_: T.handle,
        down: T.int32, across: T.int32, top: T.int32, left: T.int32, rows: T.int32, columns: T.int32, high: T.int32, hole_h: T.int32, hole_w: T.int32,
    ):  # fmt: skip
        n, c, height, width = T.int32(), T.int32(), T.int32(), T.int32()
        k, g, most, p, q = T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
        source = T.match_buffer(source_, (n, c, height, width), dtype)
        w = T.match_buffer(w_, (c, k), dtype)
        table = T.match_buffer(table_, (g, most, 2), "int32")
        count = T.match_buffer(count_, (g,), "int32")
        out = T.match_buffer(out_, (n, c, p, q), dtype)
        for task in T.parallel(n * c):
            a = T.bind(task // c)
            b = T.bind(task % c)
            group = T.bind((g * (b + 1) - 1) // c)
            lead = T.bind((left + lanes - 1) // lanes * lanes - left)
            stage = T.alloc_buffer((lead + left + rows * across * columns + plane(width, q) + lanes,), sums)
            pitch = T.bind(down * across * columns)
            pairs = T.bind((q + lanes - 1) // lanes // beside)
            for band in T.serial((p + high - 1) // high):
                filled(stage, source, a, b, band * high * down - top, rows, plane(height, p), plane(width, q), across, columns, left, hole_h, hole_w, lead)
                for number in T.serial(T.min(high // PATCH, (p - band * high + PATCH - 1) // PATCH)):
                    row = T.bind(band * high + number * PATCH)
                    start = T.bind(lead + number * PATCH * pitch)
                    for block in T.serial(pairs):
                        patch(stage, start, pitch, w, table, count[group], out, a, b, group, row, block * beside, beside, p, q)
                    for block in T.serial((q + lanes - 1) // lanes - pairs * beside):
                        patch(stage, start, pitch, w, table, count[group], out, a, b, group, row, pairs * beside + block, 1, p, q)

    return main


def _taps(sums: str, lanes: int) -> Any:
    """Returns a macro that adds to the sums of PATCH taps, lane by lane, what they gather over a band of `here` rows of dy."""
    from tvm.script import tirx as T

    at = _at(lanes)

    @T.inline
    def gathered(totals, stage, lead, pitch, table, group, first, dys, here, wide):
        acc = T.alloc_buffer((PATCH * lanes,), sums)
        for i in T.unroll(PATCH):
            acc[at(i * lanes)] = totals[at((first + i) * lanes)]
        for r, j in T.grid(here, wide // lanes):
            for i in T.unroll(PATCH):  # in 64 bits, or LLVM adds up addresses in vectors
                place = T.bind(T.Cast("int64", lead + table[group, first + i, 0]) + T.Cast("int64", r * pitch + j * lanes))
                acc[at(i * lanes)] = acc[at(i * lanes)] + dys[at(r * wide + j * lanes)] * stage[at(place)]
        for i in T.unroll(PATCH):
            totals[at((first + i) * lanes)] = acc[at(i * lanes)]

    return gathered


def _dw(dtype: str, sums: str, lanes: int, circular: bool) -> Any:
    """Returns the kernel of conv_dw: a task sums a channel of several images, and a second pass adds up the tasks of a channel."""
    from tvm.script import tirx as T

    filled, copied, gathered, at = fill(dtype, sums, lanes, circular), row_copy(dtype, sums, lanes), _taps(sums, lanes), _at(lanes)

    @T.prim_func
    def main(
        x_: T.handle, dy_: T.handle, table_: T.handle, count_: T.handle, part_: T.handle, dw_: T.handle,
        down: T.int32, across: T.int32, top: T.int32, left: T.int32, rows: T.int32, columns: T.int32, high: T.int32,
    ):  # fmt: skip
        n, c, height, width = T.int32(), T.int32(), T.int32(), T.int32()
        k, g, most, p, q, bands = T.int32(), T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
        x = T.match_buffer(x_, (n, c, height, width), dtype)
        dy = T.match_buffer(dy_, (n, c, p, q), dtype)
        table = T.match_buffer(table_, (g, most, 2), "int32")
        count = T.match_buffer(count_, (g,), "int32")
        part = T.match_buffer(part_, (n, c, bands, most), sums)
        dw = T.match_buffer(dw_, (c, k), sums)
        for task in T.parallel((n + IMAGES - 1) // IMAGES * c):
            b = T.bind(task % c)
            group = T.bind((g * (b + 1) - 1) // c)
            lead = T.bind((left + lanes - 1) // lanes * lanes - left)
            stage = T.alloc_buffer((lead + left + rows * across * columns + width + lanes,), sums)
            wide = T.bind((q + lanes - 1) // lanes * lanes)
            dys = T.alloc_buffer((high * wide,), sums)
            totals = T.alloc_buffer((most * lanes,), sums)
            for t in T.serial(most):
                totals[at(t * lanes)] = T.Broadcast(T.Cast(sums, 0), lanes)
            for image, band in T.grid(T.min(IMAGES, n - task // c * IMAGES), (p + high - 1) // high):
                a = T.bind(task // c * IMAGES + image)
                here = T.bind(T.min(high, p - band * high))
                filled(stage, x, a, b, band * high * down - top, rows, height, width, across, columns, left, 1, 1, lead)
                for r in T.serial(here):
                    copied(dys, r * wide, dy, a, b, band * high + r, q)
                for block in T.serial((count[group] + PATCH - 1) // PATCH):
                    gathered(totals, stage, lead, down * across * columns, table, group, block * PATCH, dys, here, wide)
            for t in T.serial(count[group]):
                part[task // c, b, 0, t] = T.Cast(sums, 0)
                for v in T.serial(lanes):
                    part[task // c, b, 0, t] = part[task // c, b, 0, t] + totals[t * lanes + v]
        for channel in T.parallel(c):
            line = T.bind((g * (channel + 1) - 1) // c)
            for s in T.serial(k):
                dw[channel, s] = T.Cast(sums, 0)
            for t, several in T.grid(count[line], (n + IMAGES - 1) // IMAGES):
                dw[channel, table[line, t, 1]] = dw[channel, table[line, t, 1]] + part[several, channel, 0, t]

    return main


GENERIC = CpuGeneric()
