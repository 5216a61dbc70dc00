"""In a process on the machine of driver.py: torch with tensors on a GPU, though it is a CPU build. Import it before torch.

They are true CUDA tensors to torch, in the memory of the host; what torch itself does with them, it does on the CPU. Nothing of tvm_orient,
TVM or tvm-ffi is touched: those see CUDA tensors, torch's current device and its current stream.
"""

from __future__ import annotations

import ctypes
import functools
import time
from typing import Any

ctypes.CDLL("libtorch_gpu.so")  # torch looks once for the hooks in it

import torch  # noqa: E402
from torch.utils import _pytree, dlpack  # noqa: E402

from tvm_orient.runtime.dlpack import DLTensorView  # noqa: E402

spent = [0.0]  # seconds in what a GPU would do
_CODES = {torch.bool: 6, torch.bfloat16: 4}  # DLPack's kinds of numbers; others are integers or plain floats
_runtime = ctypes.CDLL("libcudart.so.13")
_capsule = ctypes.pythonapi.PyCapsule_New
_capsule.restype, _capsule.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)


class _Managed(ctypes.Structure):
    """A DLManagedTensor."""

    _fields_ = (("tensor", DLTensorView), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


def on(tensor: torch.Tensor, index: int = 0) -> torch.Tensor:
    """A tensor on the GPU in the memory of one on the CPU."""
    shape, strides = ((ctypes.c_int64 * tensor.dim())(*numbers) for numbers in (tensor.shape, tensor.stride()))
    code = _CODES.get(tensor.dtype, 2 if tensor.is_floating_point() else 0)
    made = _Managed(DLTensorView(tensor.data_ptr(), 2, index, tensor.dim(), code, 8 * tensor.itemsize, 1, shape, strides, 0), None, None)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object((made, shape, strides, tensor)))  # for good: torch reads them until the process has ended
    return dlpack.from_dlpack(_capsule(ctypes.addressof(made), b"dltensor", None))


def host(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU in the memory of one on the GPU."""
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    memory = (ctypes.c_char * (extent * tensor.itemsize)).from_address(tensor.data_ptr())
    return torch.frombuffer(memory, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride())


def _by_the_host(op: Any, *given: Any, **named: Any) -> Any:
    """Any of torch's own ops on tensors on a GPU, by its kernel for the CPU."""
    device, pairs = named.get("device"), []
    where = device.index if device is not None else None

    def down(value: Any) -> Any:
        nonlocal where
        if not isinstance(value, torch.Tensor):
            return value
        if value.device.type == "cuda":
            where = value.device.index if where is None else where
        pairs.append((host(value) if value.device.type == "cuda" else value, value))
        return pairs[-1][0]

    def up(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        seen = next((seen for lower, seen in pairs if lower is value), None)  # of an op in place, or of one that is told where its result goes
        if seen is None:
            return on(value, where or 0)
        if seen.shape != value.shape:  # that place had no size of its own
            seen.data = on(value, where or 0)
        return seen

    begin = time.perf_counter()
    given, named = _pytree.tree_map(down, (given, named))
    result = _pytree.tree_map(up, op(*given, **(named if device is None else {**named, "device": torch.device("cpu")})))
    spent[0] += time.perf_counter() - begin
    return result


def _current() -> int:
    index = ctypes.c_int()
    _runtime.cudaGetDevice(ctypes.byref(index))
    return index.value


def _exchanged(index: int) -> int:
    before = _current()
    if index >= 0 and _runtime.cudaSetDevice(index):
        raise RuntimeError(f"no GPU {index}")
    return before


_fallbacks = torch.library.Library("_", "IMPL")
_fallbacks.fallback(_by_the_host, "CUDA")
_copies = torch.library.Library("aten", "IMPL")  # torch has one kernel of it for all devices, which then looks for that of CUDA
_copies.impl("copy_", functools.partial(_by_the_host, torch.ops.aten.copy_.default), "CUDA")
# what torch.cuda asks the half of torch that a CPU build lacks
torch.version.cuda = "13.0"
torch.cuda._lazy_init = lambda: None
torch.cuda.is_available = lambda: True
torch.cuda.is_current_stream_capturing = lambda: False
torch.cuda._exchange_device = torch.cuda._maybe_exchange_device = _exchanged
torch._C._cuda_getDevice = _current
