"""What the tests of serving share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.serving import CPU, Gate, spec_at
from tvm_orient.kernels import compile_process
from tvm_orient.runtime import makings, serving
from tvm_orient.schedules import choices


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels of their own from the second call on; the generic one is in the session's cache."""
    monkeypatch.setenv("TVM_ORIENT_BUILD", "2")
    monkeypatch.setattr(compile_process, "_LOWEST", 0)  # beside other tests the lowest priority is none
    serving.forget()
    serving.load(spec_at(1), CPU, choices.generic_choices(spec_at(1), CPU))
    yield
    assert makings.current().wait(timeout=60)
    serving.forget()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """A compiler that waits until the test lets it go."""
    made = Gate(serving.acquire)
    monkeypatch.setattr(serving, "acquire", made.acquire)
    yield made
    made.open()
    assert makings.current().wait(timeout=60)
