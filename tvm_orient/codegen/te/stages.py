"""Builds the TE stages that several ops and layouts share: operands, staged images, and what is done to a sum before it is stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...errors import InvalidArgument
from ...problem.spec import ConvSpec
from ...problem.stencil import Stage, Stencil
from ...toolchain.tvm import load_tvm
from .. import names
from .config import StageConfig
from .epilogue import activate

load_tvm()

from tvm import te, tirx  # noqa: E402  (after the version guard)


def batch_of(config: StageConfig) -> Any:
    """Returns N as the configuration wants it: a number, its own variable, or a new one."""
    return te.var("n", "int32") if config.batch is None else config.batch


def padded_stage(source: Any, g: Stencil, shape: Stage, dtype: str, quad: int) -> Any:
    """Returns the source as (n, c, rows, column phase, columns / quad, quad), padded as the mode says, in dtype.

    With quad > 1 a group of columns is all inside the plane or all outside: one test, one vector load.

    Raises:
        InvalidArgument: groups of quad columns would straddle an end of the plane or of a tile, or columns are parted by a stride.
    """
    height, width = g.source
    apart = shape.tile * shape.across  # source columns from one tile to the next
    if quad > 1 and (g.wrap or shape.phases > 1 or any(size % quad for size in (width, shape.left, shape.columns, apart))):
        raise InvalidArgument(
            f"columns cannot be staged {quad} at a time: width {width}, left halo {shape.left}, pitch {shape.columns}, tile {apart} must be multiples, "
            "and columns not parted by a stride"
        )

    def padded(n: Any, c: Any, i: Any, b: Any, j: Any, v: Any) -> Any:
        row, col = i - shape.top, (j * quad + v) * shape.phases + b * (apart or 1) - shape.left
        if g.wrap:
            return source[n, c, tirx.floormod(row, height), tirx.floormod(col, width)].astype(dtype)
        inside = [] if shape.rows == height and shape.top == 0 else [row >= 0, row < height]
        if quad > 1:
            first = b * (apart // quad)
            inside += [j + first >= shape.left // quad, j + first < (shape.left + width) // quad]
        else:
            inside += [col >= 0, col < width]
        return te.if_then_else(te.all(*inside), source[n, c, row, col].astype(dtype), tirx.const(0, dtype))

    return te.compute((*source.shape[:2], shape.rows, shape.phases * shape.tiles, shape.columns // quad, quad), padded, name=names.STAGE)


def flat(images: Any, dtype: str, name: str) -> Any:
    """Returns planes (n, c, h, w) as a stage (n, c, 1, h * w / quad, quad) in dtype: a whole one is copied in groups of 4 where it parts into them."""
    n, channels, height, width = images.shape
    size, width = int(height) * int(width), int(width)
    quad = 1 if size % 4 else 4

    def value(a: Any, c: Any, _: Any, j: Any, i: Any) -> Any:
        place = j * quad + i
        return images[a, c, place // width, place % width].astype(dtype)

    return te.compute((n, channels, 1, size // quad, quad), value, name=name)


def blocked(image: Any, channels: int, v: int, spec: ConvSpec, name: str, extents: tuple[Any, ...], place: Callable[..., Any]) -> Any:
    """Returns a channels-last image as a stage (*extents, c / v, v) in the dtype of sums.

    Zeros stand outside the plane, and for the channels that the last block lacks.

    Args:
        place: gives, for indices of a pixel, the tests of lying inside and the pixel of the image.
    """

    def value(*at: Any) -> Any:
        *pixel, b, lane = at
        tests, index = place(*pixel)
        if channels % v:  # by block, or by lane: each is the same for a whole vector once lanes are cut
            tests = [*tests, tirx.any(b < channels // v, lane < channels % v)]
        one = image[(*index, b * v + lane)].astype(spec.sums)
        return te.if_then_else(te.all(*tests), one, tirx.const(0, spec.sums)) if tests else one

    return te.compute((*extents, -(-channels // v), v), value, name=name)


def blocked_stage(source: Any, g: Stencil, channels: int, v: int, spec: ConvSpec) -> tuple[Any, int, int]:
    """Returns the channels-last source (n, rows, columns, c / v, v) padded as the mode says, and its halo before the plane (rows, columns)."""
    (height, width), top, left = g.source, g.low(0), g.low(1)
    rows, columns = max(1, top + height + g.high(0)), max(1, left + width + g.high(1))

    def place(a: Any, i: Any, j: Any) -> tuple[list[Any], tuple[Any, ...]]:
        row, col = i - top, j - left
        if g.wrap:
            return [], (a, tirx.floormod(row, height), tirx.floormod(col, width))
        tests = [row >= 0, row < height] if rows != height else []
        return [*tests, *([col >= 0, col < width] if columns != width else [])], (a, row, col)

    return blocked(source, channels, v, spec, names.STAGE, (source.shape[0], rows, columns), place), top, left


def epilogue_of(spec: ConvSpec, channels: int, config: StageConfig) -> tuple[list[Any], Callable[[Any, Any], Any]]:
    """Returns the parameters of the epilogue, and the function that makes a result of a sum and its channel."""
    bias = te.placeholder((channels,), name=names.BIAS, dtype=spec.dtype) if spec.bias else None

    def ended(value: Any, c: Any) -> Any:
        value = value + bias[c].astype(spec.sums) if bias is not None else value
        return activate(spec.activation, value, spec.sums, config.vector_math).astype(spec.dtype)

    return [] if bias is None else [bias], ended
