"""In a process of a GPU run on the machine of driver.py: what else of torch.cuda timing needs, and kernels with results.

A kernel goes through its own host code and the stand-in for the driver, whose line of the log is held against what the problem
implies. Then the reference's result is put where the kernel was told to write, so that what follows finds a kernel that works.
"""

from __future__ import annotations

import ctypes
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support import gpu_tensors  # isort: skip  (before torch, which it gives GPUs)
import torch

from tvm_orient.evaluate import reference
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import kernel
from tvm_orient.runtime.dlpack import DLTensorView
from tvm_orient.tuning import runner

_LOG = Path(os.environ["STAND_IN_LOG"])
_L2_BYTES = 1 << 19  # small: whatever is larger than it must be made
_POINTER, _INT = 8, 4  # bytes of a kernel's argument
_KINDS = {2: {16: torch.float16, 32: torch.float32, 64: torch.float64}, 4: {16: torch.bfloat16}}  # by DLPack's kind of number and bits
_SPENT = Path(os.environ["REHEARSAL_SPENT"]) / f"{os.getpid()}"  # is told the seconds in what a GPU would do
_results: dict[Any, torch.Tensor] = {}


class _Event:
    """torch.cuda.Event by the host's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self, stream: object = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing ever waits."""

    def elapsed_time(self, later: _Event) -> float:
        """Milliseconds."""
        return 1e3 * (later.at - self.at)


class _Generator(torch.Generator):
    """Random numbers for a GPU, which the host makes."""

    def __new__(cls, device: object = "cpu") -> _Generator:
        return super().__new__(cls, "cpu")


def _host_of(argument: Any) -> torch.Tensor | None:
    """The memory of a kernel's argument as a tensor of the host's; None for a number."""
    if isinstance(argument, torch.Tensor):
        return gpu_tensors.host(argument)
    if not isinstance(argument, ctypes.c_void_p):
        return None
    view = DLTensorView.from_address(argument.value or 0)
    shape, dtype = [view.shape[axis] for axis in range(view.rank)], _KINDS[view.code][view.bits]
    size = dtype.itemsize
    for extent in shape:
        size *= extent
    memory = (ctypes.c_char * size).from_address(view.data)
    return torch.frombuffer(memory, dtype=dtype).view(shape)


class Rehearsed:
    """A kernel's function: launched as it is, held against what its problem implies, and given the reference's result."""

    def __init__(self, function: Any, spec: ConvSpec, generic: bool = False) -> None:
        self.function, self.spec, self.generic = function, spec, generic

    def __call__(self, *arguments: Any) -> None:
        start = _LOG.stat().st_size if _LOG.exists() else 0
        self.function(*arguments)
        with _LOG.open() as log:
            log.seek(start)
            launches = [event for line in log if (event := json.loads(line))["what"] == "launch"]
        arrays = [array for argument in arguments if (array := _host_of(argument)) is not None]
        self._check(launches, arrays)
        begin = time.perf_counter()
        self._fill(arrays)
        gpu_tensors.spent[0] += time.perf_counter() - begin
        _SPENT.write_text(str(gpu_tensors.spent[0]))

    def _check(self, launches: list[dict[str, Any]], arrays: list[torch.Tensor]) -> None:
        batch, places = arrays[0].shape[0], {array.data_ptr() for array in arrays if array.numel()}
        told = [pair for event in launches for pair in event["arguments"]]
        pointers = {value for size, value in told if size == _POINTER}
        numbers = {value for size, value in told if size == _INT}
        wanted = 1 + (self.spec.op == "conv_dw")
        if len(launches) != wanted or any(event["answer"] for event in launches):
            raise RuntimeError(f"{self.spec} must be launched {wanted} times, got {launches}")
        if pointers != places:
            raise RuntimeError(f"{self.spec} must be told {sorted(places)}, got {sorted(pointers)}")
        # the generic kernel is told the problem's sizes too, and N by the number of its blocks alone
        if {size for size, _ in told} - {_POINTER, _INT} or (numbers != {batch} and not self.generic):
            raise RuntimeError(f"{self.spec} must be told N = {batch}, got {told}")

    def _fill(self, arrays: list[torch.Tensor]) -> None:
        last = self.spec.layout == "nhwc"
        first, second, *rest, out = (array.permute(0, 3, 1, 2) if last and array.dim() == 4 else array for array in arrays)
        operands = (first, second, *rest[: int(self.spec.bias)])
        key = (self.spec, *((t.data_ptr(), tuple(t.shape), *t.flatten()[:4].tolist()) for t in operands))
        if key not in _results:
            if len(_results) > 8:  # a few sets of operands in turn
                _results.clear()
            _results[key] = reference.run(self.spec, *operands)
        out.copy_(_results[key])


def _made(self: kernel.Kernel, *given: Any, make: Callable[..., None] = kernel.Kernel.__init__, **named: Any) -> None:
    make(self, *given, **named)
    self.function = Rehearsed(self.function, self.spec, self.generic)


def _function(request: dict[str, Any], load: Callable[..., Any] = runner._function) -> Any:
    return Rehearsed(load(request), ConvSpec.from_key(request["spec"]))


torch.Generator = _Generator
torch.cuda.Event = _Event
torch.cuda._sleep = lambda cycles: None
torch.cuda.synchronize = lambda index=None: None
torch.cuda.get_device_properties = lambda index: SimpleNamespace(L2_cache_size=_L2_BYTES, uuid="0", name="NVIDIA H200")
torch.cuda.get_device_name = lambda index=0: "NVIDIA H200"
kernel.Kernel.__init__ = _made
runner._function = _function
