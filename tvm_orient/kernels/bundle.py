"""Ahead of time: kernels in folders that can be carried to another machine, for a CPU here or a GPU that need not be here.

Each is made in a process of its own (`compile_process`); that of a CUDA kernel may have a stand-in for the driver (`driverless`).
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem
from ..problem.device import Device
from ..problem.spec import ConvSpec, image_shape, part_shape
from ..sass import cubin as sass_cubin
from ..schedules.choices import is_generic
from .build_key import build_key
from .compile_process import compiled
from .resolve import explain


def export(spec: ConvSpec, device: Device, directory: Path) -> Path:
    """Write the kernel of a spec to <directory>/<op>-<digest>: kernel.so, how.json, and for CUDA kernel.cubin and kernel.cu.

    The choices are those of the logs, as for a call. An existing folder of that name is replaced whole.

    Args:
        device: this machine's, or one of `tvm_orient.problem.device.arch_device`: the GPU need not be here.

    Returns:
        The folder.

    Raises:
        Unsupported: as `tvm_orient.kernels.build.build`.
        BuildFailed: as `tvm_orient.kernels.build.build`.
        EnvironmentProblem: a compiler is missing, or the directory cannot be written.
    """
    choices = tuple(e.choice for e in explain(spec, device))
    key = build_key(spec, device, choices)
    final = Path(directory) / key.name
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{key.name}-", dir=final.parent))
    except OSError as problem:
        raise EnvironmentProblem(f"{directory} cannot be written ({problem}): choose another -o DIR") from problem
    try:
        facts = compiled(spec, device, choices, folder, sources=device.kind == "cuda")
        if device.kind == "cuda":
            facts["kernels"] = _code((folder / "kernel.cubin").read_bytes())
        chosen = [{"template": c.template, "version": c.version, "decisions": dict(c.decisions), "step": c.step} for c in choices]
        how = {
            "spec": spec.key, "device": device.slug, "arch": device.arch, "model": device.model, "features": device.features, "choices": chosen,
            "toolchain": dict(key.toolchain), "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "signature": None if is_generic(choices) else signature(spec, facts.get("workspace")), **facts,
        }  # fmt: skip
        (folder / "how.json").write_text(json.dumps(how, indent=2) + "\n")
        folder.chmod(0o755)
        if final.exists():
            shutil.rmtree(final)
        os.replace(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def signature(spec: ConvSpec, workspace: Sequence[int] | None) -> list[dict[str, Any]]:
    """The parameters of the function "main" in a kernel.so, in order: name, shape with N for the batch size, dtype; results are the last, workspaces before.

    All are contiguous; images of a spec in nhwc are (N, H, W, C).

    Args:
        workspace: (bands, taps), as how.json says it for conv_dw; None for the others.
    """
    x, y, w = image_shape(spec, "N", output=False), image_shape(spec, "N", output=True), (spec.channels, spec.kernel_size)
    given = {
        "conv": [("x", x, spec.dtype), ("weight", w, spec.dtype), *([("bias", w[:1], spec.dtype)] if spec.bias else []), ("y", y, spec.dtype)],
        "conv_dx": [("dy", y, spec.dtype), ("weight", w, spec.dtype), ("dx", x, spec.dtype)],
        "conv_dw": [("x", x, spec.dtype), ("dy", y, spec.dtype), ("workspace", part_shape(spec, "N", _pair(workspace)), spec.sums), ("dweight", w, spec.sums)],
    }[spec.op]
    return [{"name": name, "shape": list(shape), "dtype": dtype} for name, shape, dtype in given]


def _pair(workspace: Sequence[int] | None) -> tuple[int, int]:
    return (workspace[0], workspace[1]) if workspace else (0, 0)


def _code(cubin: bytes) -> list[dict[str, Any]]:
    """What people ask of the machine code of a layer, by kernel."""
    return [
        {"name": k.name, "registers": k.registers, "spills": k.spills, "shared": k.shared, "instructions": k.instructions, "shared_loads": k.count("LDS")}
        for k in sass_cubin.kernels(cubin)
    ]
