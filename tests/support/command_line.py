"""The command line in this process or in one of its own, and a record that this machine accepts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tvm_orient.cli.application import app
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.records.record import Record
from tvm_orient.schedules import registry

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "FORCE_COLOR": None, "GITHUB_ACTIONS": None, "PY_COLORS": None}
TINY = ("--channels", "8", "--height", "6", "--width", "5", "--kernel-size", "3")
KEY = "conv-c8h6w5-s1-zeros-float32-nchw-k3a0"
VERBS = ["doctor", "show", "tune", "build", "explain", "check", "bench", "demo"]
VERBS += ["logs", "logs where", "logs list", "logs show", "logs check", "logs merge", "logs prune", "cache", "cache list", "cache clear"]


def orient(*args: object, code: int = 0) -> Result:
    """What `tvm-orient ARGS` does, in this process; its exit code must be code."""
    result = CliRunner(env=PLAIN).invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, f"exit {result.exit_code}\n{result.output}\n{result.exception!r}"
    assert "Traceback" not in result.output
    return result


def printed_json(*args: object, code: int = 0) -> Any:
    """The JSON that a verb prints: all of its standard output."""
    return json.loads(orient(*args, "--json", code=code).stdout)


def real(*args: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """The same as a process of its own."""
    env = {**os.environ, **{name: value for name, value in PLAIN.items() if value is not None}}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=60, **how)


def keys(*args: object) -> list[str]:
    """The keys of the specs that these options make."""
    return [answer["spec"] for answer in printed_json("explain", "--target", "cpu", *args)["specs"]]


def record(key: str = KEY, median_us: float = 10.0, **fields: Any) -> Record:
    """A record that this machine's CPU accepts."""
    template, config = registry.default(ConvSpec.from_key(key), cpu_device())
    made = {
        "spec": key, "template": template.name, "template_version": template.version, "decisions": config.decisions(), "device": cpu_device().slug,
        "median_us": median_us, "spread_us": 0.1, "default_us": 20.0, "floor_us": 1.0, "error": 1e-6,
        "provenance": {"date": "2026-11-21", "cc": cpu_device().arch, "units": cpu_device().units},
    }  # fmt: skip
    return Record(**{**made, **fields})


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **contents: Any) -> None:
    """Put a module of the package aside for a made up one; name: its dotted path below tvm_orient."""
    module = types.ModuleType(f"tvm_orient.{name}")
    vars(module).update(contents)
    monkeypatch.setitem(sys.modules, f"tvm_orient.{name}", module)
