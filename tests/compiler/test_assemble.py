"""Kernels of a layer as they are assembled: their machine code is right wherever a part stands, and a part that stands several times is there once."""

from __future__ import annotations

import pytest

from tests.support.helpers import line, nvrtc_missing, spec_of
from tests.support.machine_code import check_machine, machines
from tvm_orient.compiler.assemble import layer_source
from tvm_orient.compiler.layer_plan import planned
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import OPS, ConvSpec
from tvm_orient.schedules.choices import default_choices

pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
REPEATED = line(0, 45, 0, 45, 0, 22.5, 0, 45, k=5)


def source_of(spec: ConvSpec, arch: str = "sm_90a") -> str:
    device = arch_device(arch)
    return layer_source(planned(spec, device, default_choices(spec, device)))


@pytest.mark.parametrize(("arch", "layout"), [("sm_80", "nhwc"), ("sm_90a", "nchw")])
@pytest.mark.parametrize("op", OPS)
def test_an_angle_that_several_groups_have(op: str, arch: str, layout: str) -> None:
    spec = spec_of(op, 32, 9, 14, REPEATED, layout=layout)
    (machine,) = machines({"case": (spec, default_choices(spec, arch_device(arch)))}, arch).values()
    check_machine(machine, ("ascending", "random"))


def test_its_code_is_there_once() -> None:
    repeated, distinct = source_of(spec_of("conv", 32, 9, 14, REPEATED)), source_of(spec_of("conv", 12, 9, 14, line(0, 45, 22.5, k=5)))
    assert repeated.count("tvm_orient_task, %0") == distinct.count("tvm_orient_task, %0") == 3


@pytest.mark.parametrize("channels", [13, 20, 29])
def test_groups_that_begin_anywhere(channels: int) -> None:
    """Their operands are not aligned, or not by the same number of bytes."""
    spec = spec_of("conv", channels, 7, 7, line(0, 45, 90, k=3))
    (machine,) = machines({"case": (spec, default_choices(spec, arch_device("sm_90a")))}, "sm_90a").values()
    check_machine(machine, ("ascending",))
