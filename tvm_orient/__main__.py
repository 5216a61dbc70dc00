"""python -m tvm_orient is tvm-orient."""

from __future__ import annotations

from .cli import app

app(prog_name="tvm-orient")
