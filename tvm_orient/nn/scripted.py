"""OrientedConv2d in the language of torch.jit.script, which knows neither Taps nor keyword arguments with defaults."""

# no postponed annotations here: torch.jit.script cannot resolve them
from typing import Any

import torch

from .. import ops  # noqa: F401  # defines the operators


class Scriptable(torch.nn.Module):
    """The module that torch.jit.script compiles in the place of one of ours: it holds its very parameters.

    Args:
        original: an OrientedConv2d or a DepthwiseOrientedConv1d, with its weight, bias, theta, taps, stride and padding_mode.
        activation: "none", "relu", "silu" or "gelu".
        centre: the tap that a residual adds one to; -1 where there is no residual.
        last: images are (N, H, W, C).
    """

    def __init__(self, original: Any, activation: str, centre: int, last: bool) -> None:
        super().__init__()
        self.weight, self.bias = original.weight, original.bias
        self.register_buffer("theta", original.theta)  # for the state dict alone
        self.taps, self.stride, self.padding_mode, self.activation = original.taps.key, list(original.stride), original.padding_mode, activation
        self.centre, self.last = centre, last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Computes what the original does outside of autocast, on (N, C, H, W) or (C, H, W), with C last where `last` is set."""
        if self.last:
            x = x.movedim(-1, -3)
        images = x.unsqueeze(0) if x.dim() == 3 else x
        weight = self.weight.flatten(1)
        sums_up = self.centre >= 0 and weight.dtype != torch.float32 and weight.dtype != torch.float64
        if self.centre >= 0 and not sums_up:
            weight = weight + (torch.arange(weight.shape[1], device=weight.device) == self.centre).to(weight.dtype)
        activation = "none" if sums_up else self.activation
        y: torch.Tensor = torch.ops.tvm_orient.conv_epilogue(images, weight, self.bias, activation, self.taps, self.stride, self.padding_mode)
        if sums_up:
            y = y + images[:, :, :: self.stride[0], :: self.stride[1]]
            if self.activation == "relu":
                y = torch.relu(y)
            elif self.activation == "silu":
                y = torch.nn.functional.silu(y)
            elif self.activation == "gelu":
                y = torch.nn.functional.gelu(y)
        y = y.squeeze(0) if x.dim() == 3 else y
        return y.movedim(-3, -1) if self.last else y
