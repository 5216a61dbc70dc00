"""Whatever a GPU test asks for is lowered to CUDA source here, without a GPU: what TVM refuses would be an error in front of a user."""

from __future__ import annotations

import pytest

from tests.support.gpu_problems import ANGLES, LAYERS, SMALL
from tvm_orient.compiler.library import cuda_source
from tvm_orient.compiler.lower import scheduled
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.schedules.choices import default_choices

EVERY = [spec for _, spec in SMALL] + LAYERS + ANGLES
_STEP = 7  # of every so many one is lowered in each run of the tests


def lowered(spec: ConvSpec) -> None:
    device = arch_device("sm_90a")
    assert "main_kernel" in cuda_source(scheduled(spec, device, default_choices(spec, device)), device)


@pytest.mark.parametrize("spec", [spec for _, spec in SMALL][::_STEP], ids=str)
def test_a_sample_lowers(spec: ConvSpec) -> None:
    lowered(spec)


@pytest.mark.sweep
@pytest.mark.parametrize("spec", EVERY, ids=str)
def test_every_problem_lowers(spec: ConvSpec) -> None:
    lowered(spec)
