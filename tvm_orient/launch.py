"""Launch: the one place where torch tensors and tvm-ffi meet."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import anysize, cache, foreign, paths, pool
from .build import build, explain
from .device import Device, cpu_device, cuda_devices
from .errors import EnvironmentProblem, OrientError, Unsupported
from .lower import Choice, generic_choices, is_generic
from .refusal import refuse
from .spec import DTYPES, ConvSpec, part_shape
from .tvmkit import check_ffi
from .views import Images, Pair, allocator, strides_of

_ALIGNMENT = {"cpu": 64, "cuda": 16}  # bytes that generated vector loads count on; TVM itself checks nothing
_LIMIT = 2**31 - 1  # kernels index with 32 bits
_EXACT = ("user", "shipped", "alias", "mirror")  # steps of the lookup that answer with a record of the very problem
Call = Callable[..., torch.Tensor]
_kernels: dict[tuple[ConvSpec, str, int], Kernel | Converted | Provisional] = {}
_at_once: list[bool] = []  # one entry for each compiling_at_once that is entered
_lock = threading.Lock()
_runtimes: list[ctypes.CDLL] = []
_log = logging.getLogger(__name__)


class Kernel:
    """A loaded kernel of one spec on one device; call it with the operands, get the result.

    Args:
        path: of its kernel.so.
        generic: path holds the generic kernel, which is told the spec's sizes and offsets in each call.

    Raises:
        EnvironmentProblem: TVM's runtime library is missing, or path was made for instructions that this CPU lacks.
    """

    def __init__(self, spec: ConvSpec, device: Device, path: Path, *, generic: bool = False) -> None:
        self.spec, self.device, self.path, self.generic = spec, device, path, generic
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
        self.workspace = part_shape(spec, 1, (bands, taps))[1:]
        self.alignment = _ALIGNMENT[device.kind]
        self.sums, self.sums_up = getattr(torch, spec.sums), spec.op == "conv_dw"
        self.last = spec.layout == "nhwc"
        self._empty, self.images = allocator(device), Images(spec, device)
        self.plane = (spec.out_height, spec.out_width) if spec.op == "conv" else (spec.height, spec.width)  # of the result, if it is an image
        self.each = spec.channels * max(spec.height * spec.width, bands * taps)  # elements of one image in the largest tensor

    def __call__(self, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """Operands of spec.op, in its shapes and dtype, on the device: (x, w) -> y, with spec.bias (x, w, bias) -> y, (dy, w) -> dx, (x, dy) -> dw.

        Images are (N, C, H, W) of any strides; those of the result are of spec.layout.

        Raises:
            Unsupported: a tensor has 2**31 elements or more.
        """
        return self.prepared(first, second)(first, second, bias)

    def prepared(self, first: torch.Tensor, second: torch.Tensor) -> Call:
        """The kernel for operands of these shapes and strides: as __call__, but of its operands nothing is looked at again but their addresses.

        Raises:
            Unsupported: a tensor has 2**31 elements or more.
        """
        n = first.shape[0]
        if n * self.each > _LIMIT:
            raise Unsupported(f"a tensor must have at most {_LIMIT} elements (kernels index with 32 bits), got {n * self.each}: split the batch")
        alignment, lay, run, tables, numbers, empty = self.alignment, self._laid, self._runner(), self.tables, self.numbers, self._empty
        lay_first, lay_second = (not tensor.is_contiguous(memory_format=self._form(tensor)) for tensor in (first, second))
        last, dtype, sums_dtype = self.last, first.dtype, self.sums
        if last:
            self.images.refuse_others(first, second)
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

        result: tuple[int, ...]
        if self.sums_up:
            result, workspace = (self.spec.channels, self.spec.kernel_size), (n, *self.workspace)
            strides, workspace_strides = strides_of(result), strides_of(workspace)
            return sums
        channels, (height, width) = self.spec.channels, self.plane
        result, area = (n, channels, height, width), height * width
        strides = (area * channels, 1, width * channels, channels) if self.last else (area * channels, area, width, 1)
        return image

    def _form(self, tensor: torch.Tensor) -> torch.memory_format:
        """The memory format in which the kernel reads an operand."""
        return torch.channels_last if self.last and tensor.dim() == 4 else torch.contiguous_format

    def _laid(self, tensor: torch.Tensor) -> torch.Tensor:
        """The operand as the kernel reads it: in its format, and aligned for its vector loads."""
        tensor = tensor.contiguous(memory_format=self._form(tensor))
        return tensor if tensor.data_ptr() % self.alignment == 0 else tensor.clone()

    def _runner(self) -> Callable[..., object]:
        """The kernel's function. On CUDA with its device made current: TVM's host stub sets the device and does not restore it."""
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


class Converted:
    """The generic kernel in the place of one that it cannot be: it knows neither layout nor epilogue, so torch adds both."""

    def __init__(self, spec: ConvSpec, device: Device, path: Path) -> None:
        self.spec, self.device, self.path = spec, device, path
        self.kernel = Kernel(dataclasses.replace(spec.plain, layout="nchw"), device, path, generic=True)

    def __call__(self, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """As Kernel."""
        out = self.kernel(first, second)
        out = out if bias is None else out.add_(bias.view(-1, 1, 1))
        out = activate(self.spec.activation, out)
        return out.contiguous(memory_format=torch.channels_last) if self.spec.layout == "nhwc" and out.dim() == 4 else out

    def prepared(self, *_: torch.Tensor) -> Call:
        """As Kernel.prepared; nothing is known before the call."""
        return self


def activate(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """torch's activation of that name (spec.ACTIVATIONS)."""
    return tensor if name == "none" else getattr(torch.nn.functional, name)(tensor)


