"""tvm-orient demo: its code is passed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import fake, orient


def test_demo_passes_its_code_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = []
    fake(monkeypatch, "tools.demo", run=lambda out, trials, console: seen.append((out, trials)) or 1)
    orient("demo", "-o", tmp_path, "--trials", 3, code=1)
    assert seen == [(tmp_path, 3)]
