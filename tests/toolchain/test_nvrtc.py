"""CUDA source compiled by NVRTC for every architecture that we name, and what it refuses."""

from __future__ import annotations

import struct

import pytest

from tests.support.cuda import default_source
from tests.support.helpers import OPS, line, nvrtc_missing, spec_of
from tvm_orient.compiler.predict import together
from tvm_orient.errors import BuildFailed, InvalidArgument
from tvm_orient.sass.cubin import kernels
from tvm_orient.toolchain import nvrtc

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
ARCHS = ["sm_80", "sm_90a", "sm_120", *(pytest.param(arch, marks=pytest.mark.long) for arch in ("sm_89", "sm_100a"))]
_EM_CUDA = 190  # e_machine of a cubin


@pytest.mark.parametrize("arch", ARCHS)
def test_every_arch(arch: str) -> None:
    cubin = nvrtc.compile_cubin(together({op: default_source(spec_of(op, 8, 28, 28, line(22.5, k=7)), arch) for op in OPS}), arch)
    assert cubin[:4] == b"\x7fELF"
    assert struct.unpack_from("<H", cubin, 18)[0] == _EM_CUDA
    found = kernels(cubin)
    assert sorted(kernel.name for kernel in found) == ["conv_dw_kernel", "conv_dw_kernel_1", "conv_dx_kernel", "conv_kernel"]
    for kernel in found:
        assert kernel.spills == 0
        assert 0 < kernel.registers <= 255
        assert kernel.shared <= 49152 + 1024  # static, and what the driver keeps for itself from sm_90 on
        assert kernel.count("FFMA", "FADD") > 0
        assert kernel.count("RED.", "ATOM") == 0, "a float atomic: sums would depend on the order of blocks"
        assert kernel.name == "conv_dw_kernel_1" or (kernel.count("BAR") > 0 and kernel.count("LDGSTS") > 0)


def test_what_nvrtc_refuses() -> None:
    with pytest.raises(InvalidArgument, match="got arch 'sm_12'"):
        nvrtc.compile_cubin("", "sm_12")
    with pytest.raises(BuildFailed, match=r"NVRTC refused the kernel for sm_90a.*spoon"):
        nvrtc.compile_cubin("void f() { spoon(); }", "sm_90a")
    with pytest.raises(BuildFailed, match="nvdisasm does not read"):
        kernels(b"\x7fELF not a cubin")


def test_archs() -> None:
    assert {"sm_80", "sm_89", "sm_90", "sm_100", "sm_120"} <= set(nvrtc.archs())
    assert nvrtc.version() >= (13, 0)
