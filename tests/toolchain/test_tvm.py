"""TVM in a process that compiles: torch, whose import takes longer than TVM's, stays out of it, and may come later."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import dataclasses, json, os, sys
from pathlib import Path
from tvm_orient.kernels import compile_process
from tvm_orient.bench import grids
from tvm_orient.compiler.parts import placed_parts
from tvm_orient.problem.device import device_for
from tvm_orient.schedules.choices import default_choices

spec, device = grids.spec("conv_dw", (8, 7, 7), 3, (45.0,)), device_for(sys.argv[1])
(placed,) = placed_parts(spec, default_choices(spec, device), device)
request = {"part": placed.part.plain, "device": dataclasses.asdict(device), "folder": sys.argv[2], "path": sys.argv[2] + "/made.part"}
assert compile_process._answer(request) == {"facts": {}}, compile_process._answer(request)
request = {"spec": spec.key, "sources": False, "choices": [placed.part.choice.plain], "parts": [[placed.part.plain, request["path"]]], **request}
del request["part"]
assert compile_process._answer(request)["facts"]["workspace"]
assert "torch" not in sys.modules
import torch
assert torch.ones(2).sum() == 2
print("ended", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("target", ["cpu", "sm_90a"])
def test_a_compiler_does_without_torch(target: str, tmp_path: object) -> None:
    done = subprocess.run([sys.executable, "-c", CODE, target, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
