"""Makes the PrimFunc of one angle group: picks what builds its TE by op, layout and configuration."""

from __future__ import annotations

from typing import Any

from ...errors import BuildFailed, InvalidArgument
from ...problem.spec import ConvSpec
from ...toolchain.tvm import load_tvm
from .. import names
from ..tir.visit import block_with
from . import conv_dw_nchw, conv_dw_nhwc, conv_nchw, conv_nhwc
from .config import DwStageConfig, StageConfig
from .conv_dw_unrolled_nchw import unrolled_dw_func
from .conv_lines_nchw import line_func

load_tvm()

from tvm import tirx  # noqa: E402  (after the version guard)
from tvm.ir import Range  # noqa: E402
from tvm.s_tir import SBlock  # noqa: E402
from tvm_ffi import structural_map  # noqa: E402


def part_func(spec: ConvSpec, channels: int, config: StageConfig) -> Any:
    """Returns the PrimFunc of a single-group spec over `channels` channels, in the given configuration.

    Parameters: conv (x, w, y), with bias (x, w, bias, y); conv_dx (dy, w, dx); conv_dw (x, dy, part, dw), where part is a workspace of the
    caller. part and dw are of spec.sums, all else of spec.dtype. Images are (n, c, h, w) and part (n, c, bands, taps), or for NHWC
    (n, h, w, c) and (n, bands, taps, c).

    Raises:
        InvalidArgument: columns do not part into the groups that the configuration wants to load at once, or it is not one of the spec's op.
        BuildFailed: nothing reads what the configuration says is staged.
    """
    func = _built(spec, channels, config)
    if spec.layout == "nchw" and not config.narrow:
        widened = 3 if config.tile else 1 if config.pruned == 0 else 2
        func = _whole_rows(func, *((names.X, 1) if config.bare and spec.op != "conv_dw" else (names.STAGE, widened)))
    return func.with_attr("global_symbol", "main")


def _built(spec: ConvSpec, channels: int, config: StageConfig) -> Any:
    """Returns the PrimFunc before its reads are widened."""
    if spec.op != "conv_dw":
        if spec.layout == "nhwc":
            return conv_nhwc.conv_func(spec, channels, config)
        return line_func(spec, channels, config) if config.line else conv_nchw.conv_func(spec, channels, config)
    if not isinstance(config, DwStageConfig):
        raise InvalidArgument(f"conv_dw needs a DwStageConfig, got {type(config).__name__}: return one from the template")
    if spec.layout == "nhwc":
        return conv_dw_nhwc.dw_func(spec, channels, config)
    unrolled = config.whole or config.pruned is not None
    return unrolled_dw_func(spec, channels, config) if unrolled else conv_dw_nchw.dw_func(spec, channels, config)


def _whole_rows(func: Any, name: str, axes: int) -> Any:
    """Returns the function with every read of a buffer widened to whole rows, so that staging keeps its alignment and pitch.

    name: of the buffer. axes: those after this one are widened.

    Raises:
        BuildFailed: no block reads such a buffer.
    """
    places = 0

    def widen(region: Any) -> Any:
        nonlocal places
        if region.source.name != name:
            return region
        places += 1
        ranges = [Range(0, size) if axis > axes and int(size) > 1 else r for axis, (size, r) in enumerate(zip(region.source.shape, region.region, strict=True))]
        return tirx.BufferRegion(region.source, ranges)

    body = structural_map(func.body, (SBlock, lambda block: block_with(block, reads=[widen(region) for region in block.reads])))
    if not places:
        raise BuildFailed(f"reads of {name} must be widened to whole rows, and no block reads it: set narrow where nothing is staged")
    return func.with_body(body)
