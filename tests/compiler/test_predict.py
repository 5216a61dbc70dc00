"""The prediction from machine code agrees with what is known of a kernel: bytes moved, multiply-adds, limits."""

from __future__ import annotations

import pytest

from tests.support.helpers import line, nvrtc_missing, spec_of
from tvm_orient.compiler.predict import predict
from tvm_orient.perf_model import gpu_specs
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.stencil import stencil
from tvm_orient.schedules.choices import default_choices

# where the compile extra is not installed these tests are skipped, with the reason in pytest's summary (-ra)
pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
def test_predictions_agree_with_what_is_known(arch: str) -> None:
    specs = [spec_of("conv", 16, 28, 28, line(45, k=7)), spec_of("conv_dx", 16, 28, 28, line(45, k=7), 2), spec_of("conv_dw", 16, 28, 28, line(22.5, k=7))]
    device = arch_device(arch)
    for spec, found in zip(specs, predict([(spec, default_choices(spec, device)[0]) for spec in specs], device), strict=True):
        assert found.spills == 0
        assert len(found.bounds) == (2 if spec.op == "conv_dw" else 1)
        first = found.bounds[0]
        live = len(stencil(spec).every) / (4 if spec.op == "conv_dx" else 1)
        assert first.fma >= live * 0.95
        assert first.limiter_clocks == max(first.clocks.values()) == first.clocks[first.limiter]
        assert 0 < first.occupancy <= 1
        copied = 32 * spec.bytes_moved(64) / 64 / spec.outputs / gpu_specs.gpu_spec(arch).dram
        assert copied <= first.clocks["dram"] <= 1.2 * copied


def test_problems_of_several_dtypes_are_predicted_at_once() -> None:
    """Each dtype has helpers of its own at the top of its source."""
    device = arch_device("sm_90a")
    specs = [spec_of("conv", 8, 14, 14, line(0, k=7), dtype=dtype) for dtype in ("float32", "float16", "bfloat16")]
    cases = [(spec, default_choices(spec, device)[0]) for spec in specs]
    alone = [predict([case], device)[0].kernels[0] for case in cases]
    assert [found.kernels[0].registers for found in predict(cases, device)] == [kernel.registers for kernel in alone]
