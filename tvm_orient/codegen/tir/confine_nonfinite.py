"""Keeps NaN and infinity in weight gradients on a CPU to the taps that read them inside the plane.

Kernels sum over rows that are rounded up to whole vectors and over a halo, with zeros for dy and x there, and NaN or infinity times zero is NaN.
A sum that is finite has met none. One that is not is summed again, over the pixels alone that its tap reads inside the plane. That is
slow, and rare: the test is on C * K sums, once a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...problem.spec import ConvSpec
from ...toolchain.tvm import load_tvm
from .. import names

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm.s_tir import SBlock, SBlockRealize  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402

_EXPONENT = {"float32": ("uint32", 0x7F800000), "float64": ("uint64", 0x7FF0000000000000)}  # bits that are all set in NaN and infinity
_MAGNITUDE = {"float32": 0x7FFFFFFF, "float64": 0x7FFFFFFFFFFFFFFF}  # all bits but the sign

Pixel = Callable[[Any, Any, Any], Any]  # what an image holds at (image, row, column)
Tap = Callable[[Any], tuple[Any, Any, Any]]  # (tap, its row offset, its column offset, both in the plane where it has no end) of a number below some count


def confined(func: Any, spec: ConvSpec) -> Any:
    """Returns a scheduled conv_dw of one angle whose last nest, over channels, sums again what is not finite.

    func: its parameters are (x, dy, part, dw), in spec.layout.
    """
    x, dy, _, dw = func.params
    plane = (spec.height, spec.width)
    offsets = np.array(spec.taps.offsets[0], np.int64)
    # a tap that never lands has a sum of zero, so that its offset may stand anywhere: beside the plane no product or sum overflows
    offsets = offsets % plane if spec.padding_mode == "circular" else np.clip(offsets, -np.array(plane), plane)
    table = tirx.decl_buffer(offsets.shape, "int32", name="offsets")  # in memory: as an expression of the tap it takes TVM a second for each angle
    filled = [tirx.BufferStore(table, tirx.const(int(offsets[at]), "int32"), list(at)) for at in np.ndindex(offsets.shape)]

    kind = str(dw.dtype)
    bits = _EXPONENT[kind][0]
    most = tirx.decl_buffer((1,), bits, name="most")  # exponent of a channel's sums: found by whole vectors, one branch a channel

    def looked(channel: Any) -> Any:
        s = tirx.Var("s", "int32")
        larger = tirx.BufferStore(most, tirx.max(most[0], _exponent(dw[channel, s], kind)), [0])
        return tirx.For(s, tirx.const(0, "int32"), tirx.const(spec.kernel_size, "int32"), tirx.ForKind.SERIAL, larger)

    def again(channel: Any) -> Any:
        def pixel(image: Any) -> Pixel:
            return lambda a, i, j: image[(a, i, j, channel) if spec.layout == "nhwc" else (a, channel, i, j)]

        shapes = (plane, (spec.out_height, spec.out_width))
        images = _Images(pixel(x), pixel(dy), x.shape[0], shapes, spec.stride, spec.padding_mode == "circular")
        sums = _again(dw, channel, spec.kernel_size, lambda s: (s, table[s, 0], table[s, 1]), images, filled)
        rare = tirx.IfThenElse(most[0] == tirx.const(_EXPONENT[kind][1], bits), sums, None)
        body = tirx.SeqStmt([tirx.BufferStore(most, tirx.const(0, bits), [0]), looked(channel), rare])
        return SBlockRealize([], tirx.const(True, "bool"), SBlock([], [], [], names.CONFINED, body, None, [table, most], [], {}))

    return _ended(func, func.body.block.body.seq[-1], again)


def confined_generic(func: Any, padding_mode: str) -> Any:
    """Returns the generic conv_dw with the same: its parameters are (x, dy, table, count, part, dw) and numbers, as `generic_args.generic_args` gives them."""
    x, dy, table, count, _, dw, down, across, top, left, _, columns, _ = func.params
    groups, channels = table.shape[0], dw.shape[0]

    def again(channel: Any) -> Any:
        line = tirx.truncdiv(groups * (channel + 1) - 1, channels)

        def tap(t: Any) -> tuple[Any, Any, Any]:
            place = table[line, t, 0]  # of the tap in the stage, whose rows are parted by the stride
            row, column = tirx.truncdiv(place, columns), tirx.truncmod(place, columns)
            offsets = tirx.truncdiv(row, across) - top, column * across + tirx.truncmod(row, across) - left
            if padding_mode == "circular":  # the nearest ones, which may be negative
                offsets = tuple(offset + tirx.Select(offset < 0, size, tirx.const(0, "int32")) for offset, size in zip(offsets, x.shape[2:], strict=True))
            return table[line, t, 1], *offsets

        pixels = (lambda a, i, j: x[a, channel, i, j], lambda a, i, j: dy[a, channel, i, j])
        images = _Images(*pixels, x.shape[0], (x.shape[2:], dy.shape[2:]), (down, across), padding_mode == "circular")
        return _again(dw, channel, count[line], tap, images)

    return _ended(func, func.body.seq[-1], again)


def _ended(func: Any, nest: Any, again: Callable[[Any], Any]) -> Any:
    """Returns the function with again(channel) after what each turn of a nest does."""

    def change(loop: Any) -> Any:
        if not loop.loop_var.same_as(nest.loop_var):
            return loop
        body = tirx.SeqStmt([loop.body, again(loop.loop_var)])
        return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, body, loop.thread_binding, loop.annotations)

    return func.with_body(structural_map(func.body, (tirx.For, change)))


@dataclass(frozen=True)
class _Images:
    """The images of one channel that a weight gradient is the sum over."""

    x: Pixel
    dy: Pixel
    count: Any  #: images of a batch
    shapes: tuple[Sequence[Any], Sequence[Any]]  #: rows and columns of x and of dy
    step: Sequence[Any]  #: stride (down, across)
    circular: bool  #: the plane has no end

    def inside(self, name: str, offset: Any, axis: int, body: Callable[[Any, Any], Any]) -> Any:
        """Returns body(output, pixel) for the outputs whose pixel at this offset lies inside the plane, along one axis."""
        zero, (size, many), stride = tirx.const(0, "int32"), (shape[axis] for shape in self.shapes), self.step[axis]
        first = tirx.truncdiv(tirx.max(zero, stride - 1 - offset), stride)
        stop = tirx.min(many, tirx.truncdiv(tirx.max(zero, size - 1 - offset + stride), stride))

        def along(first: Any, count: Any) -> Any:
            return _loop(name, count, lambda i: body(first + i, (first + i) * stride + offset))

        return _bound({f"{name}_first": first, f"{name}_count": tirx.max(zero, stop - first)}, along)

    def shifted(self, name: str, offset: Any, axis: int, body: Callable[[Any], Any]) -> Any:
        """Returns body(offset) for each shift by which an offset reaches the plane: without end it is there as it is, and less a plane."""
        if not self.circular:
            return body(offset)
        return _loop(name, tirx.const(2, "int32"), lambda turn: _bound({f"{name}_by": offset - turn * self.shapes[0][axis]}, body))


def _loop(name: str, extent: Any, body: Callable[[Any], Any]) -> Any:
    """Returns a serial loop over body of its variable."""
    var = tirx.Var(name, "int32")
    return tirx.For(var, tirx.const(0, "int32"), extent, tirx.ForKind.SERIAL, body(var))


def _bound(values: dict[str, Any], body: Callable[..., Any]) -> Any:
    """Returns body of variables that have these values."""
    variables = [tirx.Var(name, "int32") for name in values]
    return tirx.SeqStmt([*(tirx.Bind(name, value) for name, value in zip(variables, values.values(), strict=True)), body(*variables)])


def _again(dw: Any, channel: Any, count: Any, tap: Tap, images: _Images, first: Sequence[Any] = ()) -> Any:
    """Returns a statement that sums again what is not finite of dw[channel].

    count: taps. first: statements before a tap's offsets are asked for.
    """
    kind, inside, shifted = str(dw.dtype), images.inside, images.shifted

    def again(t: Any) -> Any:
        s, down, right = tap(t)
        total = dw[channel, s]

        def product(a: Any, p: Any, row: Any, q: Any, column: Any) -> Any:
            return tirx.BufferStore(dw, total + images.dy(a, p, q).astype(kind) * images.x(a, row, column).astype(kind), [channel, s])

        def row_of(a: Any, p: Any, row: Any, right: Any) -> Any:
            along = shifted("right", right, 1, lambda offset: inside("q", offset, 1, lambda q, column: product(a, p, row, q, column)))
            return tirx.IfThenElse(tirx.Not(_is_nan(total, kind)), along, None)  # NaN stays NaN: where all is lost, little is done

        def planes(down: Any, right: Any) -> Any:
            def rows_of(a: Any) -> Any:
                return shifted("down", down, 0, lambda offset: inside("p", offset, 0, lambda p, row: row_of(a, p, row, right)))

            return _loop("image", images.count, rows_of)

        summed = [*first, tirx.BufferStore(dw, tirx.const(0, kind), [channel, s]), _bound({"row_offset": down, "column_offset": right}, planes)]
        return tirx.IfThenElse(_is_not_finite(total, kind), tirx.SeqStmt(summed), None)

    return _loop("again", tirx.const(count, "int32") if isinstance(count, int) else count, again)


def _exponent(value: Any, kind: str) -> Any:
    """Returns the bits of the exponent of a value."""
    bits, exponent = _EXPONENT[kind]
    return tirx.bitwise_and(tirx.reinterpret(bits, value), tirx.const(exponent, bits))


def _is_not_finite(value: Any, kind: str) -> Any:
    """Returns whether a value is NaN or infinite."""
    bits, exponent = _EXPONENT[kind]
    return _exponent(value, kind) == tirx.const(exponent, bits)


def _is_nan(value: Any, kind: str) -> Any:
    """Returns whether a value is NaN."""
    bits, exponent = _EXPONENT[kind]
    return tirx.bitwise_and(tirx.reinterpret(bits, value), tirx.const(_MAGNITUDE[kind], bits)) > tirx.const(exponent, bits)
