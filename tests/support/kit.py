"""A kit's jobs and its one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tvm_orient.problem.device import cpu_device

ROOT = Path(__file__).resolve().parents[2]
Job = dict[str, Any]
SLUG = cpu_device().slug
# what stands in for benchmarks/gpu/work.py where only the run itself is tested: it answers at once
INSTANT = """
import time
from tvm_orient.toolchain.worker import serve
device = dict(kind="cpu", name="a card", slug="a-card", arch="avx2", units=1, shared_memory=0, vector_bytes=32, index=0)
def answer(request):
    if request["do"] == "facts":
        return {"device": device, "torch": "2", "hardware": "a card", "python": "3"}
    time.sleep(PAUSE)
    return {"median": 1e-6, "spread": 0.0, "gbps": 1.0, "error_of": 0.0, "default": 2e-6, "line": "fine"}
serve(answer)
"""


def run_kit(kit: Path, *options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """The kit's own command, with nothing of this checkout in its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TVM_ORIENT", "PYTHONPATH", "OUT"))}
    command = [sys.executable, str(kit / "run.py"), "--target", "cpu", *options]
    given = environment | ({"PATH": path} if path else {})
    return subprocess.run(command, capture_output=True, text=True, check=False, env=given, cwd=kit.parent, timeout=250)


def jobs_of(kit: Path, part: str = "") -> list[Job]:
    """The jobs of a kit whose part begins so."""
    found = [json.loads(line) for line in (kit / "jobs.jsonl").read_text().splitlines()]
    return [job for job in found if job["part"].startswith(part)]


def keep(kit: Path, jobs: list[Job]) -> None:
    """Leave these jobs in a kit."""
    (kit / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
