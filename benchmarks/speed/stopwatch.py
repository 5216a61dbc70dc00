"""Measure the stages of compiling in one process: functions of the product are timed where they are looked up, and so is every pass of TVM.

A stage's time is exclusive: what a stage inside it takes is not counted again, so that all stages add up to the whole.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from tvm_orient.codegen.cuda import passes  # noqa: F401  (the modules of the rewrites are imported before their functions are replaced)
from tvm_orient.codegen.tir import fuse_groups, launch_stub, part_functions
from tvm_orient.compiler import compile_part, layer, library, lower
from tvm_orient.schedules import registry
from tvm_orient.toolchain import nvrtc
from tvm_orient.toolchain.tvm import load_tvm

CHOOSE = "choose schedules"
TE = "TE and scheduling"
OUR_TIR = "our rewrites of TIR"
OUR_CUDA = "our rewrites of CUDA source"
GENERATE = {"cpu": "LLVM", "cuda": "code generation"}  # by kind of device; LLVM's own code is made, optimized and written as machine code
TO_PTX = "NVRTC, to PTX"
TO_CODE = {"apart": "assemble PTX", "merged": "NVRTC, to machine code"}  # by how a layer is compiled
LINK = "link"
REST = "rest"
PASS = "pass "  # what the name of a pass begins with


class Stopwatch:
    """Seconds by stage, exclusive, of what happens while it is started."""

    def __init__(self) -> None:
        """Starts with nothing measured."""
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []  # stages that have begun, and when the innermost one was last looked at

    def begin(self, stage: str) -> None:
        """Begins a stage inside the one that is under way."""
        self._pass_to_here()
        self._open.append((stage, time.perf_counter()))

    def end(self) -> None:
        """Ends the innermost stage."""
        self._pass_to_here()
        self._open.pop()
        if self._open:
            self._open[-1] = (self._open[-1][0], time.perf_counter())

    def _pass_to_here(self) -> None:
        if self._open:
            stage, since = self._open[-1]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - since

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what happens in the context for a stage."""
        self.begin(name)
        try:
            yield
        finally:
            self.end()

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function whose calls count for a stage."""

        def call(*given: Any, **named: Any) -> Any:
            with self.stage(name):
                return function(*given, **named)

        return call


def _instrument(watch: Stopwatch) -> Any:
    """Returns what TVM tells of each pass that begins and ends."""
    tvm = load_tvm()

    @tvm.instrument.pass_instrument
    class Passes:
        """Tells a stopwatch of passes."""

        def run_before_pass(self, _module: Any, info: Any) -> None:
            """Begins the stage of a pass."""
            watch.begin(PASS + str(info.name))

        def run_after_pass(self, _module: Any, _info: Any) -> None:
            """Ends it."""
            watch.end()

    return Passes()


@contextlib.contextmanager
def watched(kind: str, how: str) -> Iterator[Stopwatch]:
    """Yields a stopwatch of all that is compiled in the context.

    Args:
        kind: of device, "cpu" or "cuda".
        how: "apart" where the parts of a layer are compiled and assembled, "merged" where it is one module.
    """
    tvm, watch = load_tvm(), Stopwatch()
    instruments = [_instrument(watch)]
    context = tvm.transform.PassContext
    begin = context.__init__

    def with_passes(self: Any, *given: Any, **named: Any) -> None:
        begin(self, *given, **{"instruments": instruments, **named})

    places: list[tuple[Any, str, str]] = [
        (compile_part, "schedule_part", TE), (lower, "schedule_part", TE), (fuse_groups, "merge", OUR_TIR),
        (part_functions, "part_functions", OUR_TIR), (part_functions, "with_scratch", OUR_TIR), (part_functions, "layer_function", OUR_TIR),
        (launch_stub, "launch_stub", OUR_TIR), *((template, "finish", OUR_TIR) for template in registry.TEMPLATES),
        (tvm, "compile", GENERATE[kind]), (tvm.runtime.Module, "write_to_file", GENERATE[kind]), (library, "finished", OUR_CUDA),
        (nvrtc, "compile_ptx", TO_PTX), (nvrtc, "compile_cubin", TO_CODE[how]), (layer, "export", LINK), (library, "export", LINK),
    ]  # fmt: skip
    with contextlib.ExitStack() as replaced:
        for place, name, stage in places:
            replaced.enter_context(mock.patch.object(place, name, watch.timed(stage, getattr(place, name))))
        replaced.enter_context(mock.patch.object(context, "__init__", with_passes))
        replaced.enter_context(context())  # for what opens none of its own
        with watch.stage(REST):
            yield watch
