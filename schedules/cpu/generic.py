# mypy: disable-error-code="valid-type,misc,no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"
"""CPU: any size, any taps, nothing known before run time; what an unseen problem can be given without compiling.

Written in TVMScript, since no schedule primitive applies to sizes that are not known. A task is a plane; bands of it are staged with
their halo (columns parted by the stride), so that a tap is one linear offset and every load a whole vector.
"""

from __future__ import annotations

from typing import Any

from tvm_orient.problem.device import Device
from tvm_orient.problem.generic_args import IMAGES, PATCH, vector_lanes
from tvm_orient.problem.spec import sums_of
from tvm_orient.toolchain.tvm import load_tvm

from ..base import Generic

_BESIDE = {"avx2": 1, "x86_64": 1}  # vectors of a patch side by side by arch, where there are 16 vector registers; 2 where there are 32


class CpuGeneric(Generic):
    """Computes every op on a CPU with nothing known when it is compiled: sizes are arguments, and taps a table of integers.

    One kernel serves every problem of its op, padding mode and dtype. It runs what the templates decline, and what is not in the cache where
    compiling is off. Bands of rows are staged, and a tap is one offset. Its parameters are the operands, a table (G, L, 2) of offset and tap,
    a count (G,), the workspace of conv_dw, the result, and numbers.
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


def _fill(dtype: str, sums: str, lanes: int, circular: bool) -> Any:
    """Returns a macro that fills the stage from source row `first` on: zeros, and what lies inside, columns parted by the stride or spread out."""
    from tvm.script import tirx as T

    zeros = T.Broadcast(T.Cast(sums, 0), lanes)
    kind = f"{sums}x{lanes}"

    def inside(j: Any, width: Any) -> Any:
        """Returns which lanes of vector j of a row lie inside it."""
        return T.Ramp(j * lanes, 1, lanes) < T.Broadcast(width, lanes)

    @T.inline
    def clear(stage, start, count):
        for j in T.serial(count):
            stage[T.Ramp(start + j * lanes, 1, lanes)] = zeros

    @T.inline
    def copy_row(stage, start, source, a, b, row, width):
        for j in T.serial(width // lanes):
            stage[T.Ramp(start + j * lanes, 1, lanes)] = T.Cast(kind, source[a, b, row, T.Ramp(j * lanes, 1, lanes)])
        if width % lanes != 0:
            edge = T.bind(width // lanes)
            stage[T.Ramp(start + edge * lanes, 1, lanes)] = T.Select(
                inside(edge, width),
                T.Cast(kind, T.masked_load(f"{dtype}x{lanes}", source, a, b, row, T.Ramp(edge * lanes, 1, lanes), inside(edge, width))),
                zeros,
            )

    @T.inline
    def copy_rows(stage, source, a, b, first, rows, height, width, columns, lead):
        """Of stride 1: after each row stand the zeros up to the next one, which are the halo of both."""
        above = T.bind(T.min(rows, T.max(0, -first)))
        below = T.bind(T.max(above, T.min(rows, height - first)))
        clear(stage, 0, (lead + above * columns) // lanes)
        for r in T.serial(below - above):
            start = T.bind(lead + (above + r) * columns)
            copy_row(stage, start, source, a, b, first + above + r, width)
            covered = T.bind((width + lanes - 1) // lanes)
            clear(stage, start + covered * lanes, columns // lanes - covered)
        clear(stage, lead + below * columns, (rows - below) * columns // lanes + 1)

    @T.inline
    def wrap(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead):
        for r, phase, j in T.grid(rows, across, columns):
            stage[lead + (r * across + phase) * columns + j] = T.Cast(sums, 0)
            if (first + r) % height % hole_h == 0 and (j * across + phase - left) % width % hole_w == 0:
                stage[lead + (r * across + phase) * columns + j] = T.Cast(
                    sums, source[a, b, (first + r) % height // hole_h, (j * across + phase - left) % width // hole_w]
                )

    @T.inline
    def part(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead):
        clear(stage, 0, (lead + rows * across * columns) // lanes + 1)
        for r in T.serial(T.max(0, -first), T.min(rows, height - first)):
            if (first + r) % hole_h == 0:
                for phase in T.serial(across):
                    for j in T.serial(((width - phase + across - 1) // across + hole_w - 1) // hole_w):
                        stage[lead + (r * across + phase) * columns + left // across + j * hole_w] = T.Cast(
                            sums, source[a, b, (first + r) // hole_h, j * across + phase]
                        )

    if circular:
        return copy_row, wrap

    @T.inline
    def fill(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead):
        if across * hole_h * hole_w == 1:
            copy_rows(stage, source, a, b, first, rows, height, width, columns, lead + left)
        else:
            part(stage, source, a, b, first, rows, height, width, across, columns, left, hole_h, hole_w, lead)

    return copy_row, fill


def _conv(dtype: str, sums: str, lanes: int, beside: int, circular: bool, spread: bool) -> Any:
    """Returns the kernel of conv; or of conv_dx (spread), which is conv of stride 1 on dy spread out by the stride, zeros between.

    beside: vectors of a patch, side by side.
    """
    from tvm.script import tirx as T

    copy_row, fill = _fill(dtype, sums, lanes, circular)

    def plane(source: Any, result: Any) -> Any:
        return result if spread else source

    def inside(j: Any, width: Any) -> Any:
        return T.Ramp(j * lanes, 1, lanes) < T.Broadcast(width, lanes)

    @T.inline
    def patch(stage, w, table, count, out, a, b, group, base, pitch, row, block, width, q, p):
        """Sums PATCH rows of `width` vectors, from a row of outputs and a block of columns on."""
        acc = T.alloc_buffer((PATCH * width * lanes,), sums)
        for i in T.unroll(PATCH * width):
            for v in T.vectorized(lanes):
                acc[i * lanes + v] = T.Cast(sums, 0)
        for t in T.serial(count[group]):
            offset = T.bind(T.Cast("int64", table[group, t, 0]))
            for i in T.unroll(PATCH):
                for s in T.unroll(width):
                    for v in T.vectorized(lanes):
                        acc[(i * width + s) * lanes + v] = (
                            acc[(i * width + s) * lanes + v] + T.Cast(sums, w[b, table[group, t, 1]]) * stage[offset + T.Cast("int64", base + i * pitch) + (s * lanes + v)]
                        )
        for i in T.unroll(PATCH):
            if row + i < p:
                for s in T.unroll(width):
                    if (block + s + 1) * lanes <= q:
                        for v in T.vectorized(lanes):
                            out[a, b, row + i, (block + s) * lanes + v] = T.Cast(dtype, acc[(i * width + s) * lanes + v])
                    else:
                        T.evaluate(
                            T.masked_store(
                                out,
                                T.Cast(f"{dtype}x{lanes}", acc[T.Ramp((i * width + s) * lanes, 1, lanes)]),
                                a,
                                b,
                                row + i,
                                T.Ramp((block + s) * lanes, 1, lanes),
                                inside(block + s, q),
                            )
                        )

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
            stage = T.alloc_buffer((lead + left + rows * across * columns + lanes,), sums)
            vectors = T.bind((q + lanes - 1) // lanes)
            for band in T.serial((p + high - 1) // high):
                fill(stage, source, a, b, band * high * down - top, rows, plane(height, p), plane(width, q), across, columns, left, hole_h, hole_w, lead)
                for number in T.serial(T.min(high // PATCH, (p - band * high + PATCH - 1) // PATCH)):
                    row = T.bind(band * high + number * PATCH)
                    base = T.bind(lead + number * PATCH * down * across * columns)
                    pitch = T.bind(down * across * columns)
                    for block in T.serial(vectors // beside):
                        patch(stage, w, table, count, out, a, b, group, base + block * beside * lanes, pitch, row, block * beside, beside, q, p)
                    for block in T.serial(vectors % beside):
                        rest = T.bind(vectors // beside * beside + block)
                        patch(stage, w, table, count, out, a, b, group, base + rest * lanes, pitch, row, rest, 1, q, p)

    return main


def _dw(dtype: str, sums: str, lanes: int, circular: bool) -> Any:
    from tvm.script import tirx as T

    copy_row, fill = _fill(dtype, sums, lanes, circular)

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
            stage = T.alloc_buffer((lead + left + rows * across * columns + lanes,), sums)
            wide = T.bind((q + lanes - 1) // lanes * lanes)
            dys = T.alloc_buffer((high * wide,), sums)
            totals = T.alloc_buffer((most * lanes,), sums)
            for j in T.serial(most):
                for v in T.vectorized(lanes):
                    totals[j * lanes + v] = T.Cast(sums, 0)
            for image, band in T.grid(T.min(IMAGES, n - task // c * IMAGES), (p + high - 1) // high):
                a = T.bind(task // c * IMAGES + image)
                here = T.bind(T.min(high, p - band * high))
                fill(stage, x, a, b, band * high * down - top, rows, height, width, across, columns, left, 1, 1, lead)
                for r in T.serial(here):
                    copy_row(dys, r * wide, dy, a, b, band * high + r, q)
                for block in T.serial((count[group] + PATCH - 1) // PATCH):
                    acc = T.alloc_buffer((PATCH * lanes,), sums)
                    for i in T.unroll(PATCH):
                        for v in T.vectorized(lanes):
                            acc[i * lanes + v] = totals[(block * PATCH + i) * lanes + v]
                    for r, j in T.grid(here, wide // lanes):
                        for i in T.unroll(PATCH):
                            for v in T.vectorized(lanes):
                                acc[i * lanes + v] = acc[i * lanes + v] + dys[r * wide + j * lanes + v] * stage[
                                    T.Cast("int64", lead + table[group, block * PATCH + i, 0])
                                    + T.Cast("int64", r * down * across * columns + j * lanes) + v
                                ]
                    for i in T.unroll(PATCH):
                        for v in T.vectorized(lanes):
                            totals[(block * PATCH + i) * lanes + v] = acc[i * lanes + v]
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
