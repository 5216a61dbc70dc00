"""The torch operators: tvm_orient::conv, conv_dx and conv_dw, closed under differentiation.

The geometry crosses the boundary as Taps.key: static, self-describing, stable under export. Kernels are chosen inside the
implementation, where sizes are plain ints, so that torch.compile adds no guards for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import checks, launch
from .spec import ConvSpec
from .taps import Taps

_library = torch.library.Library("tvm_orient", "DEF")
for _schema in (
    "conv(Tensor x, Tensor weight, str taps, int[2] stride, str padding_mode) -> Tensor",
    "conv_dx(Tensor dy, Tensor weight, str taps, SymInt height, SymInt width, int[2] stride, str padding_mode) -> Tensor",
    "conv_dw(Tensor x, Tensor dy, str taps, int[2] stride, str padding_mode) -> Tensor",
    "conv_epilogue(Tensor x, Tensor weight, Tensor? bias, str activation, str taps, int[2] stride, str padding_mode) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.needs_exact_strides,))  # strides choose the layout, of the kernel and of the result


# what a call has been checked and built for: everything about its operands but values and addresses; a CPU is device -1
_ready: dict[tuple[Any, ...], launch.Call] = {}
_MOST = 4096
launch.on_forget(_ready.clear)


def layout_of(image: torch.Tensor) -> str:
    """The layout that an operator takes for an image (N, C, H, W): "nhwc" where it is channels_last and not contiguous."""
    return "nchw" if image.is_contiguous() or not image.is_contiguous(memory_format=torch.channels_last) else "nhwc"


def _kind(a: torch.Tensor, b: torch.Tensor) -> tuple[Any, ...]:
    return a.shape, a.stride(), b.shape, b.stride(), a.dtype, b.dtype, a.get_device(), b.get_device()


def _prepared(
    key: tuple[Any, ...],
    op: str,
    operands: tuple[torch.Tensor, torch.Tensor],
    plane: Sequence[int],
    taps: str,
    stride: Sequence[int],
    padding_mode: str,
    *epilogue: Any,
) -> launch.Call:
    """The call of a kernel on operands that have just been checked, the image first, kept for the calls like it. plane: height and width of x."""
    image = operands[0]
    geometry = (op, image.shape[1], plane[0], plane[1], Taps.from_key(taps), tuple(stride), padding_mode)
    spec = ConvSpec(*geometry, checks.dtype_name(image.dtype), layout_of(image), *epilogue)  # type: ignore[arg-type]
    call = launch.serving(spec, launch.device_of(image)).prepared(*operands)
    if len(_ready) >= _MOST:
        _ready.clear()
    _ready[key] = call
    return call


def _conv(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    key = ("conv", taps, stride[0], stride[1], padding_mode, _kind(x, weight))
    call = _ready.get(key)
    if call is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        call = _prepared(key, "conv", (x, weight), x.shape[2:], taps, stride, padding_mode)
    return call(x, weight)


def _conv_epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> torch.Tensor:
    added = None if bias is None else (bias.shape, bias.dtype, bias.get_device())
    key = (activation, taps, stride[0], stride[1], padding_mode, _kind(x, weight), added)
    call = _ready.get(key)
    if call is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        if bias is not None:
            checks.bias_vector(bias, x)
        call = _prepared(key, "conv", (x, weight), x.shape[2:], taps, stride, padding_mode, bias is not None, activation)
    return call(x, weight, bias)


def _conv_dx(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: list[int], padding_mode: str) -> torch.Tensor:
    key = ("conv_dx", taps, stride[0], stride[1], padding_mode, _kind(dy, weight), height, width)
    call = _ready.get(key)
    if call is None:
        checks.dx_operands(dy, weight, Taps.from_key(taps), height, width, (stride[0], stride[1]))
        call = _prepared(key, "conv_dx", (dy, weight), (height, width), taps, stride, padding_mode)
    return call(dy, weight)


def _conv_dw(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    key = ("conv_dw", taps, stride[0], stride[1], padding_mode, _kind(x, dy))
    call = _ready.get(key)
    if call is None:
        checks.dw_operands(x, dy, (stride[0], stride[1]))
        call = _prepared(key, "conv_dw", (x, dy), x.shape[2:], taps, stride, padding_mode)
    return call(x, dy)


for _key in ("CPU", "CUDA"):
    _library.impl("conv", _conv, _key)
    _library.impl("conv_dx", _conv_dx, _key)
    _library.impl("conv_dw", _conv_dw, _key)
    _library.impl("conv_epilogue", _conv_epilogue, _key)


# ---- fakes: shapes only, with the strides that the kernels write --------------------------------


def _fake_weight(image: torch.Tensor, weight: torch.Tensor, taps: str) -> None:
    torch._check(
        weight.shape[0] == image.shape[1], lambda: f"depthwise needs one row of weights per channel: {image.shape[1]} channels, weight {weight.shape[0]}"
    )
    size = Taps.from_key(taps).kernel_size
    torch._check(weight.shape[1] == size, lambda: f"weight must have as many columns as there are taps: {size} taps, weight has {weight.shape[1]}")


def _image(like: torch.Tensor, height: Any, width: Any) -> torch.Tensor:
    """An empty image of N, C and layout of another."""
    if layout_of(like) == "nhwc":
        return like.new_empty((like.shape[0], height, width, like.shape[1])).permute(0, 3, 1, 2)
    return like.new_empty((like.shape[0], like.shape[1], height, width))


@torch.library.register_fake("tvm_orient::conv", lib=_library)
def _conv_fake(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    _fake_weight(x, weight, taps)
    return _image(x, (x.shape[2] + stride[0] - 1) // stride[0], (x.shape[3] + stride[1] - 1) // stride[1])


@torch.library.register_fake("tvm_orient::conv_epilogue", lib=_library)
def _conv_epilogue_fake(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> torch.Tensor:
    return _conv_fake(x, weight, taps, stride, padding_mode)


@torch.library.register_fake("tvm_orient::conv_dx", lib=_library)
def _conv_dx_fake(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: list[int], padding_mode: str) -> torch.Tensor:
    _fake_weight(dy, weight, taps)
    return _image(dy, height, width)


@torch.library.register_fake("tvm_orient::conv_dw", lib=_library)
def _conv_dw_fake(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    torch._check(x.shape[1] == dy.shape[1], lambda: f"x has {x.shape[1]} channels, dy {dy.shape[1]}")
    return x.new_empty((x.shape[1], Taps.from_key(taps).kernel_size))


# ---- gradients: each op is linear in both operands, and its adjoints are the other two ----------

conv = torch.ops.tvm_orient.conv.default
conv_dx = torch.ops.tvm_orient.conv_dx.default
conv_dw = torch.ops.tvm_orient.conv_dw.default
conv_epilogue = torch.ops.tvm_orient.conv_epilogue.default


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


def _save_epilogue(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    x, weight, bias, ctx.activation, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias, output if ctx.activation == "relu" else None)


def _epilogue_gradients(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Of conv_epilogue, in x, weight and bias. What an activation's gradient needs is computed again rather than kept, but for ReLU."""
    x, weight, bias, y = ctx.saved_tensors
    if ctx.activation == "relu":
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
    elif ctx.activation != "none":
        z = conv(x, weight, *ctx.options) if bias is None else conv_epilogue(x, weight, bias, "none", *ctx.options)
        # aten's silu_backward has no derivative of its own
        grad = grad * (z.sigmoid() * (1 + z * (1 - z.sigmoid()))) if ctx.activation == "silu" else torch.ops.aten.gelu_backward(grad, z)
    dx = conv_dx(grad, weight, ctx.options[0], x.shape[2], x.shape[3], *ctx.options[1:]) if ctx.needs_input_grad[0] else None
    dw = conv_dw(x, grad, *ctx.options) if ctx.needs_input_grad[1] else None
    db = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
    return dx, dw, db, None, None, None, None


