"""What bad input gets: an error of the package's own family that names the rule and the value, before any work."""

from __future__ import annotations

import importlib.metadata
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_orient as to
from tests.support.helpers import line, spec_of
from tvm_orient import errors, ops
from tvm_orient.compiler import library, lower
from tvm_orient.kernels import build, layer_build
from tvm_orient.ops import checks
from tvm_orient.problem.device import arch_device, cpu_device, device_for
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import loader, serving
from tvm_orient.schedules import registry
from tvm_orient.schedules.choices import Choice
from tvm_orient.toolchain import nvrtc, tvm

X, W = torch.randn(2, 6, 8, 9), torch.randn(6, 5)
KEY = line(0, 45, k=5).key


@pytest.fixture(autouse=True)
def _nothing_is_built(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any work: a test here that compiles something fails, but for those that are about compiling."""
    if "compiles" not in request.fixturenames:
        monkeypatch.setattr(serving, "build", lambda *_, **__: pytest.fail("a kernel was asked for"))


@pytest.fixture
def compiles() -> None:
    """Marks a test that may ask for a kernel."""


def conv(**change: Any) -> torch.Tensor:
    given: dict[str, Any] = {"x": X, "weight": W, "theta": [0.0, 0.7], **change}
    return to.oriented_conv2d(**given)


def taps_of(**change: Any) -> torch.Tensor:
    given: dict[str, Any] = {"x": X, "weight": W, "taps": line(0, 45, k=5), **change}
    return to.tap_conv2d(**given)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    # rank
    "x of rank 2": (lambda: conv(x=X[0, 0]), r"x must .*\(N, C, H, W\) or \(C, H, W\), got \(8, 9\)"),
    "x of rank 5": (lambda: conv(x=X[None]), r"x must .*got \(1, 2, 6, 8, 9\)"),
    "x is an array": (lambda: conv(x=X.numpy()), r"x must be a torch.Tensor, got ndarray: use torch.from_numpy\(x\)"),
    "x is None": (lambda: conv(x=None), "x must be a torch.Tensor, got NoneType"),
    "x is sparse": (lambda: conv(x=X.to_sparse()), r"x must be a dense tensor, got one of layout torch.sparse_coo: use x.to_dense\(\)"),
    "x is sparse by rows": (lambda: conv(x=X.to_sparse_csr()), r"x must be a dense tensor.*torch.sparse_csr"),
    "x is mkldnn's": (lambda: conv(x=X.to_mkldnn()), r"x must be a dense tensor.*use x.to_dense\(\)"),
    "x is nested": (lambda: conv(x=torch.nested.nested_tensor([X[0], X[1]])), "x must be a dense tensor, got a nested one"),
    "x is quantized": (lambda: conv(x=torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)), r"got a quantized one: use x.dequantize\(\)"),
    "weight is sparse": (lambda: conv(weight=W.to_sparse()), r"weight must be a dense tensor.*use weight.to_dense\(\)"),
    "bias is sparse": (lambda: conv(bias=W[:, 0].to_sparse()), r"bias must be a dense tensor.*use bias.to_dense\(\)"),
    "bias is an array": (lambda: conv(bias=W[:, 0].numpy()), r"bias must be a torch.Tensor, got ndarray: use torch.from_numpy\(bias\)"),
    "taps: x of rank 2": (lambda: taps_of(x=X[0, 0]), r"x must .*got \(8, 9\)"),
    "taps: x is sparse": (lambda: taps_of(x=X.to_sparse()), r"x must be a dense tensor"),
    "taps: x is an array": (lambda: taps_of(x=X.numpy()), r"x must be a torch.Tensor, got ndarray: use torch.from_numpy\(x\)"),
    "no rows": (lambda: conv(x=X[:, :, :0]), r"C, H, W >= 1 .*got \(2, 6, 0, 9\)"),
    "no columns": (lambda: conv(x=X[..., :0]), r"C, H, W >= 1 .*got \(2, 6, 8, 0\)"),
    "weight of rank 1": (lambda: conv(weight=W[0]), r"weight must have shape \(C, K\) or \(C, 1, 1, K\), got \(5,\)"),
    "weight of rank 3": (lambda: conv(weight=W[:, None]), r"weight must have shape .*got \(6, 1, 5\)"),
    "weight (C, K, 1, 1)": (lambda: conv(weight=W[:, :, None, None]), r"weight must have shape .*got \(6, 5, 1, 1\)"),
    "weight is a list": (lambda: conv(weight=W.tolist()), r"weight must be a torch.Tensor, got list: use torch.tensor\(weight\)"),
    "bias of rank 2": (lambda: conv(bias=torch.zeros(6, 1)), r"bias must have shape \(6,\).*got \(6, 1\)"),
    "bias too short": (lambda: conv(bias=torch.zeros(5)), r"bias must have shape \(6,\).*got \(5,\)"),
    # channels
    "channels": (lambda: conv(weight=torch.randn(4, 5)), "x has 6 channels, weight 4"),
    "taps: channels": (lambda: taps_of(weight=torch.randn(4, 5)), "x has 6 channels, weight 4"),
    # K
    "even K": (lambda: conv(weight=torch.randn(6, 4)), "kernel_size must be odd.*got 4"),
    "K = 0": (lambda: conv(weight=torch.randn(6, 0)), "kernel_size must be a whole number >= 1, got 0"),
    "K of the wrong length": (lambda: taps_of(weight=torch.randn(6, 7)), "5 taps, weight has 7"),
    "taps: even K": (lambda: Taps.oriented(0.0, 6), "kernel_size must be odd.*got 6"),
    "taps: negative K": (lambda: Taps.oriented(0.0, -3), "kernel_size must be a whole number >= 1, got -3"),
    "taps: K is a float": (lambda: Taps.oriented(0.0, 3.0), "kernel_size must be .*got 3.0"),
    "taps is a key": (lambda: taps_of(taps=KEY), "taps must be a Taps, got str"),
    # theta
    "too many angles": (lambda: conv(theta=[0.0] * 7), r"1 <= G <= C = 6.*got shape \(7,\)"),
    "no angle": (lambda: conv(theta=[]), r"got shape \(0,\)"),
    "theta (1, C)": (lambda: conv(theta=torch.zeros(1, 6)), r"got shape \(1, 6\)"),
    "theta NaN": (lambda: conv(theta=[0.0, math.nan]), "theta must be finite.*got nan at position 1"),
    "theta infinite": (lambda: conv(theta=math.inf), "theta must be finite.*got inf"),
    "theta a NaN tensor": (lambda: conv(theta=torch.tensor([math.nan])), "theta must be finite.*got nan"),
    "theta too large for float32": (lambda: conv(theta=1e300), "theta must be finite.*got inf"),
    "theta is a word": (lambda: conv(theta="up"), "theta must be a number.*got 'up'"),
    "theta is None": (lambda: conv(theta=None), "theta must be .*(None|nan)"),
    "theta is complex": (lambda: conv(theta=[1j]), r"theta must be a number.*1j"),
    # options
    "stride 0": (lambda: conv(stride=0), "stride must be .*got 0"),
    "stride -1": (lambda: conv(stride=(1, -1)), r"stride must be .*got \(1, -1\)"),
    "stride of three": (lambda: conv(stride=(1, 1, 1)), r"stride must be .*got \(1, 1, 1\)"),
    "stride 1.5": (lambda: conv(stride=1.5), "stride must be .*got 1.5"),
    "stride True": (lambda: conv(stride=True), "stride must be .*got True"),
    "dilation 0": (lambda: conv(dilation=0), "dilation must be a whole number >= 1, got 0"),
    "padding_mode": (lambda: conv(padding_mode="same"), "padding_mode must be one of zeros, circular, got 'same'$"),
    "reflect": (lambda: conv(padding_mode="reflect"), r"one of zeros, circular, got 'reflect': pad x by torch.nn.functional.pad\(.*mode='reflect'\)"),
    "replicate": (lambda: taps_of(padding_mode="replicate"), r"got 'replicate': pad x by torch.nn.functional.pad\(.*mode='replicate'\)"),
    "anchor": (lambda: conv(anchor="end"), "anchor must be .*got 'end'"),
    # dtypes and devices
    "bytes": (lambda: conv(x=X.byte()), r"one dtype, got torch.uint8 and torch.float32: use x.float\(\) / 255"),
    "bytes all": (lambda: conv(x=X.byte(), weight=W.byte()), r"dtype must be one of .*got torch.uint8: use x.float\(\) / 255"),
    "weight of bytes": (lambda: conv(weight=W.byte()), r"got torch.float32 and torch.uint8: use weight.float\(\) / 255"),
    "integers for x": (lambda: conv(x=X.int()), r"got torch.int32 and torch.float32: use x.to\(weight.dtype\)"),
    "integers": (lambda: conv(x=X.int(), weight=W.int()), r"dtype must be one of .*got torch.int32: use x.to\(torch.float32\), and weight alike"),
    "complex": (lambda: conv(x=X.cfloat(), weight=W.cfloat()), "dtype must be one of .*got torch.complex64"),
    "two dtypes": (lambda: conv(weight=W.double()), r"one dtype, got torch.float32 and torch.float64: use weight.to\(x.dtype\)"),
    "bias of another dtype": (lambda: conv(bias=torch.zeros(6).double()), "one dtype, got torch.float32 and torch.float64"),
    "two devices": (lambda: conv(weight=W.to("meta")), "one device, got cpu and meta"),
    "bias on another device": (lambda: conv(bias=torch.zeros(6, device="meta")), "one device, got cpu and meta"),
    # the operators themselves
    "conv: channels": (lambda: ops.conv(X, W[:4], KEY, [1, 1], "zeros"), "x has 6 channels, weight 4"),
    "conv: no such taps": (lambda: ops.conv(X, W, "spoon", [1, 1], "zeros"), "not a taps key: 'spoon'"),
    "conv: stride": (lambda: ops.conv(X, W, KEY, [0, 1], "zeros"), r"stride must be .*got \(0, 1\)"),
    "conv: padding_mode": (lambda: ops.conv(X, W, KEY, [1, 1], "reflect"), "padding_mode must be .*got 'reflect'"),
    "conv_dx: plane": (lambda: ops.conv_dx(X, W, KEY, 8, 9, [2, 1], "zeros"), r"dy must have ceil\(8/2\) x ceil\(9/1\) = 4 x 9 pixels, got \(8, 9\)"),
    "conv_dx: stride": (lambda: ops.conv_dx(X, W, KEY, 8, 9, [0, 1], "zeros"), "stride must be"),
    "conv_dx: height": (lambda: ops.conv_dx(X, W, KEY, 0, 9, [1, 1], "zeros"), "got"),
    "conv_dw: plane": (lambda: ops.conv_dw(X, X[:, :, 1:], KEY, [1, 1], "zeros"), r"= 8 x 9 pixels, got \(7, 9\)"),
    "conv_dw: batch": (lambda: ops.conv_dw(X, X[:1], KEY, [1, 1], "zeros"), "x and dy must have the same N and C"),
    "conv_dw: stride": (lambda: ops.conv_dw(X, X, KEY, [1, 0], "zeros"), "stride must be"),
    "conv_dw: devices": (lambda: checks.dw_operands(X, X.to("meta"), (1, 1)), "one device, got cpu and meta"),  # torch would run the fake
    "conv_dw: dtypes": (lambda: ops.conv_dw(X, X.double(), KEY, [1, 1], "zeros"), "one dtype"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case: str) -> None:
    call, said = BAD[case]
    with pytest.raises(to.InvalidArgument, match=said):
        call()


def test_bad_arguments_under_compile() -> None:
    """Sizes are checked by the fake, so that compiling fails where calling would."""
    taps = line(0, k=5)
    for x, w, said in [(X, W[:4], "6 channels, weight 4"), (X, torch.randn(6, 7), "5 taps, weight has 7")]:
        torch._dynamo.reset()
        with pytest.raises(Exception, match=said):
            torch.compile(lambda x, w: to.tap_conv2d(x, w, taps), fullgraph=True, backend="eager")(x, w)


def test_operands_on_another_kind_of_device() -> None:
    with pytest.raises(to.Unsupported, match="on a CPU or a CUDA device, got meta"):
        loader.device_of(X.to("meta"))
    with pytest.raises(to.Unsupported, match="got meta"):
        to.warmup(spec_of("conv", 6, 8, 9, line(0, k=5)), "meta")


def test_targets_and_archs() -> None:
    with pytest.raises(to.InvalidArgument, match=r"unknown arch 'sm_12': choose one of sm_75, sm_80.*sm_121a"):
        arch_device("sm_12")
    with pytest.raises(to.InvalidArgument, match="unknown arch 'sm_90q'"):
        device_for("sm_90q")
    with pytest.raises(to.InvalidArgument, match=r"target must be auto, cpu, cuda or an arch.*got 'tpu'"):
        device_for("tpu")


def test_cuda_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.problem.device.cuda_devices", tuple)
    assert device_for("auto") == cpu_device()
    with pytest.raises(to.EnvironmentProblem, match=r"no CUDA GPU on this machine: .*--target cpu.*--arch sm_90a"):
        device_for("cuda")


# ---- this machine -------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.1.15", "0.1.13", "0.2.0", "1.0"])
def test_an_ffi_that_would_crash(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version if name == "apache-tvm-ffi" else real(name))
    with pytest.raises(to.EnvironmentProblem, match=rf"apache-tvm-ffi must be 0\.1\.14\.x .*got {version}: pip install"):
        tvm.check_ffi()


def test_no_ffi(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(to.EnvironmentProblem, match="apache-tvm-ffi is not installed: pip install"):
        tvm.check_ffi()


_OTHER_FFI = """
import importlib.metadata
import os
real = importlib.metadata.version
importlib.metadata.version = lambda name: "0.1.15" if name == "apache-tvm-ffi" else real(name)
import sys, torch, tvm_orient as to
try:
    to.oriented_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 3), 0.0)
