"""Kernels that are made in the background for a CUDA GPU, and graphs that are captured meanwhile."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

import tvm_orient as to
from tests.support.helpers import assert_close, line, operands, spec_of
from tvm_orient.problem.device import cuda_devices
from tvm_orient.runtime import kernel, makings, serving

_BLIND = bool(cuda_devices()) and not torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_BLIND, reason=f"there is a GPU, but torch {torch.__version__} has no CUDA")]

DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels of their own from the second call on."""
    monkeypatch.setenv("TVM_ORIENT_BUILD", "2")
    serving.forget()
    yield
    assert makings.current().wait(timeout=120)
    serving.forget()


def test_a_new_problem_is_served_and_then_built() -> None:
    spec = spec_of("conv", 12, 10, 11, line(20, 70, k=9))
    given = operands(spec, 2)
    moved = [t.to(DEVICE) for t in given]
    for _ in range(3):
        assert_close(to.tap_conv2d(*moved, spec.taps).cpu(), spec, given)
    assert to.compiling().wait(120)
    assert_close(to.tap_conv2d(*moved, spec.taps).cpu(), spec, given)
    own = serving.kernel_for_call(spec, cuda_devices()[0])
    assert isinstance(own, kernel.Kernel)
    assert not own.generic


def test_a_model_that_was_warmed_up_can_be_captured() -> None:
    """Every kernel has run once when the warmup is over, so none is loaded by the driver in the middle of a capture."""
    layer = to.nn.OrientedConv2d(12, 9, directions=3).to(DEVICE)
    x = torch.randn(2, 12, 15, 17, device=DEVICE)
    with torch.no_grad():
        to.warmup(layer, x)
        expected, graph = layer(x), torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = layer(x)
        out.fill_(math.nan)
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(out, expected)


def test_a_graph_is_captured_while_kernels_are_made() -> None:
    """Calls that are captured stay on the kernel that has run, whatever is ready meanwhile."""
    spec = spec_of("conv", 12, 10, 13, line(20, 70, k=9))
    held = [t.to(DEVICE) for t in operands(spec, 2)]
    for _ in range(2):
        to.tap_conv2d(*held, spec.taps)
    assert to.compiling().wait(120)  # made, and not taken by any call yet
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = to.tap_conv2d(*held, spec.taps)
    out.fill_(math.nan)
    graph.replay()
    assert_close(out.cpu(), spec, operands(spec, 2))
