"""A process that answers one line of JSON for each line of JSON, and is replaced when it dies, is late, or has failed.

The one place that knows how such a process is started (which Python, with which packages), asked and ended, and what becomes of a request that gets no
answer. Whoever needs one names a module that ends with `serve`, and says what its answers mean.

What it runs are compiled kernels. After a fault in one of them a CUDA context answers every later call with an error, so no two failures may
come from one process: the second would be blamed on a kernel that did nothing wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import multiprocessing.spawn
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from ..errors import EnvironmentProblem

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_MAX_WAIT_S = 86400.0  # seconds of one wait: the system counts them in milliseconds of 32 bits
_MAX_SAID = 300  # characters of an error that are handed on
_NOT_STARTED = (errno.ENOMEM, errno.EAGAIN, errno.ENOENT, errno.EACCES)  # what the system says where a program does not start
FAULTS = ("died", "hung", "failed")  # what may become of a request: the process ended, was silent, or answered an error
Answer = dict[str, Any]


class Died(Exception):
    """The process ended before it answered; code: its exit status, negative for a signal."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process ended with status {code}")
        self.code = code


class ChildProcess:
    """The side that asks. The process is started by the first request, and again by the next one after it was closed or ended of itself.

    Args:
        command: starts it; its end calls `serve`.
        timeout: seconds that an answer may take.
        environment: None is this process's.
        log: the file that its standard error is added to, by its path or its descriptor; None leaves it to this process's.
        bound: the kernel ends it when this process ends, however that comes about. The thread that asks first must then outlive it.
    """

    lasting = False  #: whether a process that answered an error is kept: what it runs cannot spoil it

    def __init__(
        self, command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None, log: Path | int | None = None, bound: bool = False
    ) -> None:
        self.command, self.timeout, self.environment, self.log, self.bound = list(command), timeout, environment, log, bound
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""

    @property
    def running(self) -> bool:
        """Returns whether there is a process, not ended, that has answered all that it was asked."""
        return self._process is not None and self._process.poll() is None

    def ask(self, request: Any, timeout: float | None = None) -> Answer:
        """Returns the answer to a request; one with an "error" was the process's last, unless it is lasting.

        Args:
            request: plain JSON.
            timeout: seconds that this answer may take; None is what all may take.

        Raises:
            Died: it ended before it answered.
            TimeoutError: no answer in time.
            EnvironmentProblem: it does not start.
        """
        if not self.running:
            self.close()  # it ended after its last answer, such as one that had nothing to do for long: that is no fault of this request
        rested = self.running
        try:
            return self._asked(request, timeout)
        except Died as problem:
            if not (rested and problem.code == 0):
                raise
            return self._asked(request, timeout)  # it ended of itself just when it was asked

    def told(self, request: Any, timeout: float | None = None) -> Answer:
        """Returns what `ask` does; what becomes of a request without an answer is an answer too: {"error": text, "fault": one of FAULTS}.

        An "error" that the process answered itself has the fault "failed".

        Raises:
            EnvironmentProblem: it does not start.
        """
        try:
            answer = self.ask(request, timeout)
        except Died as problem:
            return {"error": str(problem), "fault": "died"}
        except TimeoutError:
            return {"error": f"no answer within {self.timeout if timeout is None else timeout:.0f} s", "fault": "hung"}
        return answer | {"fault": "failed"} if "error" in answer else answer

    def _asked(self, request: Any, timeout: float | None) -> Answer:
        process = self._process or self._start()
        try:
            answer = self._answer(process, request, time.monotonic() + (self.timeout if timeout is None else timeout))
        except BaseException:  # Ctrl-C too: its answer would be taken for that of the next request
            self.close()
            raise
        if "error" in answer and not self.lasting:
            self.close()
        return answer

    def _start(self) -> subprocess.Popen[bytes]:
        log: IO[bytes] | int | None = self.log.open("ab") if isinstance(self.log, Path) else self.log
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
                start_new_session=True,  # so that Ctrl-C reaches only the process that asks
                preexec_fn=bind if self.bound else None,
            )
        except OSError as problem:
            if problem.errno not in _NOT_STARTED:
                raise
            raise EnvironmentProblem(f"this needs a process of its own, and {self.command[0]} does not start: {problem}") from problem
        finally:
            if log is not None and not isinstance(log, int):
                log.close()
        # a process that ends while nobody asks it anything would stay in the table of processes until somebody does
        threading.Thread(target=self._process.wait, name="tvm_orient waits for a process", daemon=True).start()
        self._rest = b""
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], request: Any, end: float) -> Answer:
        if process.stdin is None or process.stdout is None:
            raise Died(process.wait())
        with contextlib.suppress(BrokenPipeError):  # it is dead, which reading says better
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.flush()
        while b"\n" not in self._rest:
            if not _readable(process.stdout, end - time.monotonic()):
                raise TimeoutError
            got = os.read(process.stdout.fileno(), 1 << 20)
            if not got:
                raise Died(process.wait())
            self._rest += got
        line, _, self._rest = self._rest.partition(b"\n")
        return dict(json.loads(line))

    def kill(self) -> None:
        """Ends the process and whatever it started; a thread that waits for its answer gets `Died`."""
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """Ends the process and whatever it started."""
        if self._process is None:
            return
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def module_command(module: str) -> list[str]:
    """Returns the command line of a process that runs a module by its dotted name; with `environment` it finds what this process can import.

    The working folder is no place that it imports from.

    Raises:
        EnvironmentProblem: as `interpreter`.
    """
    return [interpreter(), "-P", "-m", module]