_AFTER = torch._C._after_autograd_keyset
_ENDS = (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA)
_ours_next: dict[int, bool] = {}  # by the dispatch keys of a call: whether what comes after autograd is our implementation


def _ours_is_next(keys: Any) -> bool:
    """Whether, for a call with these dispatch keys, what comes after autograd is our implementation: no mode, subclass or transform is at work."""
    number = keys.raw_repr()
    ours = _ours_next.get(number)
    if ours is None:
        ours = _ours_next[number] = (keys & _AFTER).highestPriorityTypeId() in _ENDS
    return ours


def _differentiable(op: Any, implementation: Any, gradients: Any, saved: Any, *, bias: bool = False) -> None:
    """Register an op's gradients, as torch.library.register_autograd does it, but cheaper in each call.

    Where our implementation comes next it is called, not dispatched to; and a call without gradients does nothing for their sake.
    """

    def dispatched(keys: Any, inputs: Sequence[Any]) -> torch.Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keys & _AFTER, *inputs)

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> torch.Tensor:
            inputs, keys = given[:-1], given[-1]  # keys last, so that needs_input_grad counts from the operands; None: ours is next
            output = implementation(*inputs) if keys is None else dispatched(keys, inputs)
            saved(ctx, inputs, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
            return (*gradients(ctx, grads[0]), None)

    apply = super(torch.autograd.Function, Function).apply  # without looking for transforms, which are not there where ours is next

    def recorded(keys: Any, *inputs: Any) -> torch.Tensor:
        wanted = inputs[0].requires_grad or inputs[1].requires_grad or (bias and inputs[2] is not None and inputs[2].requires_grad)
        if not (wanted and torch.is_grad_enabled()):
            return implementation(*inputs) if _ours_is_next(keys) else dispatched(keys, inputs)
        return apply(*inputs, None) if _ours_is_next(keys) else Function.apply(*inputs, keys)

    _library.impl(op, recorded, "Autograd", with_keyset=True)


_differentiable(conv_epilogue, _conv_epilogue, _epilogue_gradients, _save_epilogue, bias=True)
_differentiable(conv, _conv, conv_gradients, save)
_differentiable(conv_dx, _conv_dx, conv_dx_gradients, save)
_differentiable(conv_dw, _conv_dw, conv_dw_gradients, save)


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


def _mapped_epilogue(info: Any, in_dims: tuple[Any, ...], x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *options: Any) -> Any:
    biases = [None] * info.batch_size if bias is None else _moved((bias,), in_dims[2:3], info.batch_size)[0].unbind()
    xs, weights = _moved((x, weight), in_dims[:2], info.batch_size)
    return torch.stack([conv_epilogue(*each, *options) for each in zip(xs.unbind(), weights.unbind(), biases, strict=True)]), 0


torch.library.register_vmap("tvm_orient::conv_epilogue", _mapped_epilogue, lib=_library)
torch.library.register_vmap("tvm_orient::conv", mapped(conv, True), lib=_library)
torch.library.register_vmap("tvm_orient::conv_dx", mapped(conv_dx, True), lib=_library)
torch.library.register_vmap("tvm_orient::conv_dw", mapped(conv_dw, False), lib=_library)
