"""Which kernel answers a call: a problem's own where it is tuned, built or asked for; for the first calls of others the generic one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import torch

from .. import env
from ..errors import EnvironmentProblem, OrientError
from ..forks import Lock
from ..kernels import compile_cost
from ..kernels.build import build
from ..kernels.cache import Busy
from ..kernels.resolve import explain
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice, generic_choices, is_generic
from . import makings, payback
from .kernel import GenericAdapter, Kernel, opened
from .loader import NotLoaded, forget_libraries
from .makings import Declined, Making
from .provisional import ProvisionalKernel, Source, asked_for, asked_here, capturing

_EXACT = ("user", "shipped", "alias", "mirror")  # steps of the lookup that answer with a record of the very problem
_UNASKED_LIMIT_S = 1800.0  # seconds after which a compiler that nobody asked is given up: it hangs. Beside a busy program it gets little time
_ASKED_LIMIT_S = 30 * 86400.0  # seconds after which one that somebody asked is
_Key = tuple[ConvSpec, str, int]
_kernels: dict[_Key, Kernel | GenericAdapter | ProvisionalKernel] = {}
_locks: dict[_Key, Lock] = {}  # one for each problem; whoever holds it loads or compiles the problem's kernel
_replaced: set[str] = set()  # paths of kernels that did not load and were built again, once in each process
_told: set[tuple[type, object]] = set()  # what kept problems on the generic kernel, where a warning has said it
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
    key = _key(spec, device)
    found = _held(key)
    if found is None:
        with _locks.setdefault(key, Lock()):
            found = _held(key) or acquire(spec, device, _explained(spec, device) if choices is None else choices)
            _put(key, found)
    return found


def begin(spec: ConvSpec, device: Device, choices: Sequence[Choice] | None = None, *, asked: bool = True) -> Making:
    """Begins the making of a problem's own kernel in the background, and returns it: once it is done, calls run on that kernel.

    Args:
        choices: as for `kernel`.
        asked: somebody waits for it. Else it comes after all that was asked for, at the lowest priority, and only where it may be made unasked.
    """
    chosen = _explained(spec, device) if choices is None else choices
    return makings.current().begin(
        _key(spec, device), str(spec), lambda urgent: _make(spec, device, chosen, urgent), compile_cost.seconds(spec, device), urgent=asked
    )


def ready(spec: ConvSpec, device: Device) -> bool:
    """Says whether this process holds the kernel that answers a problem's calls for good."""
    return _held(_key(spec, device)) is not None


def _make(spec: ConvSpec, device: Device, choices: Sequence[Choice], asked: bool) -> None:
    """Makes a problem's own kernel in a thread of the background, and has calls find it.

    Raises:
        Busy: another thread or another process makes it.
        Declined: it is not made unasked.
        Unsupported, BuildFailed, EnvironmentProblem: as `kernel`.
    """
    key = _key(spec, device)
    lock = _locks.setdefault(key, Lock())
    if not lock.acquire(blocking=False):
        raise Busy(f"another thread makes the kernel of {spec}")
    try:
        if _held(key) is None:
            own = acquire(spec, device, choices, asked, _ASKED_LIMIT_S if asked else _UNASKED_LIMIT_S)
            stand_in = _kernels.get(key)
            if isinstance(stand_in, ProvisionalKernel):
                stand_in.own = own
                if asked:
                    stand_in.taken()
            elif asked:
                _put(key, own)
    except Busy:
        raise
    except BaseException as problem:
        _stay(key, problem, asked)
        raise
    finally:
        lock.release()


def _stay(key: _Key, problem: BaseException, asked: bool) -> None:
    """Leaves a problem on the generic kernel for good, and tells the log why, unless whoever asked is told, or the process is ending."""
    stand_in = _kernels.get(key)
    if isinstance(stand_in, ProvisionalKernel):
        stand_in.refuse()
    if asked or makings.current().closed:
        return
    if isinstance(problem, Declined):
        _log.info("%s stays on the generic kernel: %s", key[0], problem)
    elif isinstance(problem, OrientError):
        known = (type(problem), getattr(problem.__cause__, "errno", None) or str(problem))  # a disk that is full is so for every problem
        _log.log(logging.INFO if known in _told else logging.WARNING, "%s stays on the generic kernel: %s", key[0], problem)
        _told.add(known)
    else:  # a fault of the package, which must not come up in a call that the generic kernel answers
        _log.warning("%s stays on the generic kernel", key[0], exc_info=problem)


def _key(spec: ConvSpec, device: Device) -> _Key:
    return spec, device.slug, device.index


def _held(key: _Key) -> Kernel | GenericAdapter | None:
    """Returns the kernel that answers a problem's calls for good; None where there is none yet."""
    found = _kernels.get(key)
    return None if isinstance(found, ProvisionalKernel) else found


def _put(key: _Key, own: Kernel | GenericAdapter) -> None:
    """Has calls find a problem's own kernel."""
    before = _kernels.get(key)
    _kernels[key] = own
    if isinstance(before, ProvisionalKernel):
        _forget_callbacks()  # tables that hold it


def kernel_for_call(spec: ConvSpec, device: Device) -> Kernel | GenericAdapter | ProvisionalKernel:
    """Returns the kernel that answers a call of a spec: its own where that is loaded or in a cache, else the generic one until its own is made.

    TVM_ORIENT_BUILD says which call has it made. torch.use_deterministic_algorithms asks for one kernel from the first call on.

    Raises:
        Unsupported, BuildFailed, EnvironmentProblem: as `build.build`.
    """
    key = _key(spec, device)
    found = _kernels.get(key)
    if found is not None:
        return (found.taken() or found) if isinstance(found, ProvisionalKernel) else found
    _refuse_capture(spec, device)
    calls, asked = env.building_call(), asked_here()
    choices = _explained(spec, device)
    if calls == 0 or is_generic(choices) or (not asked and (calls == 1 or torch.are_deterministic_algorithms_enabled())):
        return kernel(spec, device, choices)
    return _kernels.setdefault(key, _ready_or_provisional(spec, device, choices, calls, asked))


