# mypy: disable-error-code="valid-type,misc,no-untyped-def,no-untyped-call,untyped-decorator,no-any-return"
"""CUDA: any size, any taps, nothing known before run time; what an unseen problem can be given without compiling.

Written in TVMScript, since no schedule primitive applies to sizes that are not known. Nothing is staged: loads go through L1. A
thread owns four rows of one column, so that each tap's offsets and weight are read once for four outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm_orient.problem.device import Device
from tvm_orient.problem.generic_args import BAND
from tvm_orient.problem.spec import sums_of
from tvm_orient.toolchain.tvm import load_tvm

from ..base import Generic

_ROWS = 4  # outputs of a thread
_THREADS = 128  # threads of a block
_TAPS = 64  # threads of conv_dw, a tap each


class CudaGeneric(Generic):
    """Computes every op on a GPU with nothing known when it is compiled: sizes are arguments, and taps a table of integers.

    One kernel serves every problem of its op, padding mode and dtype, as `cpu_generic` does on a CPU. A thread loads through the cache for four
    rows of a column. Its parameters are the operands, a table (G, K, 2) of row and column offsets, the workspace of conv_dw, the result, and the
    stride (down, across).
    """

    name = "generic"
    version = 1
    kind = "cuda"

    def func(self, op: str, padding_mode: str, dtype: str, device: Device) -> Any:
        load_tvm()
        sums, circular = sums_of(dtype), padding_mode == "circular"
        return _dw(dtype, sums, circular) if op == "conv_dw" else _conv(dtype, sums, circular, op == "conv_dx")


def _inside(circular: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Returns (place, test) of a row or column that is at most one plane outside: where it lies, and whether it is inside."""
    from tvm import tirx

    if circular:
        return lambda i, size: tirx.Select(i >= size, i - size, tirx.Select(i < 0, i + size, i)), lambda i, size: tirx.const(True, "bool")
    return lambda i, size: i, lambda i, size: tirx.all(i >= 0, i < size)


