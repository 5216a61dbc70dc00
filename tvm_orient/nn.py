"""Modules over the public functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from . import checks
from .errors import InvalidArgument
from .functional import tap_conv2d
from .spec import stride_pair
from .taps import Anchor, angles_between


class OrientedConv2d(torch.nn.Module):
    """Depthwise convolution with 1D kernels along fixed angles.

    Args:
        channels: C.
        kernel_size: K, odd.
        theta: an int for that many directions spread over 180 degrees from 0, or radians: a float, (G,), (C,) or (C, 1).
        stride, dilation, padding_mode, anchor, bias: as `oriented_conv2d`.

    Parameters: weight (C, K), bias (C,). theta is a float32 buffer in the state dict, never cast by .half() or .to(dtype); the
    taps follow it when a state dict is loaded.

    Raises:
        InvalidArgument: a rule is broken.
    """

    theta: torch.Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        theta: int | float | Sequence[float] | torch.Tensor = 8,
        *,
        stride: int | tuple[int, int] = 1,
        dilation: int = 1,
        padding_mode: str = "zeros",
        anchor: Anchor = "center",
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise InvalidArgument(f"channels must be a whole number >= 1, got {channels!r}")
        self.channels, self.kernel_size, self.dilation, self.anchor = channels, kernel_size, dilation, anchor
        self.stride, self.padding_mode = stride_pair(stride), padding_mode
        checks.options(stride, padding_mode)
        directions = angles_between(theta).tolist() if isinstance(theta, int) and not isinstance(theta, bool) else checks.angles(theta, channels)
        self.register_buffer("theta", torch.tensor(directions, dtype=torch.float32, device=device))
        self.taps = checks.line_taps(directions, kernel_size, dilation, anchor, channels)
        self.weight = torch.nn.Parameter(torch.empty(channels, kernel_size, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()
        self.register_load_state_dict_post_hook(_follow_theta)

    def _read_theta(self) -> None:
        """Offsets from theta, once on the host: a low-precision or a moved theta must never move a tap."""
        if self.theta.is_meta:  # no numbers yet: a state dict brings them
            return
        self.taps = checks.line_taps(self.theta.detach().cpu().double().flatten().tolist(), self.kernel_size, self.dilation, self.anchor, self.channels)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        exact = self.theta.detach().clone()
        super()._apply(fn, recurse)
        if self.theta.dtype != torch.float32:
            self.theta = exact.to(self.theta.device)
        return self

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(K), as torch.nn.Conv2d does for a depthwise kernel of K taps."""
        bound = 1 / math.sqrt(self.kernel_size)
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride))."""
        return tap_conv2d(x, self.weight, self.taps, self.bias, stride=self.stride, padding_mode=self.padding_mode)

    def extra_repr(self) -> str:
        options = f"stride={self.stride}, padding_mode={self.padding_mode!r}, bias={self.bias is not None}"
        return f"{self.channels}, kernel_size={self.kernel_size}, taps={self.taps.key}, {options}"


def _follow_theta(module: OrientedConv2d, _: object) -> None:  # not a lambda, which would not pickle
    module._read_theta()
