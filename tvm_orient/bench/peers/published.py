"""The published specialised kernel as a peer, where it is installed: found by the name of its extension, never shipped.

Kirchmeyer and Deng's module `dwoconv1d_specialized_kernel` compiles one extension for each (K, stride, height, width) with
nvcc when it is first asked, and gives fprop(x, w, theta), dgrad(dy, w, theta) and wgrad(dy, x, theta): float32 on CUDA,
weights (C, 1, 1, K), theta (C,) in radians. It checks nothing, so what it cannot compute is refused here first.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import Unsupported
from ...problem.spec import ConvSpec
from ...problem.taps import Taps

NAME = "published_specialized"
MODULE = "dwoconv1d_specialized_kernel"
_DEVICES = ("cuda",)


def installed() -> bool:
    """Returns whether the published extension can be imported; nothing is compiled."""
    try:
        return importlib.util.find_spec(MODULE) is not None
    except (ImportError, ValueError):  # something of that name which is no module
        return False


def angles(taps: Taps) -> tuple[float, ...] | None:
    """Returns one angle in radians for each group, with the same taps; None where they are no centred lines of dilation 1."""
    named = taps.lines
    if named is None or (named.dilation, named.anchor) != (1, "center"):
        return None
    return tuple(math.radians(angle) for angle in named.degrees)


def applies(spec: ConvSpec) -> str | None:
    """Returns None, or why the published kernel cannot compute this spec here."""
    if not installed():
        return f"not installed: there is no module {MODULE}"
    limits = (
        (spec.dtype != "float32", "it computes float32 only"),
        (spec.padding_mode != "zeros", "it pads with zeros only"),
        (spec.kernel_size % 2 == 0, "it takes an odd number of taps only"),
        (spec.stride[0] != spec.stride[1] or spec.stride[0] not in (1, 2, 4), "it takes one stride of 1, 2 or 4 only"),
        (bool(spec.height % spec.stride[0] or spec.width % spec.stride[1]), "it takes planes that the stride divides only"),
        (angles(spec.taps) is None, "it computes centred lines only"),
    )
    return next((reason for broken, reason in limits if broken), None) or _defect(spec)


def _defect(spec: ConvSpec) -> str | None:
    """Returns a size at which it is known to give wrong results, or to fault: that would end every other method's CUDA context."""
    step, taps = spec.stride[0], spec.kernel_size
    staged, written = ((spec.height, spec.width), (spec.out_height, spec.out_width))[:: -1 if spec.op == "conv_dx" else 1]
    threads = min(max(32 * math.ceil(math.sqrt(-(-written[0] * written[1] // 128))), 64), 128)
    if taps > threads:
        return f"known to be wrong at this size: it loads {threads} of the {taps} weights"
    lines = {"conv": 1 if step == 4 else min(32 // min(taps * step, 32), 4), "conv_dx": min(32 // min(taps, 32), 4), "conv_dw": 1 if step == 4 else 8 // step}
    outputs = threads * lines[spec.op]
    reach = -(-outputs // (spec.width * step)) if spec.op == "conv_dx" else -(-outputs * step // spec.out_width)
    tile = min(taps + reach, staged[0]) * staged[1]
    if tile % 4 and (spec.op == "conv_dw" or staged[1] % 4):
        return f"known to be wrong or to fault at this size: its tile of {tile} floats is no whole number of 16-byte vectors"
    return None


def make(spec: ConvSpec, device: torch.device | str) -> Callable[..., Tensor]:
    """Returns a function of the operands of spec.op; compiles the extension of this size first, a minute or so.

    Raises:
        Unsupported: the device is no GPU, or the extension does not build.
    """
    if torch.device(device).type not in _DEVICES:
        raise Unsupported(f"the published kernel runs on {' or '.join(_DEVICES)} only, got {device}")
    size = (spec.kernel_size, spec.stride[0], spec.kernel_size // 2, spec.height, spec.width)
    try:
        module: Any = importlib.import_module(MODULE).get_dwoconv1d_kernel("float", *size)
    except Exception as problem:  # whatever its build raises: nvcc missing, a header that changed
        raise Unsupported(f"the published kernel does not build for {spec}: {type(problem).__name__}: {str(problem)[-200:]}") from problem
    lines = angles(spec.taps) or ()
    ranges = spec.taps.channel_ranges(spec.channels)
    theta = torch.tensor([angle for angle, (lo, hi) in zip(lines, ranges, strict=True) for _ in range(hi - lo)], dtype=torch.float32, device=device)
    shape = (spec.channels, 1, 1, spec.kernel_size)
    if spec.op == "conv":
        return lambda x, w: module.fprop(x, w.view(shape), theta)
    if spec.op == "conv_dx":
        return lambda dy, w: module.dgrad(dy, w.view(shape), theta)
    return lambda x, dy: module.wgrad(dy, x, theta).view(shape[0], shape[3])
