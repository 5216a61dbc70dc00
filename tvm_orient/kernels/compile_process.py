"""Compiling in processes of its own: what ends a compiler does not end the program that asked for a kernel.

LLVM ends its process where it cannot write an object file. So the program never compiles itself: `python -m tvm_orient.kernels.compile_process`
reads one JSON request a line and answers one JSON line, and all that it writes lies in the folder of the kernel that it makes. A compiler that
has nothing to do for a minute ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import errors
from ..compiler.compile_part import compile_part
from ..compiler.layer import compile_layer
from ..compiler.library import compile_library
from ..compiler.lower import scheduled
from ..compiler.parts import CompiledPart, Part
from ..errors import BuildFailed, EnvironmentProblem, OrientError
from ..forks import Lock
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice, is_generic
from ..toolchain.driverless import pretend_driver
from ..toolchain.tvm import load_tvm_alone, target
from ..toolchain.worker import Answer, ChildProcess, Died, environment, module_command, serve
from .manifest import KERNEL
from .room import Room

_LOWEST = 10  # niceness of a compiler whose work nobody asked for: on cores that are all busy it still gets a tenth of one
_IDLE_S = 60.0  # seconds without a request after which a compiler ends
_LOOK_S = 1.0  # seconds between two looks at whether the program that asks is there
_MAX_ASKED_S = 30 * 86400.0  # seconds that compiling may take where it was asked for without a limit
_FULL = ("No space left on device", "Disk quota exceeded")  # what the system says, and compilers repeat
_MIN_FREE_BYTES = 1 << 20  # bytes free on a disk that is not full; a kernel and what is written on the way to it take less than ten times as much
_MAX_SAID = 500  # characters of what a compiler said last that a message repeats
_SCRATCH = "scratch"


def make(
    spec: ConvSpec, device: Device, choices: Sequence[Choice], folder: Path, *, sources: bool = False, parts: Mapping[Part, CompiledPart] | None = None
) -> dict[str, Any]:
    """Compiles a spec into folder/kernel.so in this process, and returns the facts that launching needs (workspace) and that people ask for.

    Args:
        sources: for CUDA, write kernel.cu and kernel.cubin beside it.
        parts: the parts of the layer, compiled; None compiles them now. The generic kernel has none.

    Raises:
        BuildFailed, EnvironmentProblem: as `library.compile_library` and `layer.compile_layer`.
    """
    generic = is_generic(choices)
    facts: dict[str, Any] = {"steps": [c.step for c in (choices[:1] if generic else choices)]}
    if generic:
        found = compile_library(scheduled(spec, device, choices), device, folder / KERNEL)
        source, cubin = next(iter(found.items()), ("", b""))
    else:
        layer = compile_layer(spec, device, choices, folder / KERNEL, parts)
        source, cubin = layer.source, layer.cubin
        if layer.workspace is not None:
            facts["workspace"] = list(layer.workspace)
    if sources and cubin:
        (folder / "kernel.cu").write_text(source)
        (folder / "kernel.cubin").write_bytes(cubin)
    if device.kind == "cpu":
        facts["mcpu"] = str(target(device).attrs["mcpu"])  # LLVM's name for the model that is in the key
    return facts


class Deadline:
    """When the compilers of a kernel are given up. The time begins when the first is lent: who waits for one is not late.

    Args:
        limit: seconds; None waits for ever.
    """

    def __init__(self, limit: float | None) -> None:
        self.limit = limit
        self._end: float | None = None

    def left(self) -> float | None:
        """Returns the seconds that are left, at least none; None where there is no limit."""
        if self.limit is None:
            return None
        now = time.monotonic()
        self._end = now + self.limit if self._end is None else self._end
        return max(0.0, self._end - now)


def requested(spec: ConvSpec, device: Device, request: dict[str, Any], folder: Path, deadline: Deadline, *, urgent: bool = True) -> dict[str, Any]:
    """Returns the facts that a compiler answers to a request, in a process of its own, which for CUDA has a driver or a stand-in for it.

    Args:
        spec: what messages call it.
        request: plain JSON, as `_answer` takes it, without the device.
        folder: exists; of the disk that is written to.
        deadline: when it is given up; the same for all that one kernel is made of.
        urgent: False where nobody asked for it: it then gives way to what was asked for, and to the program.

    Raises:
        BuildFailed: the compiler refused, died, or took longer than the limit.
        EnvironmentProblem: a compiler is missing or cannot be started, or the disk is full.
    """
    with _shop.compiler(device.kind, urgent) as compiler:
        try:
            answer = compiler.ask({**request, "device": dataclasses.asdict(device)}, deadline.left())
        except TimeoutError as problem:
            raise BuildFailed(f"{spec} did not compile within {deadline.limit:.0f} s: call tvm_orient.warmup, which waits for it") from problem
        except Died as problem:
            said = compiler.said()
            if full(folder, said):
                raise disk_full(folder.parent) from problem
            raise BuildFailed(f"the compiler of {spec} ended without an answer ({problem}), and last said: {said[-_MAX_SAID:] or 'nothing'}") from problem
    if "facts" in answer:
        return dict(answer["facts"])
    if full(folder, str(answer.get("trail", ""))):
        raise disk_full(folder.parent)
    kind = getattr(errors, str(answer.get("kind")), BuildFailed)
    raise kind(str(answer.get("text") or answer.get("error")))


def full(folder: Path, said: str) -> bool:
    """Says whether a build failed because the disk of its folder is full: a compiler said so, or next to nothing is free."""
    if any(text in said for text in _FULL):
        return True
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < _MIN_FREE_BYTES
    return False


def disk_full(folder: Path) -> EnvironmentProblem:
    """Returns the error of a build for which the disk of a folder is full."""
    remedy = "free some, or set TVM_ORIENT_CACHE_DIR (or -o) to a folder on another disk"
    return EnvironmentProblem(f"compiling a kernel needs room for some megabytes, and the disk of {folder} is full: {remedy}")


class _Compiler(ChildProcess):
    """A process that compiles, what it wrote to its standard error, and the environment variables that it was started with (`tools`)."""

    lasting = True  # a kernel that was refused spoils nothing
    kind = ""  # of the devices that it compiles for: where there is no driver, the stand-in must be there before TVM is
    urgent = True  # whether what it compiles was asked for
    closed = False  # whether the program is ending: then none starts

    def __init__(self) -> None:
        command, self.tools = module_command("tvm_orient.kernels.compile_process"), _tools()
        self._errors = os.memfd_create("tvm_orient") if hasattr(os, "memfd_create") else os.dup(2)
        super().__init__(command, _MAX_ASKED_S, environment(), self._errors)

    def said(self) -> str:
        """Returns what it wrote to its standard error, as far as that is kept."""
        with contextlib.suppress(OSError):
            size = os.fstat(self._errors).st_size
            return os.pread(self._errors, 1 << 16, max(0, size - (1 << 16))).decode(errors="replace").strip()
        return ""

    def _start(self) -> subprocess.Popen[bytes]:
        process = super()._start()
        if not self.urgent:
            give_way(process.pid)
        if self.closed:  # while it was being started
            self.kill()
        return process

    def end(self) -> None:
        """Ends the process and forgets what it said."""
        self.close()
        os.close(self._errors)


def give_way(group: int) -> None:
    """Gives every process of a group, and those that they start, the lowest priority; where the system refuses, they keep theirs.

    Linux may weigh sessions against each other and the processes of each among themselves alone: then it is the session that must give way.
    """
    with contextlib.suppress(OSError, AttributeError):
        os.setpriority(os.PRIO_PGRP, group, _LOWEST)
    with contextlib.suppress(OSError):
        Path(f"/proc/{group}/autogroup").write_text(str(_LOWEST))


def _tools() -> dict[str, str]:
    """Returns the environment variables that decide which compilers run, and how."""
    names = (name for name in os.environ if name.startswith(("TVM_", "CUDA_", "LD_")) and not name.startswith("TVM_ORIENT_"))
    return {name: os.environ[name] for name in (*names, *("PATH", "CC", "CXX", "PYTHONPATH")) if name in os.environ}


class _Shop:
    """Compilers of this process: those that work, those that wait for work, and how many more may be started."""

    def __init__(self) -> None:
        self._waiting: list[_Compiler] = []
        self._working: list[_Compiler] = []
        self._room = Room()
        self._choosing = Lock()
        self._closed = False

    @contextlib.contextmanager
    def compiler(self, kind: str, urgent: bool = True) -> Iterator[_Compiler]:
        """Lends a compiler that nobody else asks meanwhile; where as many work as may at once, waits for the next that is done.

        Args:
            kind: of device, "cpu" or "cuda": a process that has compiled for one never compiles for the other.
            urgent: False lends one that gives way to every other process: once it does, it cannot be given its rights back.

        Raises:
            BuildFailed: this process is ending.
        """
        with self._room.place(urgent):
            with self._choosing:
                compiler = self._idle(kind, urgent) or self._started()
                if compiler.tools != _tools():
                    compiler.end()
                    compiler = _Compiler()
                compiler.kind, compiler.urgent = kind, urgent
                self._working.append(compiler)
            try:
                if self._closed:
                    raise BuildFailed("the program that asked for a kernel is ending")
                yield compiler
            finally:
                with self._choosing:
                    self._working.remove(compiler)
                    self._waiting.append(compiler)

    def close(self) -> None:
        """Ends all compilers, those at work too, whose requests fail; no further one starts."""
        self._closed = True
        with self._choosing:
            for compiler in (*self._working, *self._waiting):
                compiler.closed = True
                compiler.kill()

    def _idle(self, kind: str, urgent: bool) -> _Compiler | None:
        """Takes the compiler of a kind that was used last from those that wait; returns None where none of it waits."""
        fits = ((one.kind, one.urgent) == (kind, urgent) for one in self._waiting)
        place = max((index for index, fit in enumerate(fits) if fit), default=None)
        return None if place is None else self._waiting.pop(place)

    def _started(self) -> _Compiler:
        """Returns a new compiler; where as many are there as may work at once, the one that has waited longest ends first."""
        if self._waiting and len(self._waiting) + len(self._working) >= self._room.asked:
            self._waiting.pop(0).end()
        return _Compiler()


_shop = _Shop()


def close() -> None:
    """Ends the compilers of this process, which is ending itself."""
    _shop.close()


def _renew() -> None:
    """Gives a forked child compilers of its own; those of its parent stay its parent's, and are kept here so that nothing closes them."""
    global _shop, _inherited
    _inherited, _shop = (_inherited, _shop), _Shop()