def _explained(spec: ConvSpec, device: Device) -> list[Choice]:
    """Returns the choices that the logs hold for a problem now, or its templates make; asked once for each problem that is called."""
    return [part.choice for part in explain(spec, device)]


def _tuned(choices: Sequence[Choice]) -> bool:
    """Says whether a record of the very problem answered for a part of it."""
    return any(choice.step in _EXACT for choice in choices)


def _ready_or_provisional(spec: ConvSpec, device: Device, choices: Sequence[Choice], calls: int, asked: bool) -> Kernel | GenericAdapter | ProvisionalKernel:
    """Returns a problem's own kernel where a cache has it and it loads; else the generic one until its own is made, begun at once where it is asked for."""
    try:
        return load(spec, device, choices, compiling=False)
    except NotLoaded as problem:
        _log.info("%s will be built again: %s", spec, problem)
    except EnvironmentProblem:  # no cache has it
        pass
    if asked:
        asked_for(begin(spec, device, choices))
    tuned = _tuned(choices)
    weighed = not (tuned or env.building_call_set())
    if tuned:
        calls = 1
    elif not asked:
        when = f"call {calls}" + (" at the earliest" if weighed else "")
        _log.info("%s is new: it runs on the generic kernel until its own is made, begun at %s or by tvm_orient.warmup; see `tvm-orient tune`", spec, when)
    key = _key(spec, device)
    source = Source(
        begin=lambda urgent: begin(spec, device, choices, asked=urgent),
        now=lambda: kernel(spec, device, choices),
        put=lambda own: _put(key, own),
    )
    return ProvisionalKernel(spec, device, _generic(spec, device), calls, weighed, source)


def load(
    spec: ConvSpec,
    device: Device,
    choices: Sequence[Choice],
    *,
    compiling: bool = True,
    limit: float | None = None,
    urgent: bool = True,
) -> Kernel | GenericAdapter:
    """Returns the kernel that the choices make: from a cache, or compiled now. One that this machine cannot load is built again, once.

    Args:
        compiling: False forbids compiling.
        limit, urgent: as for `tvm_orient.kernels.build.build`.

    Raises:
        Unsupported: as `tvm_orient.kernels.build.build`.
        BuildFailed: as `tvm_orient.kernels.build.build`.
        EnvironmentProblem: as `tvm_orient.kernels.build.build`; or it does not load.
    """
    path = build(spec, device, choices, compiling=compiling, limit=limit, urgent=urgent)
    generic = is_generic(choices)
    try:
        return opened(spec, device, path, generic=generic)
    except NotLoaded as problem:
        if not compiling or problem.forbidden or str(path) in _replaced:
            raise
        _log.warning("a kernel is built again: %s", problem)
    _replaced.add(str(path))
    return opened(spec, device, build(spec, device, choices, limit=limit, instead_of=path, urgent=urgent), generic=generic)


def _generic(spec: ConvSpec, device: Device, *, compiling: bool = True) -> Kernel | GenericAdapter:
    return load(spec, device, generic_choices(spec, device), compiling=compiling)


def _refuse_capture(spec: ConvSpec, device: Device) -> None:
    if capturing(device):
        raise EnvironmentProblem(f"{spec} has no loaded kernel and a CUDA graph is being captured: call tvm_orient.warmup first")


def acquire(spec: ConvSpec, device: Device, choices: Sequence[Choice], asked: bool = True, limit: float | None = None) -> Kernel | GenericAdapter:
    """Returns the kernel of these choices; where it is asked for and may not be compiled, the generic one.

    Args:
        asked: somebody waits for it; else it is made only where it may be made unasked.
        limit: seconds that compiling may take, and Busy is raised where another process is at it; None waits for both.

    Raises:
        Unsupported, BuildFailed, EnvironmentProblem: as `load`; or a CUDA graph is being captured.
        Busy: there is a limit, and another process makes it.
        Declined: not asked for, and not made unasked.
    """
    _refuse_capture(spec, device)
    if not asked:
        return _made_unasked(spec, device, choices, limit)
    compiling = env.building_call() > 0
    try:
        found = load(spec, device, choices, compiling=compiling, limit=limit)
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


def _made_unasked(spec: ConvSpec, device: Device, choices: Sequence[Choice], limit: float | None) -> Kernel | GenericAdapter:
    """Returns a problem's own kernel, which nobody asked for.

    Raises:
        Busy: another process makes it.
        Declined: no cache has it, and it is not worth its making.
    """
    why = payback.against(spec, device, _tuned(choices))
    if why is None:
        return load(spec, device, choices, limit=limit, urgent=False)
    try:
        return load(spec, device, choices, compiling=False)  # another process may have made it since
    except NotLoaded:
        raise
    except EnvironmentProblem as problem:
        raise Declined(f"{why}: tvm_orient.warmup, TVM_ORIENT_BUILD=1 or `tvm-orient build` compile it, `tvm-orient tune` tunes it") from problem


def forget() -> None:
    """Drops the loaded kernels, so that the next call asks the logs again (after tuning, say)."""
    _kernels.clear()
    forget_libraries()
    _replaced.clear()
    _told.clear()
    _forget_callbacks()


def on_forget(callback: Callable[[], None]) -> None:
    """Registers a function that empties a table of kernels; it is called whenever the tables here are emptied."""
    _callbacks.append(callback)


def _forget_callbacks() -> None:
    for callback in _callbacks:
        callback()
