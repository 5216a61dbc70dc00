"""python -m tvm_orient is tvm-orient."""

from __future__ import annotations

from .cli.application import app

app(prog_name="tvm-orient")
