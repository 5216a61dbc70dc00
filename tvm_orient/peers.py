"""What PyTorch alone offers for the same function: the peers that a benchmark has to beat, each as fast as we know how.

Every peer computes exactly what `reference.run` computes, from the same operands in the same order. Weights are operands,
so a peer that needs them in another form (a dense kernel) makes it in each call, as a training step would.
"""

from __future__ import annotations

import contextlib
import dataclasses
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import published
from .spec import ConvSpec
from .taps import Offset, Taps

Call = Callable[..., Tensor]
Box = tuple[int, int, int, int]  # least and greatest dh, least and greatest dw; always around (0, 0)
Line = tuple[int, int, tuple[tuple[Offset, tuple[int, ...]], ...]]  # first channel, stop channel, offsets with the taps there


@dataclass(frozen=True)
class Peer:
    """One way to compute a spec in PyTorch.

    applies(spec): None, or the reason why this peer cannot compute it. make(spec, device): a function of the operands of
    `reference.run`; device is a torch.device or its name. memory_format: the form of 4-d operands that it is fast on; it
    converts others inside the call. Enter `settings()` around every call that is timed or checked.
    """

    name: str
    describe: str
    applies: Callable[[ConvSpec], str | None]
    make: Callable[[ConvSpec, torch.device | str], Call]
    memory_format: torch.memory_format = torch.contiguous_format


def settings() -> AbstractContextManager[None]:
    """The cuDNN settings that are fair to the peers: true float32 (no TF32), and cuDNN picks its algorithm by timing."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False)


# ---- geometry -----------------------------------------------------------------------------------


def _lines(spec: ConvSpec) -> tuple[list[Line], Box]:
    """Per group that has channels: its distinct offsets that reach the plane, with their taps; and the box around them all.

    Circular offsets are brought to the nearest image of the plane.
    """
    lines, reached = [], [(0, 0)]
    for (lo, hi), line in zip(spec.taps.channel_ranges(spec.channels), spec.taps.table, strict=True):
        if lo == hi:
            continue
        places: dict[Offset, tuple[int, ...]] = {}
        for s, offset in enumerate(line):
            offset = _nearest(offset, spec)
            if _reaches(offset, spec):
                places[offset] = (*places.get(offset, ()), s)
        lines.append((lo, hi, tuple(places.items())))
        reached += places
    rows, columns = zip(*reached, strict=True)
    return lines, (min(rows), max(rows), min(columns), max(columns))


def _nearest(offset: Offset, spec: ConvSpec) -> Offset:
    if spec.padding_mode == "zeros":
        return offset
    (dh, dw), half_h, half_w = offset, spec.height // 2, spec.width // 2
    return (dh + half_h) % spec.height - half_h, (dw + half_w) % spec.width - half_w


def _reaches(offset: Offset, spec: ConvSpec) -> bool:
    axes = zip(offset, (spec.height, spec.width), spec.stride, strict=True)
    return spec.padding_mode == "circular" or all(d < size and -(d // step) < -(-size // step) for d, size, step in axes)


def _around(box: Box) -> tuple[int, int, int, int]:
    """F.pad's argument that gives every offset of the box a pixel."""
    return -box[2], box[3], -box[0], box[1]


def _pad(x: Tensor, box: Box, spec: ConvSpec) -> Tensor:
    return F.pad(x, _around(box), mode="constant" if spec.padding_mode == "zeros" else "circular")


def _joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def _as_conv(spec: ConvSpec) -> ConvSpec:
    """With stride 1, conv_dx is conv of the negated taps on dy."""
    return spec if spec.op != "conv_dx" else dataclasses.replace(spec, op="conv", taps=spec.taps.negated)


def _always(spec: ConvSpec) -> str | None:
    return None


def _compiled(function: Call) -> Call:
    # a code object of its own: torch.compile counts recompilations by code object, and refuses the ninth spec
    own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    return torch.compile(own, fullgraph=True, dynamic=False)


# ---- compiled gather: angles are data -----------------------------------------------------------


def _make_gather(spec: ConvSpec, device: torch.device | str) -> Call:
    counts = [hi - lo for lo, hi in spec.taps.channel_ranges(spec.channels)]
    table = torch.from_numpy(np.repeat(spec.taps.offsets, counts, axis=0)).to(device)  # (C, K, 2)
    channel = torch.arange(spec.channels, device=device).view(-1, 1, 1)

    def taken(source: Tensor, s: int) -> Tensor:
        h, h_there = _sources(table[:, s, 0].view(-1, 1, 1), spec, 0)
        v, v_there = _sources(table[:, s, 1].view(-1, 1, 1), spec, 1)
        return torch.where(h_there & v_there, source[:, channel, h, v], 0)

    def weighted(source: Tensor, w: Tensor) -> Tensor:
        total = taken(source, 0) * w[:, 0].view(-1, 1, 1)
        for s in range(1, spec.kernel_size):
            total = total + taken(source, s) * w[:, s].view(-1, 1, 1)
        return total

    def correlated(x: Tensor, dy: Tensor) -> Tensor:
        return torch.stack([(taken(x, s) * dy).sum((2, 3)) for s in range(spec.kernel_size)], 2).sum(0)

    return _compiled(correlated if spec.op == "conv_dw" else weighted)


