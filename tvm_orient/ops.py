"""The torch operators: tvm_orient::conv, conv_dx and conv_dw, closed under differentiation.

The geometry crosses the boundary as Taps.key: static, self-describing, stable under export. Kernels are chosen inside the
implementation, where sizes are plain ints, so that torch.compile adds no guards for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import checks, launch
from .launch import Kernel
from .spec import ConvSpec
from .taps import Taps

_library = torch.library.Library("tvm_orient", "DEF")
_library.define("conv(Tensor x, Tensor weight, str taps, int[2] stride, str padding_mode) -> Tensor")
_library.define("conv_dx(Tensor dy, Tensor weight, str taps, SymInt height, SymInt width, int[2] stride, str padding_mode) -> Tensor")
_library.define("conv_dw(Tensor x, Tensor dy, str taps, int[2] stride, str padding_mode) -> Tensor")


# what a call has been checked and built for: everything about its operands but N, the values and the strides
_ready: dict[tuple[Any, ...], Kernel] = {}
_MOST = 4096
launch.on_forget(_ready.clear)


def _prepared(key: tuple[Any, ...], op: str, image: torch.Tensor, plane: Sequence[int], taps: str, stride: Sequence[int], padding_mode: str) -> Kernel:
    """The kernel of a call that has just been checked, kept for the calls like it. plane: height and width of x."""
    spec = ConvSpec(op, image.shape[1], plane[0], plane[1], Taps.from_key(taps), tuple(stride), padding_mode, checks.dtype_name(image.dtype))  # type: ignore[arg-type]
    kernel = launch.kernel(spec, launch.device_of(image))
    if len(_ready) >= _MOST:
        _ready.clear()
    _ready[key] = kernel
    return kernel


def _conv(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    key = ("conv", x.shape[1:], weight.shape, taps, *stride, padding_mode, x.dtype, weight.dtype, x.device, weight.device)
    kernel = _ready.get(key)
    if kernel is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        kernel = _prepared(key, "conv", x, x.shape[2:], taps, stride, padding_mode)
    return kernel(x.contiguous(), weight.contiguous())


def _conv_dx(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: list[int], padding_mode: str) -> torch.Tensor:
    key = ("conv_dx", height, width, dy.shape[1:], weight.shape, taps, *stride, padding_mode, dy.dtype, weight.dtype, dy.device, weight.device)
    kernel = _ready.get(key)
    if kernel is None:
        checks.dx_operands(dy, weight, Taps.from_key(taps), height, width, (stride[0], stride[1]))
        kernel = _prepared(key, "conv_dx", dy, (height, width), taps, stride, padding_mode)
    return kernel(dy.contiguous(), weight.contiguous())


def _conv_dw(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    key = ("conv_dw", x.shape[0] == dy.shape[0], x.shape[1:], dy.shape[1:], taps, *stride, padding_mode, x.dtype, dy.dtype, x.device, dy.device)
    kernel = _ready.get(key)
    if kernel is None:
        checks.dw_operands(x, dy, (stride[0], stride[1]))
        kernel = _prepared(key, "conv_dw", x, x.shape[2:], taps, stride, padding_mode)
    return kernel(x.contiguous(), dy.contiguous())


for _key in ("CPU", "CUDA"):
    _library.impl("conv", _conv, _key)
    _library.impl("conv_dx", _conv_dx, _key)
    _library.impl("conv_dw", _conv_dw, _key)


# ---- fakes: shapes only, with the strides that the kernels write --------------------------------


def _fake_weight(image: torch.Tensor, weight: torch.Tensor, taps: str) -> None:
    torch._check(
        weight.shape[0] == image.shape[1], lambda: f"depthwise needs one row of weights per channel: {image.shape[1]} channels, weight {weight.shape[0]}"
    )
    size = Taps.from_key(taps).kernel_size
    torch._check(weight.shape[1] == size, lambda: f"weight must have as many columns as there are taps: {size} taps, weight has {weight.shape[1]}")


@torch.library.register_fake("tvm_orient::conv", lib=_library)
def _conv_fake(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    _fake_weight(x, weight, taps)
    n, c, h, w = x.shape
    return x.new_empty((n, c, (h + stride[0] - 1) // stride[0], (w + stride[1] - 1) // stride[1]))


@torch.library.register_fake("tvm_orient::conv_dx", lib=_library)
def _conv_dx_fake(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: list[int], padding_mode: str) -> torch.Tensor:
    _fake_weight(dy, weight, taps)
    return dy.new_empty((dy.shape[0], dy.shape[1], height, width))


@torch.library.register_fake("tvm_orient::conv_dw", lib=_library)
def _conv_dw_fake(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    torch._check(x.shape[1] == dy.shape[1], lambda: f"x has {x.shape[1]} channels, dy {dy.shape[1]}")
    return x.new_empty((x.shape[1], Taps.from_key(taps).kernel_size))


# ---- gradients: each op is linear in both operands, and its adjoints are the other two ----------

conv = torch.ops.tvm_orient.conv.default
conv_dx = torch.ops.tvm_orient.conv_dx.default
conv_dw = torch.ops.tvm_orient.conv_dw.default


def save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    """What the gradients of an op need: both operands, and its options."""
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.options = inputs[2:]


def conv_gradients(ctx: Any, grad: torch.Tensor, dx_of: Any = conv_dx, dw_of: Any = conv_dw) -> tuple[Any, ...]:
    """Of conv, in x and weight; dx_of and dw_of are the other two ops, or functions of the same arguments."""
    x, weight = ctx.saved_tensors
    taps, stride, padding_mode = ctx.options
    dx = dx_of(grad, weight, taps, x.shape[2], x.shape[3], stride, padding_mode) if ctx.needs_input_grad[0] else None
    dw = dw_of(x, grad, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
    return dx, dw, None, None, None


def conv_dx_gradients(ctx: Any, grad: torch.Tensor, y_of: Any = conv, dw_of: Any = conv_dw) -> tuple[Any, ...]:
    """Of conv_dx, in dy and weight, as conv_gradients."""
    dy, weight = ctx.saved_tensors
    taps, _, _, stride, padding_mode = ctx.options
    ddy = y_of(grad, weight, taps, stride, padding_mode) if ctx.needs_input_grad[0] else None
    dw = dw_of(grad, dy, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
    return ddy, dw, None, None, None, None, None


def conv_dw_gradients(ctx: Any, grad: torch.Tensor, y_of: Any = conv, dx_of: Any = conv_dx) -> tuple[Any, ...]:
    """Of conv_dw, in x and dy, as conv_gradients."""
    x, dy = ctx.saved_tensors
    taps, stride, padding_mode = ctx.options
    dx = dx_of(dy, grad, taps, x.shape[2], x.shape[3], stride, padding_mode) if ctx.needs_input_grad[0] else None
    ddy = y_of(x, grad, taps, stride, padding_mode) if ctx.needs_input_grad[1] else None
    return dx, ddy, None, None, None


torch.library.register_autograd("tvm_orient::conv", conv_gradients, setup_context=save, lib=_library)
torch.library.register_autograd("tvm_orient::conv_dx", conv_dx_gradients, setup_context=save, lib=_library)
torch.library.register_autograd("tvm_orient::conv_dw", conv_dw_gradients, setup_context=save, lib=_library)


# ---- vmap: images fold into N; weights of their own, and sums over N, are one call each -----------


def _moved(tensors: Sequence[torch.Tensor], dims: Sequence[int | None], size: int) -> list[torch.Tensor]:
    """Both operands with the mapped dimension first, expanded where an operand is not mapped."""
    return [t.expand(size, *t.shape) if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True)]


def mapped(op: Any, foldable: bool) -> Any:
    """The vmap rule of an op (a callable). foldable: its first operand is a batch of images, and so is its result."""

    def rule(info: Any, in_dims: tuple[Any, ...], first: torch.Tensor, second: torch.Tensor, *options: Any) -> tuple[torch.Tensor, int]:
        firsts, seconds = _moved((first, second), in_dims[:2], info.batch_size)
        if foldable and in_dims[1] is None:
            return op(firsts.flatten(0, 1), second, *options).unflatten(0, firsts.shape[:2]), 0
        return torch.stack([op(a, b, *options) for a, b in zip(firsts.unbind(), seconds.unbind(), strict=True)]), 0

    return rule


torch.library.register_vmap("tvm_orient::conv", mapped(conv, True), lib=_library)
torch.library.register_vmap("tvm_orient::conv_dx", mapped(conv_dx, True), lib=_library)
torch.library.register_vmap("tvm_orient::conv_dw", mapped(conv_dw, False), lib=_library)
