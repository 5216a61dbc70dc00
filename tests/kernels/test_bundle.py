"""Export: folders that another machine can load."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm_ffi

from tvm_orient.evaluate import reference, tolerance
from tvm_orient.kernels import bundle
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.sass.cubin import kernels


@pytest.mark.parametrize("op", ["conv", "conv_dw"])
def test_cuda_export_holds_the_cubin(op: str, tmp_path: Path) -> None:
    spec = ConvSpec(op, 8, 14, 14, Taps.oriented([0.0, 0.8], 7))
    folder = bundle.export(spec, arch_device("sm_90a"), tmp_path)
    assert {p.name for p in folder.iterdir()} == {"kernel.so", "kernel.cubin", "kernel.cu", "how.json"}
    cubin, library = (folder / "kernel.cubin").read_bytes(), (folder / "kernel.so").read_bytes()
    assert cubin in library, "the module holds source, which the receiver would have to compile"
    assert b"__global__" not in library
    how = json.loads((folder / "how.json").read_text())
    facts = how["facts"]
    assert facts["spec"] == how["key"]["spec"] == spec.key
    assert how["key"]["arch"] == "sm_90a"
    assert [k["name"] for k in facts["kernels"]] == [k.name for k in kernels(cubin)]
    assert all(k["spills"] == 0 and k["registers"] > 0 for k in facts["kernels"])
    assert ("workspace" in facts) == (op == "conv_dw")


def test_a_gpu_after_a_cpu(tmp_path: Path) -> None:
    """One process that compiles for both would have loaded TVM without a driver, and TVM then keeps CUDA source where a cubin belongs."""
    spec = ConvSpec("conv", 4, 7, 7, Taps.oriented(0.0, 3))
    bundle.export(spec, cpu_device(), tmp_path / "cpu")
    folder = bundle.export(spec, arch_device("sm_90a"), tmp_path / "cuda")
    assert (folder / "kernel.cubin").read_bytes() in (folder / "kernel.so").read_bytes()
    bundle.export(spec, cpu_device(), tmp_path / "again")


def test_cpu_export_and_replacement(tmp_path: Path) -> None:
    spec = ConvSpec("conv", 4, 7, 7, Taps.oriented(0.0, 3))
    first = bundle.export(spec, cpu_device(), tmp_path)
    (first / "how.json").write_text("spoiled")
    assert bundle.export(spec, cpu_device(), tmp_path) == first
    assert json.loads((first / "how.json").read_text())["facts"]["spec"] == spec.key
    assert [p.name for p in tmp_path.iterdir()] == [first.name], "a temporary folder stayed behind"


PAGE = Path(__file__).resolve().parents[2] / "docs" / "api" / "build.rst"


def test_the_page_shows_how_a_folder_is_used(tmp_path: Path) -> None:
    folder = bundle.export(ConvSpec("conv", 4, 7, 6, Taps.oriented([0.0, 0.8], 3)), cpu_device(), tmp_path)
    found = re.search(r"code-block:: python\n\n((?:   .*\n|\n)+)", PAGE.read_text())
    assert found
    code, stands_for = textwrap.dedent(found[1]), "kernels/conv-0123456789abcdef"
    assert stands_for in code
    named: dict[str, Any] = {}
    exec(code.replace(stands_for, str(folder)), named)
    given = named["x"], named["weight"]
    assert float((named["y"].double() - reference.run(named["spec"], *given)).abs().max()) <= tolerance.tolerance(named["spec"], 8, *given)


CASES = [("conv", "nchw", False), ("conv", "nhwc", True), ("conv_dx", "nchw", False), ("conv_dw", "nchw", False), ("conv_dw", "nhwc", False)]


@pytest.mark.parametrize(("op", "layout", "bias"), CASES)
def test_the_signature_is_what_main_takes(op: str, layout: str, bias: bool, tmp_path: Path) -> None:
    """Called without anything of ours, on tensors made from the signature alone."""
    spec = ConvSpec(op, 4, 7, 6, Taps.oriented(0.4, 3), stride=(2, 1), layout=layout, bias=bias)
    folder = bundle.export(spec, cpu_device(), tmp_path)
    signature = json.loads((folder / "how.json").read_text())["facts"]["signature"]
    assert [one["name"] for one in signature] == {
        "conv": ["x", "weight", *(["bias"] if bias else []), "y"], "conv_dx": ["dy", "weight", "dx"], "conv_dw": ["x", "dy", "workspace", "dweight"]
    }[op]  # fmt: skip
    batch = 3
    tensors = [torch.randn([batch if extent == "N" else extent for extent in one["shape"]], dtype=getattr(torch, one["dtype"])) for one in signature]
    tensors[-1].fill_(float("nan"))
    tvm_ffi.load_module(str(folder / "kernel.so"))["main"](*tensors)
    *given, out = (t.permute(0, 3, 1, 2) if layout == "nhwc" and t.dim() == 4 else t for t in tensors)
    given = given[: 3 if bias else 2]
    assert float((out.double() - reference.run(spec, *given)).abs().max()) <= tolerance.tolerance(spec, batch, *given)


def test_the_generic_kernel_has_no_signature(tmp_path: Path) -> None:
    spec = ConvSpec("conv", 2, 5, 5, Taps.oriented(0.0, 257))  # more taps than a CPU template unrolls
    assert json.loads((bundle.export(spec, cpu_device(), tmp_path) / "how.json").read_text())["facts"]["signature"] is None
