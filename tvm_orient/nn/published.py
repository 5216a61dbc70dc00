"""The published module under its own name, so that networks that were written for it run unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InvalidArgument
from ..functional import tap_conv2d, with_residual
from ..ops import checks
from ..problem.labels import angle_list
from ..problem.spec import stride_pair
from ..problem.taps import Taps
from .angled import Angled
from .scripted import Scriptable


class DepthwiseOrientedConv1d(Angled, torch.nn.Conv2d):
    """The published module (Kirchmeyer & Deng, ICCV 2023, arXiv 2309.15812): its names, state dict and numbers, on any size, dtype and device.

    As published it is a torch.nn.Conv2d of kernel (1, K), with what belongs to one: its attributes, its start values, and what a network does with
    every Conv2d; its kernel size reads (1, K), its padding (0, padding). What it computes is its own.

    Args:
        in_channels, out_channels, groups: C, three times; groups may be left out.
        kernel_size: K, odd.
        stride: the same for both axes, or (vertical, horizontal).
        padding: accepted and ignored, as published: the output has ceil(H/stride) x ceil(W/stride) pixels.
        bias: add a trained bias to each channel.
        angle: radians: a number for all channels, or one for each. Beyond 2 pi there is a UserWarning.
        nhwc: operands and results are (N, H, W, C).
        resid: adds x to the result, as residual of `tvm_orient.oriented_conv2d`.
        arbitrary_size: accepted and ignored; every size works.
        device, dtype: where the parameters lie, and their dtype.

    Attributes:
        weight: parameter (C, 1, 1, K). A state dict may hold it as (C, K).
        bias: parameter (C,), or None.
        theta: radians, float32, (C,), or (C, 1) where angle is a number; a state dict may hold either. A buffer here, a parameter as published.
            It keeps its angles as that of `tvm_orient.nn.OrientedConv2d` does.
        resid: (C, 1, 1, K), one at the centre tap, or None.
        taps: the `tvm_orient.Taps` of theta.

    Raises:
        InvalidArgument: a rule is broken.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        groups: int | None = None,
        stride: int | tuple[int, int] = 1,
        padding: Any = 1,
        bias: bool = True,
        angle: float | Sequence[float] | torch.Tensor = 0.0,
        nhwc: bool = False,
        resid: bool = False,
        arbitrary_size: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if isinstance(in_channels, bool) or not isinstance(in_channels, int) or in_channels < 1:
            raise InvalidArgument(f"in_channels must be a whole number >= 1, got {in_channels!r}")
        if in_channels != out_channels or groups not in (None, in_channels):
            raise InvalidArgument(
                f"a depthwise convolution has in_channels = out_channels = groups, got {in_channels}, {out_channels} and {groups}: add a pointwise convolution"
            )
        pair = stride_pair(stride)
        angles = checks.angles(float(angle) if isinstance(angle, int) and not isinstance(angle, bool) else angle, in_channels)
        Taps.oriented(0.0, kernel_size)  # refuses what is no odd number
        super().__init__(in_channels, out_channels, (1, kernel_size), stride=pair, groups=in_channels, bias=bias, device=device, dtype=dtype)
        self.padding = (0, padding) if isinstance(padding, int) else padding
        self.channels, self.nhwc, self.residual = in_channels, nhwc, resid
        self._column = len(angles) == 1
        self._begin(angles, device)

    def _take(self, angles: Sequence[float]) -> None:
        """Takes one angle for each channel, from one for all of them or as many as there are."""
        if len(angles) not in (1, self.channels):
            raise InvalidArgument(f"angle must be a number or one for each of {self.channels} channels, got {len(angles)}: OrientedConv2d takes one per group")
        super()._take(list(angles) * self.channels if len(angles) == 1 else angles)

    def _shape(self, count: int) -> tuple[int, ...]:
        return (count, 1) if self._column else (count,)

    def _lines(self, angles: Sequence[float]) -> Taps:
        """Returns taps with one group of channels where all lines are the same, so that one kernel serves them."""
        taps = checks.line_taps(angles, self.kernel_size[1], 1, "center", self.channels)
        return taps.group(0) if len(set(taps.table)) == 1 else taps

    @property
    def resid(self) -> torch.Tensor | None:
        """The tensor that the residual adds to the weight: (C, 1, 1, K), one at the centre tap; None without a residual."""
        if not self.residual:
            return None
        centre = torch.arange(self.kernel_size[1], device=self.weight.device) == self.kernel_size[1] // 2
        return centre.to(self.weight.dtype).expand(self.weight.shape).clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to (N, C, ceil(H/stride), ceil(W/stride)), with C last in both where nhwc is set; N may be left out."""
        return self._filtered(x.movedim(-1, -3)).movedim(-3, -1) if self.nhwc else self._filtered(x)

    def _filtered(self, x: torch.Tensor) -> torch.Tensor:
        taps = self.taps if torch.compiler.is_compiling() else self._now()
        stride = (self.stride[0], self.stride[1])
        if self.residual:
            return with_residual(x, self.weight.flatten(1), taps.key, self.bias, stride, self.padding_mode, self.kernel_size[1] // 2)
        return tap_conv2d(x, self.weight, taps, self.bias, stride=stride, padding_mode=self.padding_mode)

    def __prepare_scriptable__(self) -> torch.nn.Module:
        """Returns the module that torch.jit.script compiles in the place of this one."""
        centre = self.kernel_size[1] // 2 if self.residual else -1
        return Scriptable(self, "none", centre, self.nhwc)

    def extra_repr(self) -> str:
        options = "".join(f", {name}=True" for name, on in (("nhwc", self.nhwc), ("resid", self.residual)) if on)
        return f"{super().extra_repr()}, degrees={angle_list(self._angles)}, taps={self.taps.key}{options}"