def _conv(dtype: str, sums: str, circular: bool, spread: bool) -> Any:
    """Returns the kernel of conv; or of conv_dx (spread), which is conv of stride 1 on dy spread out by the stride."""
    from tvm import tirx
    from tvm.script import tirx as T

    place, inside = _inside(circular)
    div, mod = tirx.truncdiv, tirx.truncmod  # nothing is negative here, and C's division costs less

    def plane(source: Any, result: Any) -> Any:
        return result if spread else source

    def step(stride: Any) -> Any:
        return 1 if spread else stride

    def lands(i: Any, size: Any, stride: Any) -> Any:
        """Tells whether the source has a value there."""
        return tirx.all(inside(i, size), mod(i, stride) == 0) if spread else inside(i, size)

    def home(i: Any, stride: Any) -> Any:
        return div(i, stride) if spread else i

    @T.prim_func(s_tir=True)
    def main(source_: T.handle, w_: T.handle, table_: T.handle, out_: T.handle, down: T.int32, across: T.int32):
        n, c, height, width = T.int32(), T.int32(), T.int32(), T.int32()
        k, g, p, q = T.int32(), T.int32(), T.int32(), T.int32()
        source = T.match_buffer(source_, (n, c, height, width), dtype)
        w = T.match_buffer(w_, (c, k), dtype)
        table = T.match_buffer(table_, (g, k, 2), "int32")
        out = T.match_buffer(out_, (n, c, p, q), dtype)
        for block in T.thread_binding(n * c * (((p + _ROWS - 1) // _ROWS * q + _THREADS - 1) // _THREADS), thread="blockIdx.x"):
            for thread in T.thread_binding(_THREADS, thread="threadIdx.x"):
                blocks: T.int32 = div(div(p + _ROWS - 1, _ROWS) * q + _THREADS - 1, _THREADS)
                a: T.int32 = div(div(block, blocks), c)
                b: T.int32 = mod(div(block, blocks), c)
                group: T.int32 = div(g * (b + 1) - 1, c)
                first: T.int32 = div(mod(block, blocks) * _THREADS + thread, q) * _ROWS
                j: T.int32 = mod(mod(block, blocks) * _THREADS + thread, q)
                acc = T.alloc_buffer((_ROWS,), sums, scope="local")  # outside the loop over threads it would be one for all of them
                if first < p:
                    for i in T.unroll(_ROWS):
                        acc[i] = T.Cast(sums, 0)
                    for t in T.serial(k):
                        col: T.int32 = place(j * step(across) + table[group, t, 1], plane(width, q))
                        if lands(col, plane(width, q), across):
                            for i in T.unroll(_ROWS):
                                row: T.int32 = place((first + i) * step(down) + table[group, t, 0], plane(height, p))
                                if tirx.all(first + i < p, lands(row, plane(height, p), down)):
                                    acc[i] = acc[i] + T.Cast(sums, w[b, t]) * T.Cast(sums, source[a, b, home(row, down), home(col, across)])
                    for i in T.unroll(_ROWS):
                        if first + i < p:
                            out[a, b, first + i, j] = T.Cast(dtype, acc[i])

    return main


def _dw(dtype: str, sums: str, circular: bool) -> Any:
    """Returns the kernel of conv_dw.

    First pass: a block sums a band of rows of one plane, a tap a thread. Second: a weight a thread, images and bands in order.
    """
    from tvm import tirx
    from tvm.script import tirx as T

    place, inside = _inside(circular)
    div, mod = tirx.truncdiv, tirx.truncmod  # nothing is negative here, and C's division costs less

    @T.prim_func(s_tir=True)
    def main(x_: T.handle, dy_: T.handle, table_: T.handle, part_: T.handle, dw_: T.handle, down: T.int32, across: T.int32):
        n, c, height, width = T.int32(), T.int32(), T.int32(), T.int32()
        k, g, p, q, bands = T.int32(), T.int32(), T.int32(), T.int32(), T.int32()
        x = T.match_buffer(x_, (n, c, height, width), dtype)
        dy = T.match_buffer(dy_, (n, c, p, q), dtype)
        table = T.match_buffer(table_, (g, k, 2), "int32")
        part = T.match_buffer(part_, (n, c, bands, k), sums)
        dw = T.match_buffer(dw_, (c, k), sums)
        for block in T.thread_binding(n * c * bands * ((k + _TAPS - 1) // _TAPS), thread="blockIdx.x"):
            for thread in T.thread_binding(_TAPS, thread="threadIdx.x"):
                chunks: T.int32 = div(k + _TAPS - 1, _TAPS)
                t: T.int32 = mod(block, chunks) * _TAPS + thread
                band: T.int32 = mod(div(block, chunks), bands)
                b: T.int32 = mod(div(div(block, chunks), bands), c)
                a: T.int32 = div(div(div(block, chunks), bands), c)
                group: T.int32 = div(g * (b + 1) - 1, c)
                acc = T.alloc_buffer((1,), sums, scope="local")
                if t < k:
                    acc[0] = T.Cast(sums, 0)
                    for r, j in T.grid(T.min(BAND, p - band * BAND), q):
                        row: T.int32 = place((band * BAND + r) * down + table[group, t, 0], height)
                        col: T.int32 = place(j * across + table[group, t, 1], width)
                        if tirx.all(inside(row, height), inside(col, width)):
                            acc[0] = acc[0] + T.Cast(sums, dy[a, b, band * BAND + r, j]) * T.Cast(sums, x[a, b, row, col])
                    part[a, b, band, t] = acc[0]
        for block in T.thread_binding((c * k + _TAPS - 1) // _TAPS, thread="blockIdx.x"):
            for thread in T.thread_binding(_TAPS, thread="threadIdx.x"):
                weight: T.int32 = block * _TAPS + thread
                total = T.alloc_buffer((1,), sums, scope="local")
                if weight < c * k:
                    total[0] = T.Cast(sums, 0)
                    for image, band in T.grid(n, bands):
                        total[0] = total[0] + part[image, div(weight, k), band, mod(weight, k)]
                    dw[div(weight, k), mod(weight, k)] = total[0]

    return main


GENERIC = CudaGeneric()
