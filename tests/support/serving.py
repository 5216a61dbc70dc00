"""A problem that nothing else builds, and what must not be called."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from tests.support.helpers import line, spec_of
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec

CPU = cpu_device()


def spec_at(width: int) -> ConvSpec:
    """A small problem for each width."""
    return spec_of("conv", 3, 5, width, line(45, k=5))


def never(*_: Any, **__: Any) -> Any:
    """Fail the test: in the place of what compiles."""
    pytest.fail("it was compiled")


class Gate:
    """Holds back whoever makes a kernel of its own until it is opened.

    Attributes:
        begun: somebody has come.
        wanted: the problems for which somebody came, in order.
    """

    def __init__(self, acquire: Any) -> None:
        self.begun, self.wanted, self._open, self._acquire = threading.Event(), list[ConvSpec](), threading.Event(), acquire

    def acquire(self, spec: ConvSpec, *rest: Any) -> Any:
        """Stands for serving.acquire."""
        self.wanted.append(spec)
        self.begun.set()
        assert self._open.wait(60)
        return self._acquire(spec, *rest)

    def open(self) -> None:
        """Let everybody through from now on."""
        self._open.set()
