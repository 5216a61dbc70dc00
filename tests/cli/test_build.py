"""tvm-orient build and cache: kernels built, exported, listed and removed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import TINY, fake, orient, printed_json
from tvm_orient.errors import TuningFailed
from tvm_orient.problem.spec import ConvSpec


def test_build_fills_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    (row,) = printed_json("build", "--target", "cpu", *TINY, "--angles", "0")["kernels"]
    assert row["error"] is None
    assert (Path(row["folder"]) / "kernel.so").is_file()
    assert Path(row["folder"]).name in orient("build", "--target", "cpu", *TINY, "--angles", "0").stdout
    listed = printed_json("cache", "list")
    assert [how["name"] for how in listed["entries"]] == [Path(row["folder"]).name]
    assert listed["parts"]["count"] == 1
    assert listed["parts"]["bytes"] > 0
    assert "1 kernels" in orient("cache", "list").stdout
    assert "and 1 compiled parts of kernels" in orient("cache", "list").stdout
    assert "removed 0 kernels and 0 compiled parts of kernels" in orient("cache", "clear", "--older", 1).stdout
    for path in (Path(row["folder"]) / "how.json", *(tmp_path / "kernels" / "parts").iterdir()):
        os.utime(path, (0, time.time() - 3 * 86400))
    for age in ("4", "4d", "73h"):
        assert printed_json("cache", "clear", "--older", age)["removed"] == 0
    assert "--older takes a number with the unit d, h or m" in orient("cache", "clear", "--older", "long ago", code=2).stderr
    assert printed_json("cache", "clear", "--older", "71h") == {"directory": str(tmp_path / "kernels"), "removed": 1, "parts": 1}
    orient("build", "--target", "cpu", *TINY, "--angles", "0")
    assert printed_json("cache", "clear") == {"directory": str(tmp_path / "kernels"), "removed": 1, "parts": 1}
    assert "0 kernels" in orient("cache", "list").stdout


def test_build_exports_for_real(tmp_path: Path) -> None:
    (row,) = printed_json("build", "--target", "cpu", *TINY, "--angles", "0", "-o", tmp_path / "kernels")["kernels"]
    folder = Path(row["folder"])
    assert folder.parent == tmp_path / "kernels"
    assert {"kernel.so", "how.json"} <= {file.name for file in folder.iterdir()}
    assert row["bytes"] == sum(file.stat().st_size for file in folder.iterdir())


def test_one_failed_build_does_not_stop_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(spec: ConvSpec, device: Any, directory: Path) -> Path:
        if spec.op == "conv":
            raise TuningFailed("no luck")
        folder = directory / spec.op
        folder.mkdir(parents=True)
        (folder / "kernel.so").write_bytes(b"12345")
        return folder

    fake(monkeypatch, "kernels.bundle", export=export)
    result = orient("build", "--arch", "sm_90a", *TINY, "--op", "all", "-o", tmp_path, "--json", code=1)
    rows = json.loads(result.stdout)["kernels"]
    assert [(row["bytes"], row["error"]) for row in rows] == [(0, "no luck"), (5, None), (5, None)]
    assert "no luck" in result.stderr
