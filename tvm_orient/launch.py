"""Launch: the one place where torch tensors and tvm-ffi meet."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from . import anysize, cache, paths, pool
from .build import build, explain
from .device import Device, cpu_device, cuda_devices
from .errors import EnvironmentProblem, Unsupported
from .lower import Choice, generic_choices, is_generic
from .spec import DTYPES, ConvSpec
from .tvmkit import check_ffi

_ALIGNMENT = {"cpu": 64, "cuda": 16}  # bytes that generated vector loads count on; TVM itself checks nothing
_LIMIT = 2**31 - 1  # kernels index with 32 bits
_kernels: dict[tuple[ConvSpec, str, int], Kernel] = {}
_lock = threading.Lock()
_runtimes: list[ctypes.CDLL] = []
_log = logging.getLogger(__name__)


class Kernel:
    """A loaded kernel of one spec on one device; call it with the operands, get the result.

    Args:
        path: of its kernel.so.
        generic: path holds the generic kernel, which is told the spec's sizes and offsets in each call.

    Raises:
        EnvironmentProblem: TVM's runtime library is missing.
    """

    def __init__(self, spec: ConvSpec, device: Device, path: Path, *, generic: bool = False) -> None:
        self.spec, self.device, self.path = spec, device, path
        self.module, self.function = _loaded(str(path), device.kind)
        self.tables: tuple[torch.Tensor, ...] = ()
        self.numbers: tuple[int, ...] = ()
        if generic:
            plan = anysize.plan(spec, device.kind, device.vector_bytes // DTYPES[spec.sums])
            where = "cpu" if device.kind == "cpu" else f"cuda:{device.index}"
            self.tables, self.numbers = tuple(torch.from_numpy(table).to(where) for table in plan.tables), plan.numbers
            bands, taps = plan.workspace
        else:
            facts = json.loads((path.parent / cache.HOW).read_text()) if spec.op == "conv_dw" else {}
            bands, taps = _find(facts, "workspace") or (0, 0)
        self.workspace = (spec.channels, bands, taps)
        self.alignment = _ALIGNMENT[device.kind]
        self.sums, self.sums_up = getattr(torch, spec.sums), spec.op == "conv_dw"
        plane = (spec.out_height, spec.out_width) if spec.op == "conv" else (spec.height, spec.width)
        self.result = (spec.channels, spec.kernel_size) if self.sums_up else (spec.channels, *plane)
        self.each = spec.channels * max(spec.height * spec.width, bands * taps)  # elements of one image in the largest tensor

    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """Operands of spec.op, in its shapes and dtype, contiguous and on the device: (x, w) -> y, (dy, w) -> dx or (x, dy) -> dw.

        Raises:
            Unsupported: a tensor has 2**31 elements or more.
        """
        n = first.shape[0]
        out = first.new_empty(self.result, dtype=self.sums) if self.sums_up else first.new_empty((n, *self.result))
        if n == 0:
            return out.zero_().to(first.dtype)
        if n * self.each > _LIMIT:
            raise Unsupported(f"a tensor must have at most {_LIMIT} elements (kernels index with 32 bits), got {n * self.each}: split the batch")
        first, second = self._aligned(first), self._aligned(second)
        if self.sums_up:
            self._run(first, second, *self.tables, first.new_empty((n, *self.workspace), dtype=self.sums), out, *self.numbers)
            return out.to(first.dtype)
        self._run(first, second, *self.tables, out, *self.numbers)
        return out

    def _aligned(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor if tensor.data_ptr() % self.alignment == 0 else tensor.clone()

    def _run(self, *arguments: torch.Tensor | int) -> None:
        if self.device.kind == "cuda" and torch.cuda.current_device() != self.device.index:
            with torch.cuda.device(self.device.index):  # TVM's host stub sets the device and does not restore it
                self.function(*arguments)
        else:
            self.function(*arguments)


@functools.lru_cache(maxsize=4096)
def _loaded(path: str, kind: str) -> tuple[Any, Any]:
    """(module, function) of a kernel library, loaded once: specs share the generic one."""
    import tvm_ffi

    _load_runtime(kind)
    module = tvm_ffi.load_module(path)
    if kind == "cpu":
        pool.adopt(Path(path))
    return module, module.get_function("main")


def _find(facts: Any, name: str) -> Any:
    """A fact of how.json, at the top or one level down."""
    if name in facts:
        return facts[name]
    return next((value[name] for value in facts.values() if isinstance(value, dict) and name in value), None)


def _load_runtime(kind: str) -> None:
    """Make TVM's runtime symbols visible without importing tvm, which costs 3 s."""
    check_ffi()
    if "tvm" in sys.modules or len(_runtimes) > (kind == "cuda"):
        return
    found = importlib.util.find_spec("tvm")
    if found is None or not found.submodule_search_locations:
        raise EnvironmentProblem("running a kernel needs libtvm_runtime.so of apache-tvm, which is not installed: pip install 'tvm-orient[compile]'")
    folder = Path(found.submodule_search_locations[0]) / "lib"
    for name in ["libtvm_runtime.so", "libtvm_runtime_cuda.so"][len(_runtimes) : 1 + (kind == "cuda")]:
        try:
            _runtimes.append(ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL))
        except OSError as problem:
            raise EnvironmentProblem(f"{name} does not load ({problem}): `tvm-orient doctor` says what is missing") from problem


