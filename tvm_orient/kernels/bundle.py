"""Export ahead of time: kernels are written to folders that can be carried to another machine, for a CPU or for a GPU that need not be here.

Each kernel is compiled in a process of its own (`compile_process`); for a CUDA kernel that process may have a stand-in for the driver (`driverless`).
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import EnvironmentProblem
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..sass.cubin import kernels
from ..schedules.choices import is_generic
from . import manifest
from .build_key import build_key
from .layer_build import compiled
from .resolve import explain


def export(spec: ConvSpec, device: Device, directory: Path) -> Path:
    """Writes the kernel of a spec to <directory>/<op>-<digest>: kernel.so, how.json (`tvm_orient.kernels.manifest`), and for CUDA kernel.cubin and kernel.cu.

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
        facts |= {"spec": spec.key, "device": device.slug, "signature": None if is_generic(choices) else signature(spec, facts.get("workspace"))}
        if device.kind == "cuda":
            facts["kernels"] = _code((folder / "kernel.cubin").read_bytes())
        manifest.seal(folder, key.name, dataclasses.asdict(key), facts)
        folder.chmod(0o755)
        if final.exists():
            shutil.rmtree(final)
        os.replace(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return final


def signature(spec: ConvSpec, workspace: Sequence[int] | None) -> list[dict[str, Any]]:
    """Returns the parameters of the function "main" in a kernel.so, in order, each with its name, its shape (N for the batch size) and its dtype.

    The result is the last one, after a workspace where there is one. All are contiguous; images of a spec in nhwc are (N, H, W, C).

    Args:
        workspace: (bands, taps), as how.json says it for conv_dw; None for the others.
    """
    space = (workspace[0], workspace[1]) if workspace else (0, 0)
    return [{"name": operand.name, "shape": list(operand.shape), "dtype": operand.dtype} for operand in spec.operands("N", space)]


def _code(cubin: bytes) -> list[dict[str, Any]]:
    """Reads from a cubin what people ask of its code: name, registers, spills, shared memory and instructions of each kernel."""
    return [
        {"name": k.name, "registers": k.registers, "spills": k.spills, "shared": k.shared, "instructions": k.instructions, "shared_loads": k.count("LDS")}
        for k in kernels(cubin)
    ]