except to.EnvironmentProblem as problem:
    print(problem)
print("tvm" in sys.modules)
"""


def test_an_ffi_that_would_crash_is_refused_before_it_can(tmp_path: Any) -> None:
    """In a fresh process, through the public function: tvm itself is never imported."""
    done = run(_OTHER_FFI, TVM_ORIENT_CACHE_DIR=str(tmp_path / "kernels"))
    assert "apache-tvm-ffi must be 0.1.14.x" in done
    assert done.endswith("False\n")


def run(code: str, **environment: str) -> str:
    """What a fresh process prints; fails with its error where it fails."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


_NO_TVM = """
import tvm_orient as to, torch
assert to.Taps.from_key("k3a0").kernel_size == 3
try:
    to.oriented_conv2d(torch.zeros(1, 1, 3, 3), torch.zeros(1, 3), 0.0)
except to.EnvironmentProblem as problem:
    print(problem)
"""


def test_no_compiler_at_hand(tmp_path: Any) -> None:
    """Where tvm is missing: what to install; keys work all the same."""
    (tmp_path / "tvm").mkdir()
    (tmp_path / "tvm" / "__init__.py").write_text("raise ImportError('not here')\n")
    found = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    assert "pip install 'tvm-orient[compile]'" in run(_NO_TVM, TVM_ORIENT_CACHE_DIR=str(tmp_path / "kernels"), PYTHONPATH=found)