def environment(first: Sequence[Path] = (), **variables: str) -> dict[str, str]:
    """Returns the environment of a process that imports what this one does: this process's, with the folders that it imports from in PYTHONPATH.

    Args:
        first: folders that come before those.
        variables: further ones by name, which rule.
    """
    # the first entry of sys.path is the script's folder, or empty: the working folder
    places = dict.fromkeys([*map(str, first), *(path or os.curdir for path in sys.path)])
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places), **variables}


def bind() -> None:
    """Binds a process that was just made, before it becomes a command, to the one that made it: the kernel ends it when the thread that made it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def interpreter() -> str:
    """Returns the Python that processes of their own are run by: what `multiprocessing` was told, or this program's own.

    Raises:
        EnvironmentProblem: this program is no Python, as where one is embedded or frozen into it, and none lies beside its libraries.
    """
    given = multiprocessing.spawn.get_executable()  # a path, in bytes or text, or None
    told = None if given is None else os.fsdecode(given)
    prefix = Path(sys.exec_prefix) / "bin"
    beside = [str(prefix / f"python{sys.version_info.major}.{sys.version_info.minor}"), str(prefix / "python3")]
    for place in [told or "", *([] if getattr(sys, "frozen", False) else beside)]:
        if Path(place).name.lower().startswith(("python", "pypy")) and (place == sys.executable or Path(place).exists()):
            return place
    raise EnvironmentProblem(
        f"compiling needs a process of Python, and this program ({told!r}) is none: call multiprocessing.set_executable with the path of one that has "
        "the same packages, or bring kernels that were built before (TVM_ORIENT_SHARED_CACHE)"
    )


def _readable(stream: IO[Any], seconds: float) -> bool:
    """Returns whether there is something to read within so many seconds. select would refuse a descriptor beyond 1024, as a server has them."""
    with getattr(selectors, "PollSelector", selectors.DefaultSelector)() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while seconds > _MAX_WAIT_S:
            if selector.select(_MAX_WAIT_S):
                return True
            seconds -= _MAX_WAIT_S
        return bool(selector.select(max(0.0, seconds)))


def serve(answer: Callable[[Any], Answer], idle: float | None = None) -> None:
    """Answers requests, until standard input ends, or nothing was asked for so many seconds; what answer raises becomes {"error": kind and text}.

    Whatever a library prints goes to standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in _asked(idle):
        try:
            given = answer(json.loads(line))
        except Exception as problem:  # who asked decides what a failure means
            given = {"error": f"{type(problem).__name__}: {str(problem).strip()[:_MAX_SAID]}"}
        answers.write(json.dumps(given) + "\n")
        answers.flush()


def _asked(idle: float | None) -> Iterator[str]:
    """Yields the lines of standard input: one is written when the one before it was answered, so none waits in a buffer."""
    while idle is None or _readable(sys.stdin, idle):
        line = sys.stdin.readline()
        if not line:
            return
        yield line
