"""What the tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def user_logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private folder of tuning logs."""
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path / "logs"))
    return tmp_path / "logs"
