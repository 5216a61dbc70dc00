"""What the tests of serving share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.serving import CPU, spec_at
from tvm_orient.runtime import serving
from tvm_orient.schedules import choices


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels of their own from the second call on; the generic one is in the session's cache."""
    monkeypatch.setenv("TVM_ORIENT_BUILD", "2")
    serving.forget()
    serving.load(spec_at(1), CPU, choices.generic_choices(spec_at(1), CPU))
    yield
    serving.forget()
