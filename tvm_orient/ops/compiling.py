"""The public functions while they are compiled or exported. Imported only then: it loads Dynamo, which takes as long as torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx.experimental.symbolic_shapes import guard_scalar

from ..errors import InvalidArgument
from ..problem.line_offsets import Anchor
from . import checks

REMEDY = (
    "theta must be numbers, not a tensor or an array, under torch.compile and torch.export (offsets are compile-time constants): "
    "call theta.tolist() outside, or use tvm_orient.nn.OrientedConv2d, or Taps with tap_conv2d"
)
_NUMBERS = (bool, int, float, str, type(None))  # a word or None is refused where it is read as an angle


def constant(value: Any) -> Any:
    """Returns a number as a plain one; where the compiler has made it a symbol, it compiles for this value alone, and for others anew."""
    return guard_scalar(value) if isinstance(value, int | float | torch.SymInt | torch.SymFloat) and not isinstance(value, bool) else value


def line_key(theta: Any, kernel_size: Any, dilation: Any, anchor: Anchor, channels: Any) -> str | None:
    """Returns the key of oriented taps, a constant of the compiled code; None where theta is or holds tensors, whose values nothing guards."""
    given = theta if isinstance(theta, list | tuple) else (theta,)
    if not all(isinstance(angle, _NUMBERS) for angle in given):
        return None
    angles = tuple([constant(angle) for angle in given])
    return _key(angles, constant(kernel_size), constant(dilation), anchor, constant(channels))


@torch.compiler.assume_constant_result
def _key(theta: tuple[Any, ...], kernel_size: int, dilation: int, anchor: Anchor, channels: int) -> str:
    return checks.line_key(theta, kernel_size, dilation, anchor, channels)


def uncompiled(function: Callable[..., torch.Tensor], *given: Any, **options: Any) -> torch.Tensor:
    """Calls the function between two graphs and returns its result; with fullgraph=True the compiler raises an error that says what to do instead.

    Raises:
        InvalidArgument: there is no compiler that could leave it out, as in torch.export.
    """
    if not torch.compiler.is_dynamo_compiling():
        raise InvalidArgument(REMEDY)
    return _left_out(function, *given, **options)


@torch.compiler.disable(reason=REMEDY)
def _left_out(function: Callable[..., torch.Tensor], *given: Any, **options: Any) -> torch.Tensor:
    return function(*given, **options)
