"""The public functions: oriented and free-tap depthwise convolution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from . import ops
from .errors import InvalidArgument
from .ops import calls, checks, functorch
from .problem import limits
from .problem.line_offsets import Anchor
from .problem.spec import ConvSpec
from .problem.taps import Taps
from .runtime import kernel, loader, progress, provisional, serving
from .runtime.makings import Making

_DENSE = torch.strided
_TENSOR: Any = torch.Tensor  # Any, since what is annotated as a tensor may be none
_RUN_ON = ("cpu", "cuda")  # devices whose implementation checks its operands itself


def oriented_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    theta: float | Sequence[float] | torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    dilation: int = 1,
    padding_mode: str = "zeros",
    anchor: Anchor = "center",
    residual: bool = False,
    activation: str | None = None,
) -> torch.Tensor:
    """Convolves each channel with a 1D kernel that lies along an angle, by the rule of the published kernels (Kirchmeyer & Deng, ICCV 2023, arXiv 2309.15812).

    With k = dilation * (s - K//2), and x~ for x padded without bound (`Taps.oriented` has the arithmetic)::

        dh = trunc(-sin(theta) * k)        dw = trunc(cos(theta) * k)
        y[n,c,p,q] = bias[c] + sum_s weight[c,s] * x~[n, c, p*stride + dh, q*stride + dw]

    Args:
        x: (N, C, H, W) or (C, H, W), float32, float16, bfloat16 or float64. Sums are kept in float32 (float64 for float64). Inside an autocast region
            operands are cast to its dtype, but for float64.
        weight: (C, K) or (C, 1, 1, K), dtype and device of x; K odd unless anchor is "start".
        theta: radians, counter-clockwise with y up: a float, or floats (G,), (C,) or (C, 1). With G angles channel c takes angle
            (G*(c+1) - 1) // C. Whole numbers other than 0 are refused, and beyond 2 pi there is a UserWarning: `tvm_orient.from_degrees`
            makes radians of degrees. Under torch.compile theta must be numbers, not a tensor. It has no gradient: a tensor that asks for one is refused.
        bias: (C,), dtype and device of x, or None.
        stride: whole number >= 1, or (vertical, horizontal).
        dilation: whole number >= 1; multiplies k before truncation.
        padding_mode: "zeros" or "circular".
        anchor: "center" (k = s - K//2) or "start" (k = s).
        residual: add x (its pixels at multiples of the stride) to the result, as if the tap at k = 0 weighed one more.
        activation: None, "relu", "silu" or "gelu" (the exact one, by erf), applied last. Bias and activation are part of the kernel: the
            sums pass through them before they are rounded and stored. The gradient computes what it needs of them again.

    Returns:
        (N, C, ceil(H/stride), ceil(W/stride)), without N where x has none, in the dtype of x (of the autocast region inside one) and in its memory format,
        contiguous or channels_last.

    Raises:
        InvalidArgument: a rule above is broken.
        Unsupported: a tensor has 2**31 elements or more, or TVM_ORIENT_LOOKUP forbids untuned kernels and there is no record.
        BuildFailed: the compiler refused the kernel.
        EnvironmentProblem: a kernel must be compiled and cannot be: no compiler, TVM_ORIENT_BUILD=0, or a CUDA graph is being captured.
    """
    if not (isinstance(x, _TENSOR) and isinstance(weight, _TENSOR)):
        named: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding_mode": padding_mode, "anchor": anchor}
        return _recorded(oriented_conv2d, x, weight, _plain(theta), bias, **named, residual=residual, activation=activation)
    matrix = checks.weight_matrix(weight)
    if x.is_nested or x.dim() not in (3, 4):
        _refuse_image(x)
    channels = x.shape[-3]
    key = (_compiled_line_key if torch.compiler.is_compiling() else _line_key)(theta, matrix.shape[1], dilation, anchor, channels)
    if key is None:
        options: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding_mode": padding_mode, "anchor": anchor}
        return _uncompiled(oriented_conv2d, x, weight, theta, bias, **options, residual=residual, activation=activation)
    if not residual:
        return _apply(x, matrix, key, bias, stride, padding_mode, activation)
    return with_residual(x, matrix, key, bias, stride, padding_mode, matrix.shape[1] // 2 if anchor == "center" else 0, activation)


def tap_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    taps: Taps,
    bias: torch.Tensor | None = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding_mode: str = "zeros",
    activation: str | None = None,
) -> torch.Tensor:
    """Convolves each channel with a kernel whose taps lie at any offsets in whole pixels.

    With (dh, dw) = taps.offsets[g, s] for channel c of group g, and x~ for x padded without bound::

        y[n,c,p,q] = bias[c] + sum_s weight[c,s] * x~[n, c, p*stride + dh, q*stride + dw]

    Args:
        x, bias, stride, padding_mode, activation: as `oriented_conv2d`.
        weight: (C, K) or (C, 1, 1, K) with K = taps.kernel_size, even or odd.
        taps: offsets in pixels of x, for one group of channels or several.

    Returns:
        (N, C, ceil(H/stride), ceil(W/stride)), as `oriented_conv2d`.

    Raises:
        InvalidArgument: taps is no Taps, or an operand breaks a rule.
        Unsupported, BuildFailed, EnvironmentProblem: as `oriented_conv2d`.
    """
    if not isinstance(taps, Taps):
        raise InvalidArgument(f"taps must be a Taps, got {type(taps).__name__}: make one with Taps.oriented or Taps.from_offsets")
    return keyed_conv2d(x, weight, taps.key, bias, stride, padding_mode, activation)


def keyed_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    key: str,
    bias: torch.Tensor | None,
    stride: int | tuple[int, int],
    padding_mode: str,
    activation: str | None = None,
) -> torch.Tensor:
    """Computes `tap_conv2d` for the taps of a key, which a graph of torch.fx can hold where it cannot hold a Taps."""
    if not (isinstance(x, _TENSOR) and isinstance(weight, _TENSOR)):
        return _recorded(keyed_conv2d, x, weight, key, bias, stride, padding_mode, activation)
    return _apply(x, checks.weight_matrix(weight), key, bias, stride, padding_mode, activation)


def _stands_in(given: Any) -> bool:
    return hasattr(type(given), "__torch_function__")


def _plain(theta: Any) -> Any:
    """Returns angles as a graph can hold them: numpy's numbers become Python's own."""
    if isinstance(theta, list | tuple):
        return [_plain(angle) for angle in theta]
    return theta.tolist() if isinstance(theta, np.ndarray | np.generic) else theta


def _recorded(function: Callable[..., torch.Tensor], x: Any, weight: Any, *rest: Any, **options: Any) -> Any:
    """Hands a call whose operands are not all tensors to whoever stands in for them, as torch.fx does.

    Raises:
        InvalidArgument: nobody stands in for an operand that is no tensor.
    """
    standing_in = [one for one in (x, weight) if _stands_in(one)]
    for one, name in ((x, "x"), (weight, "weight")):
        if not _stands_in(one):
            checks.tensor(one, name)
    return torch.overrides.handle_torch_function(function, standing_in, x, weight, *rest, **options)


def with_residual(
    x: torch.Tensor,
    weight: torch.Tensor,
    key: str,
    bias: torch.Tensor | None,
    stride: int | tuple[int, int],
    padding_mode: str,
    centre: int,
    activation: str | None = None,
) -> torch.Tensor:
    """Computes activation(tap_conv2d(x) + x), for the taps of a key whose tap `centre` has offset (0, 0).

    One is added to that tap's weight where the dtype makes it exact enough; otherwise x is added to the result. Arguments and errors are those of
    `tap_conv2d`; x is taken at multiples of the stride.
    """
    if not (isinstance(x, _TENSOR) and isinstance(weight, _TENSOR)):
        return _recorded(with_residual, x, weight, key, bias, stride, padding_mode, centre, activation)
    matrix = checks.weight_matrix(weight)
    if matrix.dtype.itemsize >= 4 and not _autocast(x.device.type, x):
        one = (torch.arange(matrix.shape[1], device=matrix.device) == centre).to(matrix.dtype)
        return _apply(x, matrix + one, key, bias, stride, padding_mode, activation)
    name = checks.activation_name(activation)
    y = _apply(x, matrix, key, bias, stride, padding_mode, None)
    down, across = checks.options(stride, padding_mode)
    return kernel.activate(name, y + x[..., ::down, ::across].to(y.dtype))


def _refuse_image(x: torch.Tensor) -> NoReturn:
    checks.tensor(x, "x")
    raise InvalidArgument(f"x must have shape (N, C, H, W) or (C, H, W), got {tuple(x.shape)}")


def _compiled_line_key(theta: Any, kernel_size: int, dilation: int, anchor: Anchor, channels: int) -> str | None:
    """Returns the key of oriented taps in a graph; None where theta is or holds tensors."""
    from .ops import compiling  # loads Dynamo, which is loaded by now

    return compiling.line_key(theta, kernel_size, dilation, anchor, channels)


def _uncompiled(function: Callable[..., torch.Tensor], *given: Any, **options: Any) -> torch.Tensor:
    from .ops import compiling  # as above

    return compiling.uncompiled(function, *given, **options)


def _line_key(theta: Any, kernel_size: int, dilation: int, anchor: Anchor, channels: int) -> str:
    if type(kernel_size) is not int or type(channels) is not int:  # torch.jit.trace has tensors in their place, make_fx symbols
        kernel_size, channels = int(kernel_size), int(channels)
    given = tuple(theta) if isinstance(theta, list | tuple) else (theta,)
    if not all(type(angle) is float for angle in given):  # what may change in place, or is no angle at all
        given = checks.angles(theta, channels)
    return _known_line(given, kernel_size, dilation, anchor, channels)


_known_line = functools.lru_cache(maxsize=1024)(checks.line_key)


def _autocast(kind: str, x: torch.Tensor) -> bool:
    """Says whether operands beside x, on a device of that kind, are cast to the dtype of an autocast region: float64 is left alone, as PyTorch leaves it."""
    return kind in _RUN_ON and torch.is_autocast_enabled(kind) and x.dtype != torch.float64


def _apply(x: Any, weight: Any, key: str, bias: torch.Tensor | None, stride: Any, padding_mode: str, activation: str | None) -> torch.Tensor:
    if x.dim() == 3:
        return _apply(x.unsqueeze(0), weight, key, bias, stride, padding_mode, activation).squeeze(0)
    pair, name = checks.options(stride, padding_mode), checks.activation_name(activation)
    kind = x.device.type
    if _autocast(kind, x):
        dtype = torch.get_autocast_dtype(kind)
        x, weight, bias = [t.to(dtype) if t is not None and t.is_floating_point() else t for t in (x, weight, bias)]
    as_it_is = False
    if not torch.compiler.is_compiling():  # the operators check their operands; what dispatch would say first is less clear
        if kind not in _RUN_ON or x.device != weight.device or x.layout is not _DENSE or weight.layout is not _DENSE or x.is_quantized:
            checks.conv_operands(x, weight, Taps.from_key(key))
        as_it_is = x.is_contiguous()
        if not as_it_is:  # laying it out may write more than was there: an expanded tensor is a few bytes
            limits.countable(x.numel())
        transforming = functorch.active()
        if bias is not None and (transforming or not isinstance(bias, torch.Tensor) or x.device != bias.device or bias.layout != _DENSE):
            checks.bias_vector(bias, x)
        if transforming:
            y: torch.Tensor = functorch.Conv.apply(x.contiguous(), weight.contiguous(), key, pair, padding_mode)
            return kernel.activate(name, y if bias is None else y + bias.view(1, -1, 1, 1))
    if not as_it_is and calls.layout_of(x) == "nchw":
        x = x.contiguous()
    if bias is None and name == "none":
        return ops.conv(x, weight.contiguous(), key, pair, padding_mode)
    return ops.conv_epilogue(x, weight.contiguous(), bias, name, key, pair, padding_mode)


def warmup(what: Sequence[ConvSpec] | ConvSpec | Callable[..., Any], *inputs: Any, device: str | torch.device = "cpu") -> None:
    """Loads kernels, compiling what is missing on all cores, so that later calls neither compile nor read the disk.

    Call it before capturing a CUDA graph, before timing, and where a model must run on its own kernels from the first step on. In a terminal a bar on
    standard error tells how many kernels are ready.

    Args:
        what: one spec or several, without batch size (a backward pass has specs of its own, of op "conv_dx" and "conv_dw"); or a module or a
            function, which is called with the inputs, forward and, where gradients are enabled, backward: once, and where
            kernels were missing and a GPU is in use once more, on them. Parameters, buffers, their gradients and the random state stay as they are.
        inputs: the arguments of the module or the function; for specs the device may stand here.
        device: where the specs will run: "cpu", "cuda", "cuda:1" or a torch.device.

    Raises:
        InvalidArgument: what is neither made of specs nor callable.
        Unsupported, BuildFailed, EnvironmentProblem: as `oriented_conv2d`.
    """
    specs = [what] if isinstance(what, ConvSpec) else what
    if isinstance(specs, list | tuple) and all(isinstance(spec, ConvSpec) for spec in specs):
        where = loader.device_of(torch.empty(0, device=inputs[0] if inputs else device))
        progress.wait_for([serving.begin(spec, where) for spec in specs if not serving.ready(spec, where)])
        return
    if not callable(what):
        raise InvalidArgument(f"warmup takes a ConvSpec, a list of them, or a function or module with its inputs, got {what!r}")
    begun = _called(what, inputs)
    if not begun:
        return
    progress.wait_for(begun)
    if torch.cuda.is_initialized():  # a driver loads a kernel when it is first launched
        _called(what, inputs)


def _called(what: Callable[..., Any], inputs: Sequence[Any]) -> list[Making]:
    """Calls a function forward and backward, and returns the makings of the kernels that it lacks, which are begun."""
    tensors = [one for one in inputs if isinstance(one, torch.Tensor)]
    places = {one.device for one in tensors if one.device.type == "cuda"}
    with provisional.asking() as begun, torch.random.fork_rng([place.index or 0 for place in places]):
        outputs, leaves = _once(what, inputs), [one for one in tensors if one.requires_grad]
        leaves += [one for one in what.parameters() if one.requires_grad] if isinstance(what, torch.nn.Module) else []
        wanted = [one for one in tree_leaves(outputs) if isinstance(one, torch.Tensor) and one.requires_grad]
        if wanted and leaves:
            torch.autograd.grad(wanted, leaves, [torch.ones_like(one) for one in wanted], allow_unused=True)
    return begun


def _once(what: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    if not isinstance(what, torch.nn.Module):
        return what(*inputs)
    buffers = {name: value.clone() for name, value in what.named_buffers()}  # running statistics change in a call
    return torch.func.functional_call(what, buffers, tuple(inputs))