def _sources(offset: Tensor, spec: ConvSpec, axis: int) -> tuple[Tensor, Tensor]:
    """Along one axis (0 rows, 1 columns): the pixel that each output reads, and whether there is one."""
    size, step, back = (spec.height, spec.width)[axis], spec.stride[axis], spec.op == "conv_dx"
    shape = (1, -1, 1) if axis == 0 else (1, 1, -1)
    count = size if back else -(-size // step)
    place = torch.arange(count, device=offset.device, dtype=torch.int32).view(shape)
    pixel = place - offset if back else place * step + offset
    if spec.padding_mode == "circular":
        pixel = pixel.remainder(size)
    there = (pixel >= 0) & (pixel < size)
    pixel = pixel.clamp(0, size - 1)
    return (pixel // step, there & (pixel % step == 0)) if back else (pixel, there)


# ---- compiled shift-add: angles are constants ---------------------------------------------------


def _shift_applies(spec: ConvSpec) -> str | None:
    if spec.op == "conv_dx" and spec.stride != (1, 1):
        return "with a stride, a tap of conv_dx reaches only some rows and columns, so it is no shift of dy"
    return None


def _make_shift(spec: ConvSpec, device: torch.device | str, padding_inside: bool) -> Call:
    spec = _as_conv(spec)
    lines, box = _lines(spec)
    (step_h, step_w), (rows, columns) = spec.stride, (spec.out_height, spec.out_width)
    taps = spec.kernel_size

    def shifted(padded: Tensor, lo: int, hi: int, offset: Offset) -> Tensor:
        top, left = offset[0] - box[0], offset[1] - box[2]
        return padded[:, lo:hi, top : top + (rows - 1) * step_h + 1 : step_h, left : left + (columns - 1) * step_w + 1 : step_w]

    def weighted(padded: Tensor, w: Tensor) -> Tensor:
        parts = []
        for lo, hi, places in lines:
            total = padded.new_zeros(padded.shape[0], hi - lo, rows, columns)
            for offset, colliding in places:
                weight = sum([w[lo:hi, s] for s in colliding[1:]], w[lo:hi, colliding[0]])
                total = total + shifted(padded, lo, hi, offset) * weight.view(-1, 1, 1)
            parts.append(total)
        return _joined(parts, 1)

    def correlated(padded: Tensor, dy: Tensor) -> Tensor:
        parts = []
        for lo, hi, places in lines:
            sums = [dy.new_zeros(dy.shape[0], hi - lo)] * taps
            for offset, colliding in places:
                value = (shifted(padded, lo, hi, offset) * dy[:, lo:hi]).sum((2, 3))
                for s in colliding:
                    sums[s] = value
            parts.append(torch.stack(sums, 2).sum(0))
        return _joined(parts, 0)

    inner = correlated if spec.op == "conv_dw" else weighted
    if padding_inside:
        return _compiled(lambda source, other: inner(_pad(source, box, spec), other))
    compiled = _compiled(inner)
    return lambda source, other: compiled(_pad(source, box, spec), other)


# ---- dense kernels: ATen, oneDNN and cuDNN ------------------------------------------------------


def _dense(spec: ConvSpec, box: Box, dilation: tuple[int, int] = (1, 1)) -> Call:
    """PyTorch's depthwise convolution with a kernel (C, 1, kh, kw) that covers the box, or its gradient that spec.op names.

    conv and conv_dx take the first operand and the kernel; conv_dw takes x and dy and gives the kernel's gradient.
    """
    if spec.op == "conv_dx" and spec.stride == (1, 1):
        mirrored = _dense(dataclasses.replace(spec, op="conv"), (-box[1], -box[0], -box[3], -box[2]), dilation)
        return lambda dy, kernel: mirrored(dy, kernel.flip((2, 3)))
    in_call = spec.padding_mode == "zeros" and (box[0], box[2]) == (-box[1], -box[3])  # F.conv2d pads both sides alike
    padding = (box[1], box[3]) if in_call else (0, 0)
    extent = (box[1] - box[0] + 1, box[3] - box[2] + 1)
    size = ((extent[0] - 1) // dilation[0] + 1, (extent[1] - 1) // dilation[1] + 1)
    padded = (spec.height, spec.width) if in_call else (spec.height + extent[0] - 1, spec.width + extent[1] - 1)
    quiet = _without_onednn if extent[0] > spec.height or extent[1] > spec.width else contextlib.nullcontext

    def backward(dy: Tensor, x: Tensor, kernel: Tensor, mask: list[bool]) -> Tensor:
        with quiet():
            results = torch.ops.aten.convolution_backward(
                dy, x, kernel, None, spec.stride, padding, dilation, False, (0, 0), spec.channels, mask
            )  # fmt: skip
        gradient: Tensor = results[mask.index(True)]
        return gradient

    def conv(x: Tensor, kernel: Tensor) -> Tensor:
        with quiet():
            return F.conv2d(x if in_call else _pad(x, box, spec), kernel, None, spec.stride, padding, dilation, spec.channels)

    def conv_dx(dy: Tensor, kernel: Tensor) -> Tensor:
        dx = backward(dy, dy.new_empty(dy.shape[0], spec.channels, *padded), kernel, [True, False, False])
        return dx if in_call else F.pad(dx, [-p for p in _around(box)])

    def conv_dw(x: Tensor, dy: Tensor) -> Tensor:
        return backward(dy, x if in_call else _pad(x, box, spec), x.new_empty(spec.channels, 1, *size), [False, True, False])

    return {"conv": conv, "conv_dx": conv_dx, "conv_dw": conv_dw}[spec.op]


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    # oneDNN crashes in the backward of a depthwise kernel that is larger than the plane (torch 2.14, AVX512)
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def _dense_applies(spec: ConvSpec) -> str | None:
    if spec.op == "conv_dx" and spec.stride != (1, 1) and spec.padding_mode == "circular":
        return "with a stride, conv_dx under circular padding is no convolution call of PyTorch"
    return None


def _make_raster(spec: ConvSpec, device: torch.device | str) -> Call:
    lines, box = _lines(spec)
    height, width = box[1] - box[0] + 1, box[3] - box[2] + 1
    cell = np.full((spec.channels, spec.kernel_size), height * width)  # a spare cell for taps that never reach the plane
    for lo, hi, places in lines:
        for (dh, dw), colliding in places:
            cell[lo:hi, list(colliding)] = (dh - box[0]) * width + dw - box[2]
    spare = int(cell.max() == height * width)
    index, call = torch.from_numpy(cell).to(device), _dense(spec, box)

    def weighted(source: Tensor, w: Tensor) -> Tensor:
        kernel = w.new_zeros(spec.channels, height * width + spare).scatter_add_(1, index, w)  # add: taps collide
        return call(source, kernel[:, : height * width].reshape(spec.channels, 1, height, width))

    def correlated(x: Tensor, dy: Tensor) -> Tensor:
        gradient = call(x, dy).reshape(spec.channels, height * width)
        return (F.pad(gradient, (0, 1)) if spare else gradient).gather(1, index)

    return correlated if spec.op == "conv_dw" else weighted


def _grouped_applies(spec: ConvSpec) -> str | None:
    return "all channels have the same taps: this is the single raster" if len(spec.parts()) == 1 else _dense_applies(spec)


def _make_grouped(spec: ConvSpec, device: torch.device | str) -> Call:
    parts = [(lo, hi, _make_raster(dataclasses.replace(part, channels=hi - lo), device)) for lo, hi, part in spec.parts()]
    if spec.op == "conv_dw":
        return lambda x, dy: torch.cat([call(x[:, lo:hi], dy[:, lo:hi]) for lo, hi, call in parts], 0)
    return lambda source, w: torch.cat([call(source[:, lo:hi], w[lo:hi]) for lo, hi, call in parts], 1)


def _horizontal_step(taps: Taps) -> int | None:
    """The dilation of a centred horizontal line that all groups share; None where the taps are something else."""
    size, half = taps.kernel_size, taps.kernel_size // 2
    step = taps.table[0][half + 1][1] if half + 1 < size else 1
    line = tuple((0, step * (s - half)) for s in range(size))
    return step if size % 2 == 1 and step >= 1 and all(table == line for table in taps.table) else None


def _native_applies(spec: ConvSpec) -> str | None:
    step = _horizontal_step(spec.taps)
    if step is None:
        return "a native (1, K) convolution is another function unless every tap line is horizontal (theta = 0)"
    if spec.padding_mode == "circular" and step * (spec.kernel_size // 2) > spec.width:
        return "PyTorch's circular padding reaches one plane width at most"
    return _dense_applies(spec)


def _make_native(spec: ConvSpec, device: torch.device | str, memory_format: torch.memory_format) -> Call:
    step = _horizontal_step(spec.taps) or 1
    reach = step * (spec.kernel_size // 2)
    call = _dense(spec, (0, 0, -reach, reach), (1, step))
    if spec.op == "conv_dw":
        return lambda x, dy: call(x.contiguous(memory_format=memory_format), dy.contiguous(memory_format=memory_format)).reshape(spec.channels, -1)
    return lambda source, w: call(source.contiguous(memory_format=memory_format), w.view(spec.channels, 1, 1, -1))


def _cudnn_applies(spec: ConvSpec) -> str | None:
    if not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
        return "this build of torch has no cuDNN"
    if spec.op == "conv_dw" or (spec.op == "conv_dx" and spec.stride != (1, 1)):
        return "PyTorch calls cuDNN by name for a convolution only, not for its gradients"
    return _native_applies(spec)


def _make_cudnn(spec: ConvSpec, device: torch.device | str) -> Call:
    """Forced to cuDNN: on NCHW PyTorch would take its own kernel."""
    step, back = _horizontal_step(spec.taps) or 1, spec.op == "conv_dx"
    reach = step * (spec.kernel_size // 2)
    box, inside = (0, 0, -reach, reach), spec.padding_mode == "zeros"

    def call(source: Tensor, w: Tensor) -> Tensor:
        kernel = (w.flip(1) if back else w).view(spec.channels, 1, 1, -1)
        padded, padding = (source, (0, reach)) if inside else (_pad(source, box, spec), (0, 0))
        result: Tensor = torch.ops.aten.cudnn_convolution(padded, kernel, padding, spec.stride, (1, step), spec.channels, True, False, False)
        return result

    return call


# ---- floors: moving the bytes -------------------------------------------------------------------


def _make_copy(spec: ConvSpec, device: torch.device | str) -> Call:
    """Copies half of what x and y hold together, which reads and writes as many bytes as conv or conv_dx must."""
    held: dict[int, tuple[Tensor, Tensor]] = {}

    def copy(source: Tensor, w: Tensor) -> Tensor:
        count = _elements(spec, source.shape[0]) // 2
        if count not in held:
            held[count] = source.new_zeros(count), source.new_zeros(count)
        spare, target = held[count]
        return target.copy_(source.reshape(-1)[:count] if source.numel() >= count else spare)

    return copy


def _make_dot(spec: ConvSpec, device: torch.device | str) -> Call:
    """One dot product that reads as many elements as x and dy hold together."""
    held: dict[int, Tensor] = {}

    def dot(x: Tensor, dy: Tensor) -> Tensor:
        count = _elements(spec, x.shape[0]) // 2
        if dy.numel() == count:
            return torch.dot(x.reshape(-1), dy.reshape(-1))
        return torch.dot(x.reshape(-1)[:count], held.setdefault(count, x.new_zeros(count)))

    return dot


def _elements(spec: ConvSpec, batch: int) -> int:
    return batch * spec.channels * (spec.height * spec.width + spec.out_height * spec.out_width)


def _only(ops: Sequence[str]) -> Callable[[ConvSpec], str | None]:
    return lambda spec: None if spec.op in ops else f"the floor of {' and '.join(ops)}"


def _bound(make: Callable[..., Call], *more: Any) -> Callable[[ConvSpec, torch.device | str], Call]:
    return lambda spec, device: make(spec, device, *more)


FLOORS: tuple[Peer, ...] = (
    Peer("copy", "memory copy of as many bytes: y.copy_(x)", _only(("conv", "conv_dx")), _make_copy),
    Peer("dot", "one dot product over as many bytes: torch.dot(x, dy)", _only(("conv_dw",)), _make_dot),
)
PEERS: tuple[Peer, ...] = (
    Peer("compiled_gather", "torch.compile of one gather a tap, offsets as data, one kernel for all angles", _always, _make_gather),
    Peer("compiled_shift", "torch.compile of shifted adds, constant offsets, padding inside the kernel", _shift_applies, _bound(_make_shift, True)),
    Peer("compiled_shift_padded", "the same on a padded copy of the input, so that no load needs a mask", _shift_applies, _bound(_make_shift, False)),
    Peer("grouped_raster", "F.conv2d on the taps drawn into a dense kernel, one call an angle", _grouped_applies, _make_grouped),
    Peer("raster", "F.conv2d on the taps drawn into dense kernels, one call", _dense_applies, _make_raster),
    Peer("native", "F.conv2d with a (1, K) kernel, NCHW", _native_applies, _bound(_make_native, torch.contiguous_format)),
    Peer("native_channels_last", "the same on channels_last", _native_applies, _bound(_make_native, torch.channels_last), torch.channels_last),
    Peer("native_cudnn", "the same on NCHW, by cuDNN whether PyTorch would choose it or not", _cudnn_applies, _make_cudnn),
    Peer(published.NAME, "the published kernel, compiled for each size, where it is installed", published.applies, published.make),
)
