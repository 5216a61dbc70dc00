"""The header that CUDA source seldom needs is left out where nothing needs it, and stays where something does."""

from __future__ import annotations

import re

import pytest

from tests.support.helpers import line, nvrtc_missing, spec_of
from tvm_orient.codegen.cuda import lean_headers, passes
from tvm_orient.codegen.cuda.lean_headers import lean
from tvm_orient.compiler import library, lower
from tvm_orient.problem.device import arch_device
from tvm_orient.sass import cubin
from tvm_orient.schedules.choices import default_choices
from tvm_orient.toolchain import nvrtc

compiles = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
GPU = arch_device("sm_90a")
TRAITS = "  #include <cuda/std/type_traits>\n  namespace std {\n    using cuda::std::is_same;\n    using cuda::std::enable_if;\n  }\n"
KERNEL = 'extern "C" __global__ void main_kernel(float* y) {{ y[threadIdx.x] = {value}; }}\n'


def test_it_goes_where_nothing_uses_it() -> None:
    done = lean("#if defined(__CUDACC_RTC__)\n" + TRAITS + "#endif\n" + KERNEL.format(value=1))
    assert done.source == "#if defined(__CUDACC_RTC__)\n#endif\n" + KERNEL.format(value=1)
    assert done.places == 1


@pytest.mark.parametrize("value", ["std::is_same<int, float>::value", "::std::is_same<int, int>::value", "cuda::std::is_same<int, int>::value"])
def test_it_stays_where_something_uses_it(value: str) -> None:
    source = TRAITS + KERNEL.format(value=value)
    done = lean(source)
    assert (done.source, done.places) == (source, 0)


@pytest.mark.parametrize("preamble", ["", TRAITS.replace("namespace std", "namespace other"), TRAITS.replace("  }\n", "")])
def test_another_preamble_is_left_alone(preamble: str) -> None:
    source = preamble + KERNEL.format(value=1)
    assert lean(source).source == source


@compiles
def test_the_machine_code_is_that_of_the_source_with_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """And TVM's preamble is one that is known."""
    spec = spec_of("conv", 2, 6, 7, line(22.5, k=3))
    module = lower.scheduled(spec, GPU, default_choices(spec, GPU))
    without = library.cuda_source(module, GPU)
    monkeypatch.setattr(lean_headers, "_USED", re.compile(""))  # as if something in every source did
    monkeypatch.setattr(passes, "hold", lambda *_: None)
    whole = library.cuda_source(module, GPU)
    assert [source.count("#include <cuda/std/type_traits>") for source in (without, whole)] == [0, 1]
    (one,), (other,) = (cubin.kernels(nvrtc.compile_cubin(source, GPU.arch)) for source in (without, whole))
    assert one.code == other.code


@compiles
def test_source_that_needs_its_header_compiles() -> None:
    source = TRAITS + KERNEL.format(value="std::is_same<int, int>::value ? 2 : 3")
    (kernel,) = cubin.kernels(nvrtc.compile_cubin(lean(source).source, GPU.arch))
    assert kernel.instructions