@functools.lru_cache(maxsize=4096)
def _loaded(path: str, kind: str) -> tuple[Any, Any]:
    """(module, function) of a kernel library, loaded once: specs share the generic one."""
    import tvm_ffi

    load_runtime(kind)
    foreign.refuse_foreign(Path(path))
    module = tvm_ffi.load_module(path)
    if kind == "cpu":
        pool.adopt(Path(path))
    return module, module.get_function("main")


def _find(facts: Any, name: str) -> Any:
    """A fact of how.json, at the top or one level down."""
    if name in facts:
        return facts[name]
    return next((value[name] for value in facts.values() if isinstance(value, dict) and name in value), None)


def load_runtime(kind: str) -> None:
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


class Provisional:
    """The generic kernel for the first calls of a problem that nobody has tuned or built; then the problem gets its own."""

    def __init__(self, spec: ConvSpec, device: Device, generic: Kernel | Converted, calls: int) -> None:
        self.spec, self.device, self.kernel, self.left = spec, device, generic, calls

    def __call__(self, first: torch.Tensor, second: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """As Kernel."""
        self.left -= 1
        if (self.left <= 0 or _at_once) and not _capturing(self.device):
            self.kernel = self._own()
        return self.kernel(first, second, bias)

    def prepared(self, *_: torch.Tensor) -> Call:
        """As Kernel.prepared: every call counts, so each comes here."""
        return self

    def _own(self) -> Kernel | Converted:
        _log.info("%s: compiling its own kernel", self.spec)
        try:
            return kernel(self.spec, self.device)
        except OrientError as problem:
            _log.warning("%s stays on the generic kernel: %s", self.spec, problem)
            self.left = sys.maxsize
            return self.kernel


def kernel(spec: ConvSpec, device: Device) -> Kernel | Converted:
    """The loaded kernel of a spec on a device: from this process, from the cache, or compiled now.

    Raises:
        Unsupported: as `tvm_orient.build.build`.
        BuildFailed: as `tvm_orient.build.build`.
        EnvironmentProblem: as `tvm_orient.build.build`.
    """
    key = (spec, device.slug, device.index)
    found = _kernels.get(key)
    if found is None or isinstance(found, Provisional):
        with _lock:
            found = _kernels.get(key)
            if found is None or isinstance(found, Provisional):
                held, found = found, _made(spec, device, [part.choice for part in explain(spec, device)])
                _kernels[key] = found
                if held is not None:
                    _forget_callbacks()  # tables that hold the provisional one
    return found


def serving(spec: ConvSpec, device: Device) -> Kernel | Converted | Provisional:
    """What answers a call of a spec: its own kernel where it is tuned or built, else the generic one, which needs no compiling, for a while.

    TVM_ORIENT_BUILD says how long. torch.use_deterministic_algorithms asks for one kernel from the first call on.

    Raises:
        Unsupported, BuildFailed, EnvironmentProblem: as `build.build`.
    """
    found = _kernels.get((spec, device.slug, device.index))
    if found is not None:
        return found
    _refuse_capture(spec, device)
    calls = 1 if _at_once else paths.building_call()
    choices = [part.choice for part in explain(spec, device)]
    tuned = any(choice.step in _EXACT for choice in choices)
    if calls <= 1 or tuned or is_generic(choices) or torch.are_deterministic_algorithms_enabled():
        return kernel(spec, device)
    with _lock:
        found = _kernels.get((spec, device.slug, device.index))
        if found is None:
            try:
                found = load(spec, device, choices, compiling=False)
            except EnvironmentProblem:
                found = Provisional(spec, device, _generic(spec, device), calls)
                _log.info("%s is new: it runs on the generic kernel until call %d, or tvm_orient.warmup, compiles its own; see `tvm-orient tune`", spec, calls)
            _kernels[spec, device.slug, device.index] = found
    return found


@contextlib.contextmanager
def compiling_at_once() -> Iterator[None]:
    """While it is entered, every call of the process compiles the kernel that it lacks."""
    _at_once.append(True)
    try:
        yield
    finally:
        _at_once.pop()


def load(spec: ConvSpec, device: Device, choices: Sequence[Choice], *, compiling: bool = True) -> Kernel | Converted:
    """The kernel that the choices make: from the cache, or compiled now.

    Raises:
        Unsupported: as `tvm_orient.build.build`.
        BuildFailed: as `tvm_orient.build.build`.
        EnvironmentProblem: as `tvm_orient.build.build`.
    """
    path = build(spec, device, choices, compiling=compiling)
    if is_generic(choices):
        return Converted(spec, device, path) if spec.layout != "nchw" or spec != spec.plain else Kernel(spec, device, path, generic=True)
    return Kernel(spec, device, path)


def _generic(spec: ConvSpec, device: Device, *, compiling: bool = True) -> Kernel | Converted:
    return load(spec, device, generic_choices(spec, device), compiling=compiling)


def _capturing(device: Device) -> bool:
    return device.kind == "cuda" and torch.cuda.is_current_stream_capturing()


def _refuse_capture(spec: ConvSpec, device: Device) -> None:
    if _capturing(device):
        raise EnvironmentProblem(f"{spec} has no loaded kernel and a CUDA graph is being captured: call tvm_orient.warmup first")


def _made(spec: ConvSpec, device: Device, choices: Sequence[Choice]) -> Kernel | Converted:
    """The kernel of these choices; the generic one where there is no other and none may be compiled."""
    _refuse_capture(spec, device)
    compiling = paths.building_call() > 0
    try:
        found = load(spec, device, choices, compiling=compiling)
    except EnvironmentProblem:
        if compiling or is_generic(choices):
            raise
        generic: Kernel | Converted | None = None
        with contextlib.suppress(EnvironmentProblem):  # the first one says more
            generic = _generic(spec, device, compiling=False)
        if generic is None:
            raise
        found, choices = generic, generic_choices(spec, device)
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
