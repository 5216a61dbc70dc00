"""The operators' implementations, fakes, gradients and vmap rules are registered here: tvm_orient::conv, conv_dx, conv_dw and conv_epilogue.

The geometry crosses the boundary as Taps.key: static, self-describing, stable under export. Kernels are chosen inside the
implementation, where sizes are plain ints, so that torch.compile adds no guards for them.
"""

from __future__ import annotations

from typing import Any

import torch

from ..problem.taps import Taps
from .autograd import conv_called, conv_dw_recorded, conv_dx_recorded, conv_epilogue_called
from .calls import find_conv, find_conv_dw, find_conv_dx, find_conv_epilogue, layout_of
from .library import conv, conv_dw, conv_dx, conv_epilogue, library
from .vmap import mapped, mapped_epilogue


def _implemented(name: str, find: Any, tensors: int = 2) -> None:
    """Registers an op's implementation on CPU and CUDA: it calls what find(*inputs) returns with the first inputs, as many as `tensors` says."""

    def implementation(*inputs: Any) -> torch.Tensor:
        return find(*inputs)(*inputs[:tensors])

    for key in ("CPU", "CUDA"):
        library.impl(name, implementation, key)


_implemented("conv", find_conv)
_implemented("conv_dx", find_conv_dx)
_implemented("conv_dw", find_conv_dw)
_implemented("conv_epilogue", find_conv_epilogue, tensors=3)


# fakes: shapes alone, with the strides that the kernels write


def _fake_weight(image: torch.Tensor, weight: torch.Tensor, taps: str) -> None:
    torch._check(
        weight.shape[0] == image.shape[1], lambda: f"depthwise needs one row of weights per channel: {image.shape[1]} channels, weight {weight.shape[0]}"
    )
    size = Taps.from_key(taps).kernel_size
    torch._check(weight.shape[1] == size, lambda: f"weight must have as many columns as there are taps: {size} taps, weight has {weight.shape[1]}")


def _image(like: torch.Tensor, height: Any, width: Any) -> torch.Tensor:
    """Returns an empty image of this height and width, with N, C and layout of another."""
    if layout_of(like) == "nhwc":
        return like.new_empty((like.shape[0], height, width, like.shape[1])).permute(0, 3, 1, 2)
    return like.new_empty((like.shape[0], like.shape[1], height, width))


@torch.library.register_fake("tvm_orient::conv", lib=library)
def _conv_fake(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    _fake_weight(x, weight, taps)
    return _image(x, (x.shape[2] + stride[0] - 1) // stride[0], (x.shape[3] + stride[1] - 1) // stride[1])


@torch.library.register_fake("tvm_orient::conv_epilogue", lib=library)
def _conv_epilogue_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> torch.Tensor:
    return _conv_fake(x, weight, taps, stride, padding_mode)


@torch.library.register_fake("tvm_orient::conv_dx", lib=library)
def _conv_dx_fake(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: list[int], padding_mode: str) -> torch.Tensor:
    _fake_weight(dy, weight, taps)
    return _image(dy, height, width)


@torch.library.register_fake("tvm_orient::conv_dw", lib=library)
def _conv_dw_fake(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    torch._check(x.shape[1] == dy.shape[1], lambda: f"x has {x.shape[1]} channels, dy {dy.shape[1]}")
    return x.new_empty((x.shape[1], Taps.from_key(taps).kernel_size))


library.impl(conv, conv_called, "Autograd", with_keyset=True)
library.impl(conv_epilogue, conv_epilogue_called, "Autograd", with_keyset=True)
library.impl(conv_dx, lambda keys, *inputs: conv_dx_recorded(keys, inputs[:2], inputs[2:]), "Autograd", with_keyset=True)
library.impl(conv_dw, lambda keys, *inputs: conv_dw_recorded(keys, inputs[:2], inputs[2:]), "Autograd", with_keyset=True)


torch.library.register_vmap("tvm_orient::conv_epilogue", mapped_epilogue, lib=library)
torch.library.register_vmap("tvm_orient::conv", mapped(conv, True), lib=library)
torch.library.register_vmap("tvm_orient::conv_dx", mapped(conv_dx, True), lib=library)
torch.library.register_vmap("tvm_orient::conv_dw", mapped(conv_dw, False), lib=library)
