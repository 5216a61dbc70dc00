"""Modules over the public functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from . import checks
from .errors import InvalidArgument
from .functional import tap_conv2d, with_residual
from .scripted import Scriptable
from .spec import stride_pair
from .taps import Anchor, angles_between


class OrientedConv2d(torch.nn.Module):
    """`tvm_orient.oriented_conv2d` as a module: depthwise convolution with 1D kernels along fixed angles.

    Args:
        channels: how many, C.
        kernel_size: K; odd unless anchor is "start".
        theta: an int for that many directions spread over 180 degrees (`tvm_orient.angles_between`), or radians: a float, (G,), (C,) or (C, 1).
        stride, dilation, padding_mode, anchor, residual, activation: as `tvm_orient.oriented_conv2d`.
        bias: whether there is one.
        device, dtype: of the parameters.

    Attributes:
        weight: parameter (C, K).
        bias: parameter (C,), or None.
        theta: radians, a float32 buffer (G,) or (C,) in the state dict. No cast of the module changes its dtype; it has no gradient.
        taps: the `tvm_orient.Taps` of theta. They follow theta when a state dict is loaded.

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
        """Weight and bias uniform in +-1/sqrt(K): what torch.nn.Conv2d gives a depthwise kernel of K taps."""
        bound = 1 / math.sqrt(self.kernel_size)
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)), dtype and errors as `tvm_orient.oriented_conv2d`. N may be left out."""
        if self.residual:
            centre = self.kernel_size // 2 if self.anchor == "center" else 0
            return with_residual(x, self.weight, self.taps.key, self.bias, self.stride, self.padding_mode, centre, self.activation)
        return tap_conv2d(x, self.weight, self.taps, self.bias, stride=self.stride, padding_mode=self.padding_mode, activation=self.activation)

    def __prepare_scriptable__(self, last: bool = False) -> torch.nn.Module:
        """What torch.jit.script compiles in this module's place."""
        centre = -1 if not self.residual else self.kernel_size // 2 if self.anchor == "center" else 0
        activation = checks.activation_name(self.activation)
        return Scriptable(self.weight, self.bias, self.theta, self.taps.key, list(self.stride), self.padding_mode, activation, centre, last)

    def extra_repr(self) -> str:
        options = f"stride={self.stride}, padding_mode={self.padding_mode!r}, bias={self.bias is not None}, residual={self.residual}"
        options += f", activation={self.activation!r}" if self.activation else ""
        return f"{self.channels}, kernel_size={self.kernel_size}, taps={self.taps.key}, {options}"


class DepthwiseOrientedConv1d(OrientedConv2d):
    """The published module (Kirchmeyer & Deng, ICCV 2023, arXiv 2309.15812): its names, state dict and numbers, on any size, dtype and device.

    Args:
        in_channels, out_channels, groups: C, three times; groups may be left out.
        kernel_size: K, odd.
        stride: the same for both axes, or (vertical, horizontal).
        padding: accepted and ignored, as published: the output has ceil(H/stride) x ceil(W/stride) pixels.
        bias: whether there is one.
        angle: radians: a number for all channels, or one for each.
        nhwc: operands and results are (N, H, W, C).
        resid: adds x to the result, as residual of `tvm_orient.oriented_conv2d`.
        arbitrary_size: accepted and ignored; every size works.
        device, dtype: of the parameters.

    Attributes:
        weight: parameter (C, 1, 1, K).
        bias: parameter (C,), or None.
        theta: radians, float32, (C,), or (C, 1) where angle is a number; a state dict may hold either. A buffer here, a parameter as published.

    Raises:
        InvalidArgument: a rule is broken.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        groups: int | None = None,
        stride: int | tuple[int, int] = 1,
        padding: object = 0,
        bias: bool = True,
        angle: float | Sequence[float] | torch.Tensor = 0.0,
        nhwc: bool = False,
        resid: bool = False,
        arbitrary_size: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if in_channels != out_channels or groups not in (None, in_channels):
            raise InvalidArgument(
                f"a depthwise convolution has in_channels = out_channels = groups, got {in_channels}, {out_channels} and {groups}: add a pointwise convolution"
            )
        angles = checks.angles(angle, in_channels)
        if len(angles) not in (1, in_channels):
            raise InvalidArgument(f"angle must be a number or one for each of {in_channels} channels, got {len(angles)}: OrientedConv2d takes one per group")
        one = len(angles) == 1
        super().__init__(
            in_channels, kernel_size, list(angles) * in_channels if one else angles, stride=stride, bias=bias, residual=resid, device=device, dtype=dtype
        )
        self.nhwc = nhwc
        if one:
            self.theta = self.theta.view(-1, 1)
            self._read_theta()
        self.weight = torch.nn.Parameter(self.weight.detach().view(in_channels, 1, 1, kernel_size))

    def _read_theta(self) -> None:
        """One group of channels where all angles are the same, so that one kernel serves them."""
        super()._read_theta()
        if len(set(self.taps.table)) == 1:
            self.taps = self.taps.group(0)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *rest: object) -> None:
        theta = state_dict.get(f"{prefix}theta")
        if theta is not None and theta.numel() == self.theta.numel():
            state_dict[f"{prefix}theta"] = theta.reshape(self.theta.shape)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, ceil(H/stride), ceil(W/stride)); (N, H, W, C) both where nhwc is set. N may be left out."""
        return super().forward(x.movedim(-1, -3)).movedim(-3, -1) if self.nhwc else super().forward(x)

    def __prepare_scriptable__(self, last: bool = False) -> torch.nn.Module:
        return super().__prepare_scriptable__(self.nhwc)


def _follow_theta(module: OrientedConv2d, _: object) -> None:  # not a lambda, which would not pickle
    module._read_theta()
