"""Kernels: compiled libraries, loaded and called with torch tensors. The one place where torch and tvm-ffi meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ..compiler.parts import ALIGNMENT
from ..kernels import manifest
from ..problem import generic_args, limits
from ..problem.device import Device
from ..problem.spec import ConvSpec, part_shape
from .dlpack import Images, Pair, allocator, strides_of
from .loader import loaded_library
from .refusal import refuse

Call = Callable[..., torch.Tensor]


class Kernel:
    """A loaded kernel of one spec on one device; call it with the operands, get the result.

    Args:
        spec: the problem.
        device: where the operands lie.
        path: the kernel.so.
        generic: path holds the generic kernel, which is told the spec's sizes and offsets in each call.

    Raises:
        EnvironmentProblem: TVM's runtime library is missing, this CPU lacks instructions that the kernel may use, this machine cannot load the kernel,
            or the how.json beside a kernel of conv_dw does not say what workspace it needs.
    """

    def __init__(self, spec: ConvSpec, device: Device, path: Path, *, generic: bool = False) -> None:
        self.spec, self.device, self.path, self.generic = spec, device, path, generic
        self.module, self.function = loaded_library(str(path), device.kind)
        self.tables: tuple[torch.Tensor, ...] = ()
        self.numbers: tuple[int, ...] = ()
        if generic:
            plan = generic_args.generic_args(spec, device.kind, generic_args.vector_lanes(device, spec.sums))
            where = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
            self.tables, self.numbers = tuple(torch.from_numpy(table).to(where) for table in plan.tables), plan.numbers
            bands, taps = plan.workspace
        else:
            bands, taps = _workspace(spec, path)
        self.workspace = part_shape(spec, 1, (bands, taps))[1:]
        self.alignment = ALIGNMENT[device.kind]
        self.sums, self.sums_up = getattr(torch, spec.sums), spec.op == "conv_dw"
        self.last = spec.layout == "nhwc"
        self._empty, self.images = allocator(device), Images(spec, device)
        self.plane = (spec.out_height, spec.out_width) if spec.op == "conv" else (spec.height, spec.width)  # of the result, if it is an image
        self.each = spec.channels * max(spec.height * spec.width, bands * taps)  # elements of one image in the largest tensor

    def __call__(self, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Computes spec.op: (x, w) -> y, with spec.bias (x, w, bias) -> y, (dy, w) -> dx, (x, dy) -> dw.

        Operands have the shapes and the dtype of the spec, and lie on the device. Images are (N, C, H, W) of any strides; the result has spec.layout.

        Raises:
            Unsupported: a tensor has 2**31 elements or more.
        """
        return self.prepared(first, second)(first, second, bias)

    def prepared(self, first: torch.Tensor, second: torch.Tensor) -> Call:
        """Returns the kernel for operands of these shapes and strides: it does what __call__ does, and looks at nothing of its operands but their addresses.

        Raises:
            InvalidArgument: an image for a channels_last kernel has another shape, dtype or device than the kernel's.
            Unsupported: a tensor has 2**31 elements or more.
        """
        n = first.shape[0]
        limits.countable(n * self.each)
        lay_first, lay_second = (not tensor.is_contiguous(memory_format=self._form(tensor)) for tensor in (first, second))
        if self.last:
            self.images.refuse_others(first, second)
        return (self._sums_call if self.sums_up else self._image_call)(n, first.dtype, lay_first, lay_second)

    # the two functions that follow return closures rather than methods: each call pays for every attribute that it looks up

    def _sums_call(self, n: int, dtype: torch.dtype, lay_first: bool, lay_second: bool) -> Call:
        """Returns the call of a kernel of conv_dw on n images: its result is summed over them, in the dtype of sums, and rounded to dtype."""
        alignment, lay, run, tables, numbers, empty = self.alignment, self._laid, self._runner(), self.tables, self.numbers, self._empty
        last, sums_dtype = self.last, self.sums
        result, workspace = (self.spec.channels, self.spec.kernel_size), (n, *self.workspace)
        strides, workspace_strides = strides_of(result), strides_of(workspace)
        spare: dict[None, Pair | None] = {}  # views that no call holds: who finds none makes some, so that threads never share them

        def sums(first: torch.Tensor, second: torch.Tensor, _: None = None) -> torch.Tensor:
            if lay_first or first.data_ptr() % alignment:
                first = lay(first)
            if lay_second or second.data_ptr() % alignment:
                second = lay(second)
            out = empty(result, strides, sums_dtype)
            if not n:
                return out.zero_().to(dtype)
            part = empty(workspace, workspace_strides, sums_dtype)
            if not last:
                run(first, second, *tables, part, out, *numbers)
            else:
                pair = one, one_seen, other, other_seen = spare.pop(None, None) or self.images.pair(n)
                one.data, other.data = first.data_ptr(), second.data_ptr()
                run(one_seen, other_seen, part, out)
                spare[None] = pair
            return out.to(dtype)

        return sums

    def _image_call(self, n: int, dtype: torch.dtype, lay_first: bool, lay_second: bool) -> Call:
        """Returns the call of a kernel of conv or conv_dx on n images, whose result is n images of dtype."""
        alignment, lay, run, tables, numbers, empty = self.alignment, self._laid, self._runner(), self.tables, self.numbers, self._empty
        last, channels, (height, width) = self.last, self.spec.channels, self.plane
        result, area = (n, channels, height, width), height * width
        strides = (area * channels, 1, width * channels, channels) if last else (area * channels, area, width, 1)
        spare: dict[None, Pair | None] = {}  # as in _sums_call

        def image(first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
            source = first.data_ptr()
            if lay_first or source % alignment:
                first = lay(first)
                source = first.data_ptr()
            if lay_second or second.data_ptr() % alignment:
                second = lay(second)
            out = empty(result, strides, dtype)  # no view of what the kernel wrote: autograd treats views apart
            if not n:
                return out
            added = () if bias is None else (lay(bias) if bias.data_ptr() % alignment or not bias.is_contiguous() else bias,)
            if not last:
                run(first, second, *added, *tables, out, *numbers)
            else:
                pair = one, one_seen, other, other_seen = spare.pop(None, None) or self.images.pair(n)
                one.data, other.data = source, out.data_ptr()
                run(one_seen, second, *added, other_seen)
                spare[None] = pair
            return out

        return image

    def _form(self, tensor: torch.Tensor) -> torch.memory_format:
        """Returns the memory format in which the kernel reads an operand."""
        return torch.channels_last if self.last and tensor.dim() == 4 else torch.contiguous_format

    def _laid(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the operand as the kernel reads it: in its format, and aligned for its vector loads."""
        tensor = tensor.contiguous(memory_format=self._form(tensor))
        return tensor if tensor.data_ptr() % self.alignment == 0 else tensor.clone()

    def _runner(self) -> Callable[..., object]:
        """Returns the kernel's function; on CUDA with its device made current, since TVM's host stub sets the device and does not restore it."""
        if self.device.kind == "cpu":
            return self.function  # type: ignore[no-any-return]

        def run(*arguments: torch.Tensor | int) -> None:
            try:
                if torch.cuda.current_device() == self.device.index:
                    self.function(*arguments)
                else:
                    with torch.cuda.device(self.device.index):
                        self.function(*arguments)
            except Exception as problem:
                refuse(problem, self.spec, self.device, self.path)
                raise

        return run


class GenericAdapter:
    """The generic kernel for a spec in channels_last or with an epilogue: the kernel knows neither, so torch adds both."""

    def __init__(self, spec: ConvSpec, device: Device, path: Path) -> None:
        self.spec, self.device, self.path = spec, device, path
        self.kernel = Kernel(dataclasses.replace(spec.plain, layout="nchw"), device, path, generic=True)

    def __call__(self, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Computes what `Kernel` does, on the same operands."""
        out = self.kernel(first, second)
        out = out if bias is None else out.add_(bias.view(-1, 1, 1))
        out = activate(self.spec.activation, out)
        return out.contiguous(memory_format=torch.channels_last) if self.spec.layout == "nhwc" and out.dim() == 4 else out

    def prepared(self, *_: torch.Tensor) -> Call:
        """Returns itself, for operands of any shape: nothing is known before the call."""
        return self


def opened(spec: ConvSpec, device: Device, path: Path, *, generic: bool) -> Kernel | GenericAdapter:
    """Opens the library of a kernel, and returns the kernel in the form that serves a spec.

    Args:
        generic: the library holds the generic kernel.

    Raises:
        EnvironmentProblem: as `Kernel`.
    """
    if generic and (spec.layout != "nchw" or spec != spec.plain):
        return GenericAdapter(spec, device, path)
    return Kernel(spec, device, path, generic=generic)


def activate(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Applies torch's activation of that name (`spec.ACTIVATIONS`) and returns the result; "none" returns the tensor itself."""
    return tensor if name == "none" else getattr(torch.nn.functional, name)(tensor)


def _workspace(spec: ConvSpec, path: Path) -> tuple[int, int]:
    """Returns (bands, taps) of the workspace that a kernel of its own needs, by the manifest beside it.

    Raises:
        manifest.Unreadable: a kernel of conv_dw has none, or one that does not say.
    """
    if spec.op != "conv_dw":
        return 0, 0
    found = manifest.read(path.parent).workspace
    if found is None:
        raise manifest.Unreadable(f"{manifest.HOW} beside a kernel of conv_dw must tell its workspace, got none in {path.parent}: build the kernel again")
    return found
