"""Tensors made without torch's dispatch: results, and images as a kernel of channels_last sees them.

Such an image is DLPack's struct, which tvm-ffi takes by its own address: it costs a tenth of a torch view.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable, Sequence

import torch

from ..errors import InvalidArgument
from ..problem.device import Device
from ..problem.spec import ConvSpec

_CODES = {torch.bfloat16: 4}  # DLPack's code of a kind of numbers, where it is not _FLOAT
_FLOAT = 2  # DLPack's code of IEEE floats of any width
_DEVICES = {"cpu": 1, "cuda": 2}  # DLPack's code of a kind of device


class DLTensorView(ctypes.Structure):
    """A DLTensor, DLPack's struct of a tensor: set data, and pass its address to the kernel."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )
    data: int


Pair = tuple[DLTensorView, ctypes.c_void_p, DLTensorView, ctypes.c_void_p]  # two views, each with its address


def strides_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Returns the strides of a compact tensor of this shape, in elements."""
    return tuple(itertools.accumulate(shape[:0:-1], lambda step, size: step * size, initial=1))[::-1]


def allocator(device: Device) -> Callable[[tuple[int, ...], tuple[int, ...], torch.dtype], torch.Tensor]:
    """Returns torch.empty_strided(shape, strides, dtype) for a device; on a CPU in the form that torch's own compiled graphs call, without dispatch."""
    if device.kind == "cpu":
        return getattr(torch._C._dynamo.guards, "_empty_strided_cpu", None) or (lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype))
    return lambda shape, strides, dtype: torch.empty_strided(shape, strides, dtype=dtype, device=f"cuda:{device.index}")


def view(shape: Sequence[int], dtype: torch.dtype, kind: str, index: int) -> tuple[DLTensorView, ctypes.c_void_p]:
    """Returns a compact tensor of this shape on a device, without data yet, and its address."""
    numbers = ctypes.c_int64 * len(shape)
    made = DLTensorView(
        None, _DEVICES[kind], index, len(shape), _CODES.get(dtype, _FLOAT), 8 * dtype.itemsize, 1, numbers(*shape), numbers(*strides_of(shape)), 0
    )
    return made, ctypes.c_void_p(ctypes.addressof(made))


class Images:
    """The two images of a call of a channels_last kernel: both operands of conv_dw, else the first operand and the result."""

    def __init__(self, spec: ConvSpec, device: Device) -> None:
        self._spec, self._device, self._dtype = spec, device, getattr(torch, spec.dtype)
        planes = [(spec.height, spec.width), (spec.out_height, spec.out_width)]
        self._planes = planes[::-1] if spec.op == "conv_dx" else planes

    def refuse_others(self, *operands: torch.Tensor) -> None:
        """Refuses images that the kernel cannot check: it is told an address and nothing else.

        Raises:
            InvalidArgument: an image of another shape or dtype, or on another device.
        """
        n, spec, device = operands[0].shape[0], self._spec, self._device
        for image, plane in zip(operands[: 2 if spec.op == "conv_dw" else 1], self._planes, strict=False):
            shape = (n, spec.channels, *plane)
            if image.shape != shape or image.dtype != self._dtype or image.device.type != device.kind or image.get_device() not in (-1, device.index):
                raise InvalidArgument(
                    f"this kernel takes an image {shape} of {spec.dtype} on {device.slug}, got {tuple(image.shape)} of {image.dtype} on {image.device}"
                )

    def pair(self, n: int) -> Pair:
        """Returns views of both, of n images each, without data yet."""
        one, other = (view((n, *plane, self._spec.channels), self._dtype, self._device.kind, self._device.index) for plane in self._planes)
        return *one, *other
