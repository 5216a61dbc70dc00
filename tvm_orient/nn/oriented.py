"""OrientedConv2d: `tvm_orient.oriented_conv2d` as a module, with fixed angles and trained weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InvalidArgument
from ..functional import tap_conv2d, with_residual
from ..notices import warn
from ..ops import checks
from ..problem.labels import angle_list
from ..problem.line_offsets import Anchor, angles_between
from ..problem.spec import stride_pair
from ..problem.taps import Taps
from . import habits
from .angled import Angled
from .published import DepthwiseOrientedConv1d
from .scripted import Scriptable

__all__ = ["DepthwiseOrientedConv1d", "OrientedConv2d"]

_DIRECTIONS = 8  # directions of a module that is told neither theta nor directions, or as many as it has channels where those are fewer


class OrientedConv2d(Angled):
    """`tvm_orient.oriented_conv2d` as a module: depthwise convolution with 1D kernels along fixed angles.

    Args:
        channels: C, the number of channels, >= 1.
        kernel_size: K; odd unless anchor is "start".
        theta: radians: a float, or floats (G,), (C,) or (C, 1), as `tvm_orient.oriented_conv2d`. `tvm_orient.from_degrees` makes them.
            A whole number from 1 to C is the old spelling of directions: it works, with a UserWarning.
        directions: instead of theta: G directions spread over 180 degrees (`tvm_orient.angles_between`), at most C. Where neither is given
            there are 8, or C where that is less.
        stride, dilation, padding_mode, anchor, residual, activation: as `tvm_orient.oriented_conv2d`.
        bias: add a trained bias to each channel.
        device, dtype: where the parameters lie, and their dtype.

    Attributes:
        weight: parameter (C, K). A state dict may hold it as (C, 1, 1, K).
        bias: parameter (C,), or None.
        theta: radians, a float32 buffer (G,) or (C,) in the state dict. It has no gradient. No cast moves a tap: not one of the module,
            nor one of the state dict. Angles that are loaded, assigned or written in place are taken unless they are the module's own, rounded.
            Writing in place is seen in the next call that is not compiled, and when a state dict is made.
        taps: the `tvm_orient.Taps` of theta.

    Raises:
        InvalidArgument: a rule is broken.
    """

    @habits.refused
    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        theta: float | Sequence[float] | torch.Tensor | None = None,
        directions: int | None = None,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
        anchor: Anchor = "center",
        bias: bool = True,
        residual: bool = False,
        activation: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise InvalidArgument(f"channels must be a whole number >= 1, got {channels!r}")
        self.channels, self.kernel_size, self.dilation, self.anchor = channels, kernel_size, dilation, anchor
        self.stride, self.padding_mode, self.residual = stride_pair(stride), padding_mode, residual
        self.activation = activation
        checks.options(stride, padding_mode)
        checks.activation_name(activation)
        self._begin(_angles(theta, directions, channels), device)
        self.weight = torch.nn.Parameter(torch.empty(channels, kernel_size, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def _lines(self, angles: Sequence[float]) -> Taps:
        return checks.line_taps(angles, self.kernel_size, self.dilation, self.anchor, self.channels)

    def reset_parameters(self) -> None:
        """Draws weight and bias uniformly from +-1/sqrt(K), as torch.nn.Conv2d does for a depthwise kernel of K taps."""
        bound = 1 / math.sqrt(self.kernel_size)
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride)), with the dtypes and errors of `tvm_orient.oriented_conv2d`; N may be left out."""
        taps = self.taps if torch.compiler.is_compiling() else self._now()
        if self.residual:
            centre = self.kernel_size // 2 if self.anchor == "center" else 0
            return with_residual(x, self.weight, taps.key, self.bias, self.stride, self.padding_mode, centre, self.activation)
        return tap_conv2d(x, self.weight, taps, self.bias, stride=self.stride, padding_mode=self.padding_mode, activation=self.activation)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Returns the module that torch.jit.script compiles in the place of this one."""
        centre = -1 if not self.residual else self.kernel_size // 2 if self.anchor == "center" else 0
        return Scriptable(self, checks.activation_name(self.activation), centre, last=False)

    def extra_repr(self) -> str:
        options = f"stride={self.stride}, padding_mode={self.padding_mode!r}, bias={self.bias is not None}, residual={self.residual}"
        options += f", activation={self.activation!r}" if self.activation else ""
        return f"{self.channels}, kernel_size={self.kernel_size}, degrees={angle_list(self._angles)}, taps={self.taps.key}, {options}"


def _angles(theta: Any, directions: int | None, channels: int) -> Sequence[float]:
    """Returns the angles in radians from the one of the two arguments that was given.

    Raises:
        InvalidArgument: both are given, or there are more angles than channels.
    """
    if theta is not None and directions is not None:
        raise InvalidArgument(f"theta says the angles and directions how many there are, got both ({theta!r} and {directions!r}): drop one")
    if isinstance(theta, int) and not isinstance(theta, bool) and 1 <= theta <= channels:
        warn(
            f"theta={theta} is taken as {theta} directions, as theta=8 was once spelled: write directions={theta}, or theta=tvm_orient.from_degrees({theta}) "
            f"for an angle in degrees, or theta={float(theta)} for radians"
        )
        theta, directions = None, theta
    if theta is not None:
        return checks.angles(theta, channels)
    found: list[float] = angles_between(min(_DIRECTIONS, channels) if directions is None else directions).tolist()
    if len(found) > channels:
        raise InvalidArgument(f"every direction needs a channel, got directions={directions} for {channels} channels: give at most {channels}")
    return found