_inherited: Any = None
os.register_at_fork(after_in_child=_renew)


def _answer(request: dict[str, Any]) -> Answer:
    """Answers a request: a part of a layer to be compiled ("part", "path"), or a kernel ("spec", "choices", and "parts" that are compiled)."""
    scratch = Path(request["folder"]) / f"{_SCRATCH}-{os.getpid()}"
    try:
        scratch.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)  # of TVM, and of what it starts
        if request["device"]["kind"] == "cuda":
            pretend_driver()
        load_tvm_alone()
        device = Device(**request["device"])
        return {"facts": _part(request, device) if "part" in request else _kernel(request, device)}
    except OrientError as problem:
        return {"kind": type(problem).__name__, "text": str(problem), "trail": _trail(problem)}
    except Exception as problem:
        what = request["part"][0] if "part" in request else request["spec"]
        return {"kind": "BuildFailed", "text": f"{what}: {type(problem).__name__}: {str(problem)[-_MAX_SAID:]}", "trail": _trail(problem)}
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _part(request: dict[str, Any], device: Device) -> dict[str, Any]:
    """Compiles a part of a layer to a file."""
    Path(request["path"]).write_bytes(compile_part(Part.of_plain(request["part"]), device).payload)
    return {}


def _kernel(request: dict[str, Any], device: Device) -> dict[str, Any]:
    """Compiles a kernel, of parts that are compiled where there are any."""
    choices = [Choice.of_plain(choice) for choice in request["choices"]]
    parts = {Part.of_plain(plain): CompiledPart.of_payload(Path(path).read_bytes()) for plain, path in request.get("parts", ())}
    return make(ConvSpec.from_key(request["spec"]), device, choices, Path(request["folder"]), sources=request["sources"], parts=parts or None)


def _trail(problem: BaseException | None) -> str:
    """Returns the texts of an error and of those that it came from, which say more than its last line."""
    found = []
    while problem is not None:
        found.append(str(problem))
        problem = problem.__cause__ or problem.__context__
    return "\n".join(found)[-(1 << 16) :]


def _leave_with(parent: int) -> None:
    """Ends this process, whatever it is doing, once the one that asks is gone: another that was forked from it may hold its end of the pipe."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    serve(_answer, _IDLE_S)
    os._exit(0)  # exit handlers would ask a driver that may be a stand-in, and answers nothing