def test_no_linker_at_hand(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import tvm

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(to.EnvironmentProblem, match=r"needs a C[+][+] compiler.*install g[+][+]"):
        library.compile_library(tvm.IRModule({}), cpu_device(), tmp_path / "kernel.so")


def test_no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    nvrtc._library.cache_clear()
    try:
        with pytest.raises(to.EnvironmentProblem, match=r"NVRTC, which is not installed .*tvm-orient\[compile\]"):
            nvrtc.compile_cubin("", "sm_90a")
    finally:
        nvrtc._library.cache_clear()


def test_no_cuda_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(nvrtc, "_TOOLKITS", tmp_path)
    for name in ("CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    nvrtc._include_folders.cache_clear()
    try:
        with pytest.raises(to.EnvironmentProblem, match=r"headers of CUDA 13, and cuda_runtime.h, .* is in none of .*tvm-orient\[compile\].*set CUDA_PATH"):
            nvrtc._include_folders()
    finally:
        nvrtc._include_folders.cache_clear()


@pytest.mark.usefixtures("compiles")
def test_what_the_compiler_says_is_kept(tmp_path: Any) -> None:
    import tvm

    with pytest.raises(to.BuildFailed, match=r"refused the kernel: .+"):
        library.compile_library(tvm.IRModule({}), cpu_device(), tmp_path / "no" / "folder" / "kernel.so")


@pytest.mark.usefixtures("compiles")
def test_a_failed_build_leaves_nothing_behind(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_orient.kernels import cache

    store, spec = cache.KernelCache(tmp_path / "kernels"), spec_of("conv", 1, 3, 3, line(0, k=3))
    real = layer_build.compiled
    monkeypatch.setattr(build, "compiled", lambda *_, **__: (_ for _ in ()).throw(to.BuildFailed("the disk is on fire")))
    with pytest.raises(to.BuildFailed, match="on fire"):
        build.build(spec, cpu_device(), store=store)
    assert store.entries() == []
    monkeypatch.setattr(build, "compiled", real)
    assert build.build(spec, cpu_device(), store=store).is_file()


def test_no_template_serves() -> None:
    with pytest.raises(to.Unsupported, match=r"no template serves conv-.*shared_patch: for sums in float32, got float64"):
        registry.default(spec_of("conv", 1, 8, 8, line(0, k=3), dtype="float64"), arch_device("sm_90a"))


def test_an_unknown_template() -> None:
    with pytest.raises(to.InvalidArgument, match="unknown template 'spoon'"):
        lower.scheduled(spec_of("conv", 1, 8, 8, line(0, k=3)), cpu_device(), [Choice("spoon", 1, ())])


# ---- the family ---------------------------------------------------------------------------------


def test_the_family() -> None:
    """One base to catch, and the built-in kinds that callers may already catch."""
    names = ("InvalidArgument", "Unsupported", "LogFileError", "BuildFailed", "EnvironmentProblem", "LaunchFailed", "TuningFailed")
    family = [getattr(errors, name) for name in names]
    assert all(issubclass(one, to.OrientError) for one in family)
    assert issubclass(to.InvalidArgument, ValueError)
    assert issubclass(to.Unsupported, NotImplementedError)
    assert issubclass(to.BuildFailed, RuntimeError)
    assert issubclass(to.EnvironmentProblem, RuntimeError)
    assert issubclass(to.LaunchFailed, RuntimeError)
    assert all(one.__name__ in to.__all__ for one in family)


@pytest.mark.parametrize(
    ("said", "first", "last"), [("one", "one", "one"), ("\n one \n two\nthree\n\n", "one", "three"), ("", "ValueError('')", "ValueError('')")]
)
def test_lines_of_an_error(said: str, first: str, last: str) -> None:
    assert errors.first_line(ValueError(said)) == first
    assert errors.last_line(ValueError(said)) == last
