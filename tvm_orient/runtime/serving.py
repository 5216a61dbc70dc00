"""Which kernel answers a call: a problem's own where it is tuned, built or asked for; for the first calls of others the generic one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import torch

from .. import env
from ..errors import BuildFailed, EnvironmentProblem
from ..forks import Lock
from ..kernels import compile_cost
from ..kernels.build import build
from ..kernels.resolve import explain
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice, generic_choices, is_generic
from .kernel import GenericAdapter, Kernel, opened
from .loader import NotLoaded, forget_libraries
from .provisional import NEVER, ProvisionalKernel, TooLong, asked_here, capturing

_EXACT = ("user", "shipped", "alias", "mirror")  # steps of the lookup that answer with a record of the very problem
_MAX_UNASKED_S = 18.0  # CPU seconds that compiling may take, as `compile_cost` foresees, where nobody asked for it
_UNASKED_LIMIT_S = 300.0  # seconds after which compiling that nobody asked for is given up: the machine is busy, or the estimate wrong
_Key = tuple[ConvSpec, str, int]
_kernels: dict[_Key, Kernel | GenericAdapter | ProvisionalKernel] = {}
_locks: dict[_Key, Lock] = {}  # one for each problem; whoever holds it loads or compiles the problem's kernel
_replaced: set[str] = set()  # paths of kernels that did not load and were built again, once in each process
_callbacks: list[Callable[[], None]] = []
_log = logging.getLogger(__name__)


def kernel(spec: ConvSpec, device: Device, choices: Sequence[Choice] | None = None) -> Kernel | GenericAdapter:
    """Returns the loaded kernel of a spec on a device: from this process, from the cache, or compiled now.

    Args:
        choices: what it is made by where this process does not hold it; None asks the logs, as `tvm_orient.kernels.resolve.explain`.

    Raises:
        Unsupported: as `tvm_orient.kernels.build.build`.
        BuildFailed: as `tvm_orient.kernels.build.build`.
        EnvironmentProblem: as `tvm_orient.kernels.build.build`; or it does not load on this machine, not even built again.
    """
    found = None
    while found is None:
        found = _own(spec, device, choices, asked=True)
    return found


def _own(spec: ConvSpec, device: Device, choices: Sequence[Choice] | None, *, asked: bool) -> Kernel | GenericAdapter | None:
    """Returns what `kernel` does; where it is not asked for, None while another thread makes it.

    Raises:
        Busy: not asked for, and another process makes it.
        TooLong: not asked for, and it would take too long.
    """
    key = (spec, device.slug, device.index)
    found = _kernels.get(key)
    if found is not None and not isinstance(found, ProvisionalKernel):
        return found
    lock = _locks.setdefault(key, Lock())
    if not lock.acquire(blocking=asked):
        return None
    try:
        held = _kernels.get(key)
        if held is not None and not isinstance(held, ProvisionalKernel):
            return held
        found = acquire(spec, device, _explained(spec, device) if choices is None else choices, asked)
        _kernels[key] = found
    finally:
        lock.release()
    if held is not None:
        _forget_callbacks()  # tables that hold the provisional one
    return found


def kernel_for_call(spec: ConvSpec, device: Device) -> Kernel | GenericAdapter | ProvisionalKernel:
    """Returns the kernel that answers a call of a spec: its own where it is tuned or built, else the generic one, which needs no compiling, for a while.

    TVM_ORIENT_BUILD says how long. torch.use_deterministic_algorithms asks for one kernel from the first call on.

    Raises:
        Unsupported, BuildFailed, EnvironmentProblem: as `build.build`.
    """
    key = (spec, device.slug, device.index)
    found = _kernels.get(key)
    if found is not None:
        return found
    _refuse_capture(spec, device)
    calls = 1 if asked_here() else env.building_call()
    choices = _explained(spec, device)
    if calls <= 1 or is_generic(choices) or torch.are_deterministic_algorithms_enabled():
        return kernel(spec, device, choices)
    if any(choice.step in _EXACT for choice in choices) and compile_cost.seconds(spec, device) <= _MAX_UNASKED_S:
        try:
            return kernel(spec, device, choices)
        except (BuildFailed, EnvironmentProblem) as problem:
            _log.warning("%s stays on the generic kernel: %s", spec, problem)
            calls = NEVER
    with _locks.setdefault(key, Lock()):
        found = _kernels.get(key)
        if found is None:
            found = _kernels[key] = _ready_or_provisional(spec, device, choices, calls)
    return found


def _explained(spec: ConvSpec, device: Device) -> list[Choice]:
    """Returns the choices that the logs hold for a problem now, or its templates make; asked once for each problem that is called."""
    return [part.choice for part in explain(spec, device)]


def _ready_or_provisional(spec: ConvSpec, device: Device, choices: Sequence[Choice], calls: int) -> Kernel | GenericAdapter | ProvisionalKernel:
    """Returns a problem's own kernel where a cache has it and it loads; else the generic one for so many calls."""
    try:
        return load(spec, device, choices, compiling=False)
    except NotLoaded as problem:
        _log.info("%s will be built again: %s", spec, problem)
    except EnvironmentProblem:  # no cache has it
        pass
    generic = _generic(spec, device)
    if calls < NEVER:
        _log.info("%s is new: it runs on the generic kernel until call %d, or tvm_orient.warmup, compiles its own; see `tvm-orient tune`", spec, calls)
    return ProvisionalKernel(spec, device, generic, calls, lambda asked: _own(spec, device, choices, asked=asked))