def device_of(tensor: torch.Tensor) -> Device:
    """The device that a tensor lives on.

    Raises:
        Unsupported: neither a CPU nor a CUDA tensor.
    """
    if tensor.device.type == "cpu":
        return cpu_device()
    if tensor.device.type == "cuda":
        return cuda_devices()[tensor.device.index or 0]
    raise Unsupported(f"tensors must be on a CPU or a CUDA device, got {tensor.device}")


def kernel(spec: ConvSpec, device: Device) -> Kernel:
    """The loaded kernel of a spec on a device: from this process, from the cache, or compiled now.

    Raises:
        Unsupported: as `tvm_orient.build.build`.
        BuildFailed: as `tvm_orient.build.build`.
        EnvironmentProblem: as `tvm_orient.build.build`.
    """
    key = (spec, device.slug, device.index)
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                if device.kind == "cuda" and torch.cuda.is_current_stream_capturing():
                    raise EnvironmentProblem(f"{spec} has no loaded kernel and a CUDA graph is being captured: call tvm_orient.warmup first")
                found = _kernels[key] = _serve(spec, device, compiling=paths.building_allowed())
    return found


def load(spec: ConvSpec, device: Device, choices: Sequence[Choice], *, compiling: bool = True) -> Kernel:
    """The kernel that the choices make: from the cache, or compiled now.

    Raises:
        Unsupported: as `tvm_orient.build.build`.
        BuildFailed: as `tvm_orient.build.build`.
        EnvironmentProblem: as `tvm_orient.build.build`.
    """
    return Kernel(spec, device, build(spec, device, choices, compiling=compiling), generic=is_generic(choices))


def _serve(spec: ConvSpec, device: Device, *, compiling: bool) -> Kernel:
    """The kernel that the logs choose; the generic one where there is no other and none may be compiled."""
    choices = [part.choice for part in explain(spec, device)]
    found: Kernel | None = None
    try:
        found = load(spec, device, choices, compiling=compiling)
    except EnvironmentProblem:
        if compiling or is_generic(choices):
            raise
        choices = list(generic_choices(spec, device))
        with contextlib.suppress(EnvironmentProblem):  # the first one says more
            found = load(spec, device, choices, compiling=False)
        if found is None:
            raise
    if is_generic(choices):
        _log.info("%s runs on the generic kernel: `tvm-orient explain` says why; `tvm-orient build` or `tune` make it one of its own", spec)
    return found


def forget() -> None:
    """Drop the loaded kernels, so that the next call asks the logs again (after tuning, say)."""
    with _lock:
        _kernels.clear()
        _loaded.cache_clear()
    _forget_callbacks()


def on_forget(callback: Any) -> None:
    """Register a table that must be emptied with ours."""
    _callbacks.append(callback)


_callbacks: list[Any] = []


def _forget_callbacks() -> None:
    for callback in _callbacks:
        callback()
