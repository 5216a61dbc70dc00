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
_strict: set[launch.Call] = set()  # those of kernels for one problem alone: they refuse a weight or bias that is not theirs, unless N is 0
# what a call on a CPU with an image like this was, and what records it: short keys, since a strict call looks at the rest itself
_quick: dict[tuple[Any, ...], tuple[Any, Any]] = {}
_NONE = (None, None)
_plain: set[int] = set()  # dispatch keys with which our implementation comes after autograd, on a CPU


def _forget() -> None:
    for table in (_ready, _strict, _quick):
        table.clear()


launch.on_forget(_forget)


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
    served = launch.serving(spec, launch.device_of(image))
    call = served.prepared(*operands)
    if len(_ready) >= _MOST:
        _forget()
    if isinstance(served, launch.Kernel) and not served.generic and image.shape[0]:
        _strict.add(call)
    _ready[key] = call
    return call


def _conv(x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> launch.Call:
    key = ("conv", taps, stride[0], stride[1], padding_mode, _kind(x, weight))
    call = _ready.get(key)
    if call is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        call = _prepared(key, "conv", (x, weight), x.shape[2:], taps, stride, padding_mode)
    return call


def _conv_epilogue(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> launch.Call:
    added = None if bias is None else (bias.shape, bias.dtype, bias.get_device())
    key = (activation, taps, stride[0], stride[1], padding_mode, _kind(x, weight), added)
    call = _ready.get(key)
    if call is None:
        checks.conv_operands(x, weight, Taps.from_key(taps))
        if bias is not None:
            checks.bias_vector(bias, x)
        call = _prepared(key, "conv", (x, weight), x.shape[2:], taps, stride, padding_mode, bias is not None, activation)
    return call


def _conv_dx(dy: torch.Tensor, weight: torch.Tensor, taps: str, height: int, width: int, stride: list[int], padding_mode: str) -> launch.Call:
    key = ("conv_dx", taps, stride[0], stride[1], padding_mode, _kind(dy, weight), height, width)
    call = _ready.get(key)
    if call is None:
        checks.dx_operands(dy, weight, Taps.from_key(taps), height, width, (stride[0], stride[1]))
        call = _prepared(key, "conv_dx", (dy, weight), (height, width), taps, stride, padding_mode)
    return call


def _conv_dw(x: torch.Tensor, dy: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> launch.Call:
    key = ("conv_dw", taps, stride[0], stride[1], padding_mode, _kind(x, dy))
    call = _ready.get(key)
    if call is None:
        checks.dw_operands(x, dy, (stride[0], stride[1]))
        call = _prepared(key, "conv_dw", (x, dy), x.shape[2:], taps, stride, padding_mode)
    return call


def _implemented(name: str, find: Any, tensors: int = 2) -> None:
    """Register an op's implementation: what find(*inputs) returns, called with the first of the inputs, those that are tensors."""

    def implementation(*inputs: Any) -> torch.Tensor:
        return find(*inputs)(*inputs[:tensors])

    for key in ("CPU", "CUDA"):
        _library.impl(name, implementation, key)


_implemented("conv", _conv)
_implemented("conv_dx", _conv_dx)
_implemented("conv_dw", _conv_dw)
_implemented("conv_epilogue", _conv_epilogue, tensors=3)


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


def _epilogue_gradients(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
    """Of conv_epilogue, in x, weight and bias. What an activation's gradient needs is computed again rather than kept, but for ReLU."""
    x, weight, *kept = ctx.saved_tensors
    activation, *options = ctx.options
    if activation == "relu":
        grad = torch.ops.aten.threshold_backward(grad, kept[0], 0)
    elif activation != "none":
        bias = kept[0]
        z = conv(x, weight, *options) if bias is None else conv_epilogue(x, weight, bias, "none", *options)
        # aten's silu_backward has no derivative of its own
        grad = grad * (z.sigmoid() * (1 + z * (1 - z.sigmoid()))) if activation == "silu" else torch.ops.aten.gelu_backward(grad, z)
    dx = conv_dx(grad, weight, options[0], x.shape[2], x.shape[3], *options[1:]) if ctx.needs_input_grad[0] else None
    dw = conv_dw(x, grad, *options) if ctx.needs_input_grad[1] else None
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


def _saved(operands: Sequence[Any], options: tuple[Any, ...], output: torch.Tensor) -> Sequence[Any]:
    """What an op's gradients need: its operands, but for the bias; that too, or the output, where its activation asks for it."""
    if options[0] == "relu":
        return (*operands[:2], output)
    return operands[:2] if options[0] == "none" else operands


def _differentiable(op: Any, find: Any, gradients: Any, *, tensors: int = 2) -> Any:
    """What an op does at the Autograd key: as torch.library.register_autograd does it, but cheaper in each call.

    Where our implementation comes next it is called, not dispatched to; and a call without gradients does nothing for their sake.
    Of the op's inputs the first are tensors; find is that of _implemented.

    Returns:
        A function of the dispatch keys, the operands, the options and, where the call may be kept in _quick, its key there.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: Any) -> torch.Tensor:
            *operands, (call, ctx.options) = given
            output: torch.Tensor = call(*operands)
            ctx.save_for_backward(*_saved(operands, ctx.options, output))
            return output

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
            return (*gradients(ctx, grads[0])[:tensors], None)

    def recording(call: launch.Call, options: tuple[Any, ...]) -> Any:
        """Function for one call, which costs less than to hand it call and options."""

        class Function(torch.autograd.Function):
            @staticmethod
            def forward(ctx: Any, *operands: Any) -> torch.Tensor:
                output: torch.Tensor = call(*operands)
                ctx.to_save = _saved(operands, options, output)  # what save_for_backward does
                return output

            @staticmethod
            def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
                return gradients(ctx, grads[0])[:tensors]

        Function._backward_cls.options = options  # type: ignore[attr-defined]
        return super(torch.autograd.Function, Function).apply  # without looking for transforms: ours is next

    def recorded(keys: Any, operands: tuple[Any, ...], options: tuple[Any, ...], key: tuple[Any, ...] | None = None) -> torch.Tensor:
        def dispatched(*operands: Any) -> torch.Tensor:
            with torch._C._AutoDispatchBelowAutograd():
                return op.redispatch(keys & _AFTER, *operands, *options)

        wanted = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in operands)
        if not _ours_is_next(keys):
            return Function.apply(*operands, (dispatched, options)) if wanted else dispatched(*operands)
        call = find(*operands, *options)
        if operands[0].device.type == "cpu":
            _plain.add(keys.raw_repr())
        if key is not None and call in _strict:
            _quick[key] = call, recording(call, options) if wanted else None
        if wanted:
            return super(torch.autograd.Function, Function).apply(*operands, (call, options))
        return call(*operands)

    return recorded


_conv_recorded = _differentiable(conv, _conv, conv_gradients)
_conv_epilogue_recorded = _differentiable(conv_epilogue, _conv_epilogue, _epilogue_gradients, tensors=3)
_conv_dx_recorded = _differentiable(conv_dx, _conv_dx, conv_dx_gradients)
_conv_dw_recorded = _differentiable(conv_dw, _conv_dw, conv_dw_gradients)
_recording = torch.is_grad_enabled
_REFUSALS = (TypeError, ValueError, RuntimeError)  # what tvm-ffi raises; torch's checkpointing stops a forward by an exception of its own


def _conv_called(keys: Any, x: torch.Tensor, weight: torch.Tensor, taps: str, stride: list[int], padding_mode: str) -> torch.Tensor:
    key = None
    if keys.raw_repr() in _plain:
        key = x.shape, x.stride(), x.dtype, taps, stride[0], stride[1], padding_mode
        call, record = _quick.get(key, _NONE)
        try:
            if not (_recording() and (x.requires_grad or weight.requires_grad)):
                if call is not None:
                    return call(x, weight)
            elif record is not None:
                return record(x, weight)
        except _REFUSALS:  # another weight than the kernel's: the checks say what is wrong with it, or another call takes it
            pass
    return _conv_recorded(keys, (x, weight), (taps, stride, padding_mode), key)


def _conv_epilogue_called(
    keys: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str, taps: str, stride: list[int], padding_mode: str
) -> torch.Tensor:
    key = None
    if keys.raw_repr() in _plain:
        key = x.shape, x.stride(), x.dtype, taps, stride[0], stride[1], padding_mode, activation, bias is None
        call, record = _quick.get(key, _NONE)
        try:
            if not (_recording() and (x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))):
                if call is not None:
                    return call(x, weight, bias)
            elif record is not None:
                return record(x, weight, bias)
        except _REFUSALS:  # as in _conv_called
            pass
    return _conv_epilogue_recorded(keys, (x, weight, bias), (activation, taps, stride, padding_mode), key)


_library.impl(conv, _conv_called, "Autograd", with_keyset=True)
_library.impl(conv_epilogue, _conv_epilogue_called, "Autograd", with_keyset=True)
_library.impl(conv_dx, lambda keys, *inputs: _conv_dx_recorded(keys, inputs[:2], inputs[2:]), "Autograd", with_keyset=True)
_library.impl(conv_dw, lambda keys, *inputs: _conv_dw_recorded(keys, inputs[:2], inputs[2:]), "Autograd", with_keyset=True)


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
