"""A problem that nothing else builds, and what must not be called."""

from __future__ import annotations

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
