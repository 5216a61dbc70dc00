"""Export: folders that another machine can load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tvm_orient import aot, sass
from tvm_orient.device import arch_device, cpu_device
from tvm_orient.spec import ConvSpec
from tvm_orient.taps import Taps


@pytest.mark.parametrize("op", ["conv", "conv_dw"])
def test_cuda_export_holds_the_cubin(op: str, tmp_path: Path) -> None:
    spec = ConvSpec(op, 8, 14, 14, Taps.oriented([0.0, 0.8], 7))
    folder = aot.export(spec, arch_device("sm_90a"), tmp_path)
    assert {p.name for p in folder.iterdir()} == {"kernel.so", "kernel.cubin", "kernel.cu", "how.json"}
    cubin, library = (folder / "kernel.cubin").read_bytes(), (folder / "kernel.so").read_bytes()
    assert cubin in library, "the module holds source, which the receiver would have to compile"
    assert b"__global__" not in library
    how = json.loads((folder / "how.json").read_text())
    assert how["spec"] == spec.key
    assert how["arch"] == "sm_90a"
    assert [k["name"] for k in how["kernels"]] == [k.name for k in sass.kernels(cubin)]
    assert all(k["spills"] == 0 and k["registers"] > 0 for k in how["kernels"])
    assert ("workspace" in how) == (op == "conv_dw")


def test_cpu_export_and_replacement(tmp_path: Path) -> None:
    spec = ConvSpec("conv", 4, 7, 7, Taps.oriented(0.0, 3))
    first = aot.export(spec, cpu_device(), tmp_path)
    (first / "how.json").write_text("spoiled")
    assert aot.export(spec, cpu_device(), tmp_path) == first
    assert json.loads((first / "how.json").read_text())["spec"] == spec.key
    assert [p.name for p in tmp_path.iterdir()] == [first.name], "a temporary folder stayed behind"