def load(spec: ConvSpec, device: Device, choices: Sequence[Choice], *, compiling: bool = True, limit: float | None = None) -> Kernel | GenericAdapter:
    """Returns the kernel that the choices make: from a cache, or compiled now. One that this machine cannot load is built again, once.

    Args:
        compiling: False forbids compiling.
        limit: seconds, as for `tvm_orient.kernels.build.build`.

    Raises:
        Unsupported: as `tvm_orient.kernels.build.build`.
        BuildFailed: as `tvm_orient.kernels.build.build`.
        EnvironmentProblem: as `tvm_orient.kernels.build.build`; or it does not load.
    """
    path = build(spec, device, choices, compiling=compiling, limit=limit)
    generic = is_generic(choices)
    try:
        return opened(spec, device, path, generic=generic)
    except NotLoaded as problem:
        if not compiling or problem.forbidden or str(path) in _replaced:
            raise
        _log.warning("a kernel is built again: %s", problem)
    _replaced.add(str(path))
    return opened(spec, device, build(spec, device, choices, limit=limit, instead_of=path), generic=generic)


def _generic(spec: ConvSpec, device: Device, *, compiling: bool = True) -> Kernel | GenericAdapter:
    return load(spec, device, generic_choices(spec, device), compiling=compiling)


def _refuse_capture(spec: ConvSpec, device: Device) -> None:
    if capturing(device):
        raise EnvironmentProblem(f"{spec} has no loaded kernel and a CUDA graph is being captured: call tvm_orient.warmup first")


def acquire(spec: ConvSpec, device: Device, choices: Sequence[Choice], asked: bool = True) -> Kernel | GenericAdapter:
    """Returns the kernel of these choices; the generic one where no cache has it and none may be compiled.

    Args:
        asked: False where a call waits for a kernel that it did not ask for: then compiling may take only so long.

    Raises:
        Unsupported, BuildFailed, EnvironmentProblem: as `load`; or a CUDA graph is being captured.
        Busy, TooLong: not asked for, as `_own`.
    """
    _refuse_capture(spec, device)
    if not asked:
        return _made_unasked(spec, device, choices)
    compiling = env.building_call() > 0
    try:
        found = load(spec, device, choices, compiling=compiling)
    except EnvironmentProblem:
        if compiling or is_generic(choices):
            raise
        generic: Kernel | GenericAdapter | None = None
        with contextlib.suppress(EnvironmentProblem):  # the first one says more
            generic = _generic(spec, device, compiling=False)
        if generic is None:
            raise
        found, choices = generic, generic_choices(spec, device)
    if is_generic(choices):
        _log.info("%s runs on the generic kernel: `tvm-orient explain` says why; `tvm-orient build` or `tune` make it one of its own", spec)
    return found


def _made_unasked(spec: ConvSpec, device: Device, choices: Sequence[Choice]) -> Kernel | GenericAdapter:
    """Returns a problem's own kernel, for which a call waits that did not ask for it.

    Raises:
        Busy: another process makes it.
        TooLong: no cache has it, and compiling it would take too long.
    """
    foreseen = compile_cost.seconds(spec, device)
    if foreseen <= _MAX_UNASKED_S:
        _log.info("%s: compiling its own kernel, about %.0f s", spec, foreseen)
        return load(spec, device, choices, limit=_UNASKED_LIMIT_S)
    try:
        return load(spec, device, choices, compiling=False)  # another process may have made it since
    except NotLoaded:
        raise
    except EnvironmentProblem as problem:
        raise TooLong(
            f"its own, of {compile_cost.offsets(spec)} distinct offsets in {spec.taps.groups} groups, would take about "
            f"{foreseen:.0f} s to compile, and unasked it may take {_MAX_UNASKED_S:.0f} s: tvm_orient.warmup, TVM_ORIENT_BUILD=1 or `tvm-orient build` "
            "compile it, `tvm-orient tune` tunes it"
        ) from problem


def forget() -> None:
    """Drops the loaded kernels, so that the next call asks the logs again (after tuning, say)."""
    _kernels.clear()
    forget_libraries()
    _replaced.clear()
    _forget_callbacks()


def on_forget(callback: Callable[[], None]) -> None:
    """Registers a function that empties a table of kernels; it is called whenever the tables here are emptied."""
    _callbacks.append(callback)


def _forget_callbacks() -> None:
    for callback in _callbacks:
        callback()
