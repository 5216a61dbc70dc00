"""The public operators on a CUDA GPU: what the serial form and the emulated blocks cannot show."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import math
import multiprocessing
import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tvm_orient as to
from tests.support.cases import CUDA_CASES as CASES
from tests.support.cases import EPILOGUES, LAST_CASES, ended, last_spec
from tests.support.gpu_problems import ANGLES, LAYERS, SMALL
from tests.support.helpers import EIGHT, OPS, assert_close, build_for_gpu, line, operands, spec_of
from tvm_orient import ops
from tvm_orient.problem.device import cuda_devices
from tvm_orient.problem.spec import LAYOUTS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import serving
from tvm_orient.schedules.choices import default_choices

_BLIND = bool(cuda_devices()) and not torch.cuda.is_available()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(_BLIND, reason=f"there is a GPU, but torch {torch.__version__} has no CUDA")]

DEVICE = "cuda"
THREE = (0.3, 1.2, 2.7)
UTILITIES = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.fixture(autouse=True, scope="module")
def _built(request: pytest.FixtureRequest) -> None:
    """Kernels take seconds each to compile: where many tests are to run, all processors compile them first."""
    if sum(item.module is request.module for item in request.session.items) > 50:
        keys = [spec.key for spec in [*(spec for _, spec in SMALL), *LAYERS, *ANGLES]]
        with concurrent.futures.ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            list(pool.map(build_for_gpu, keys))


@pytest.fixture(autouse=True)
def _settled() -> Iterator[None]:
    """A fault of one test must show there, not in the next."""
    yield
    torch.cuda.synchronize()


def poison(elements: int) -> None:
    """Leave NaN in the memory that the allocator hands out next."""
    blocks = [torch.full((elements,), math.nan, device=DEVICE) for _ in range(4)]
    del blocks


def run(spec: ConvSpec, first: Tensor, second: Tensor) -> Tensor:
    """The op of the spec through torch, on operands wherever they are."""
    plane = (spec.height, spec.width) if spec.op == "conv_dx" else ()
    return getattr(ops, spec.op)(first, second, spec.taps.key, *plane, spec.stride, spec.padding_mode)


def check(spec: ConvSpec, batch: int) -> None:
    given = operands(spec, batch, seed=batch)
    poison(batch * spec.channels * spec.height * spec.width)
    out = run(spec, *(t.to(DEVICE) for t in given))
    assert out.device.type == DEVICE
    assert_close(out.cpu(), spec, given)


@pytest.mark.parametrize("spec", [spec for _, spec in SMALL], ids=[f"{name}-{spec.op}" for name, spec in SMALL])
def test_small_odd_and_thin(spec: ConvSpec) -> None:
    for batch in (1, 3):
        check(spec, batch)


@pytest.mark.parametrize("spec", LAYERS, ids=lambda spec: f"{spec.op}-{spec.channels}x{spec.height}-k{spec.kernel_size}")
def test_layers_of_eight_angles(spec: ConvSpec) -> None:
    check(spec, 4)


@pytest.mark.parametrize("spec", ANGLES, ids=lambda spec: f"{spec.op}-{spec.taps.key}-s{spec.stride[0]}")
def test_each_angle(spec: ConvSpec) -> None:
    check(spec, 2)


@pytest.mark.parametrize("op", OPS)
def test_more_blocks_than_65535(op: str) -> None:
    check(spec_of(op, 4096, 3, 3, Taps.oriented(EIGHT, 3)), 33)


@pytest.mark.parametrize("op", ["conv", "conv_dx"])
def test_the_largest_indices(op: str) -> None:
    """Byte offsets beyond 32 bits: 2**30 + elements, the first and the last images against a small batch."""
    spec = spec_of(op, 64, 128, 128, line(22.5, k=7))
    first, second = (t.to(DEVICE) for t in operands(spec, 2))
    if torch.cuda.mem_get_info()[0] < 12 * 2**30:
        pytest.skip("needs 12 GiB of free GPU memory")
    out, expected = run(spec, first.repeat(520, 1, 1, 1), second), run(spec, first, second)
    assert out.numel() > 2**30
    assert all(torch.equal(out[i : i + 2], expected) for i in (0, 510, 1038))


def test_sums_of_a_large_batch() -> None:
    check(spec_of("conv_dw", 32, 28, 28, Taps.oriented(EIGHT, 7)), 128)


# ---- agreement with the CPU and with torch ------------------------------------------------------


def test_gradients_agree_with_the_cpu() -> None:
    x, w, b = torch.randn(4, 64, 28, 30), torch.randn(64, 15), torch.randn(64)
    dy = torch.randn(4, 64, 14, 30)
    results = []
    for device in ("cpu", DEVICE):
        given = [t.to(device).detach().requires_grad_() for t in (x, w, b)]
        y = to.oriented_conv2d(given[0], given[1], EIGHT, given[2], stride=(2, 1))
        results.append([y, *torch.autograd.grad(y, given, dy.to(device))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-4, atol=1e-3)


def test_second_derivatives_agree_with_the_cpu() -> None:
    x, w = torch.randn(2, 6, 8, 9), torch.randn(6, 5)
    results = []
    for device in ("cpu", DEVICE):
        given = [t.to(device).detach().requires_grad_() for t in (x, w)]
        first = torch.autograd.grad(to.oriented_conv2d(given[0], given[1], THREE).tanh().sum(), given, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_axes_are_conv2d(stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x, w = torch.randn(2, 64, 33, 40, device=DEVICE), torch.randn(64, 31, device=DEVICE)
    torch.testing.assert_close(
        to.oriented_conv2d(x, w, 0.0, stride=stride), F.conv2d(x, w[:, None, None], None, stride, (0, 15), groups=64), rtol=1e-4, atol=1e-4
    )
    down = to.oriented_conv2d(x, w, math.radians(-90), stride=stride)
    torch.testing.assert_close(down, F.conv2d(x, w[:, None, :, None], None, stride, (15, 0), groups=64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_every_time(op: str) -> None:
    spec = spec_of(op, 64, 28, 28, Taps.oriented(EIGHT, 7))
    given = [t.to(DEVICE) for t in operands(spec, 16)]
    first = run(spec, *given)
    assert all(torch.equal(run(spec, *given), first) for _ in range(20))


# ---- every way to give operands -----------------------------------------------------------------


def test_any_memory_layout() -> None:
    x, w = torch.randn(2, 6, 8, 12, device=DEVICE), torch.randn(6, 5, device=DEVICE)
    expected, key = to.oriented_conv2d(x, w, THREE), Taps.oriented(THREE, 5).key

    def unaligned(t: Tensor) -> Tensor:
        return torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape)

    for other in (unaligned(x), F.pad(x, (1, 2))[..., 1:-2]):
        assert torch.equal(other, x)
        assert torch.equal(to.oriented_conv2d(other, unaligned(w), THREE), expected)
        assert torch.equal(ops.conv_dx(other, w, key, 8, 12, [1, 1], "zeros"), ops.conv_dx(x, w, key, 8, 12, [1, 1], "zeros"))
        assert torch.equal(ops.conv_dw(other, other, key, [1, 1], "zeros"), ops.conv_dw(x, x, key, [1, 1], "zeros"))


def test_empty_batch() -> None:
    x, w = torch.randn(0, 6, 8, 9, device=DEVICE, requires_grad=True), torch.randn(6, 5, device=DEVICE, requires_grad=True)
    y = to.oriented_conv2d(x, w, THREE)
    dx, dw = torch.autograd.grad(y.sum(), (x, w))
    assert (y.shape, dx.shape) == ((0, 6, 8, 9), (0, 6, 8, 9))
    assert torch.equal(dw, torch.zeros_like(dw))


def test_theta_on_the_gpu() -> None:
    x, w = torch.randn(2, 6, 8, 9, device=DEVICE), torch.randn(6, 5, device=DEVICE)
    assert torch.equal(to.oriented_conv2d(x, w, torch.tensor(THREE, device=DEVICE)), to.oriented_conv2d(x, w, THREE))


def test_a_module_moves() -> None:
    module = to.nn.OrientedConv2d(16, 7)
    x = torch.randn(2, 16, 14, 14)
    expected, taps = module(x), module.taps
    torch.testing.assert_close(module.to(DEVICE)(x.to(DEVICE)).cpu(), expected, rtol=1e-4, atol=1e-4)
    assert module.taps is taps
    assert module.theta.device.type == DEVICE


def test_what_is_refused() -> None:
    x, w = torch.randn(2, 6, 8, 9, device=DEVICE), torch.randn(6, 5, device=DEVICE)
    with pytest.raises(to.InvalidArgument, match="one device, got cuda:0 and cpu"):
        to.oriented_conv2d(x, w.cpu(), THREE)
    with pytest.raises(to.InvalidArgument, match="one device, got cuda:0 and cpu"):
        to.oriented_conv2d(x, w, THREE, torch.zeros(6))
    with pytest.raises(to.InvalidArgument, match="dtype must be one of"):
        to.oriented_conv2d(x.int(), w.int(), THREE)


# ---- dtypes, layouts, epilogues, and what no template serves ------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_dtypes(op: str, dtype: str) -> None:
    for case in ("odd", "stride 3x2", "circular, ragged stride", "56x56"):
        check(dataclasses.replace(spec_of(op, *CASES[case]), dtype=dtype), 3)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", LAST_CASES)
def test_channels_last(op: str, case: str) -> None:
    spec = last_spec(op, case)
    given = operands(spec, 3)
    poison(3 * spec.channels * spec.height * spec.width)
    out = run(spec, *(t.to(DEVICE, memory_format=torch.channels_last) if t.dim() == 4 else t.to(DEVICE) for t in given))
    assert_close(out.cpu(), spec, given)
    assert op == "conv_dw" or out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("bias", "activation"), EPILOGUES)
def test_epilogues(bias: bool, activation: str, layout: str) -> None:
    for dtype in ("float32", "bfloat16"):
        spec = ended(bias, activation, layout, dtype)
        given = operands(spec, 3)
        x, w, *b = (t.to(DEVICE) for t in given)
        x = x.contiguous(memory_format=torch.channels_last) if layout == "nhwc" else x
        assert_close(to.tap_conv2d(x, w, spec.taps, *b, activation=activation).cpu(), spec, given)


@pytest.mark.parametrize("mode", ["zeros", "circular"])
@pytest.mark.parametrize("op", OPS)
def test_the_generic_kernel(op: str, mode: str) -> None:
    check(spec_of(op, 13, 40, 37, Taps.oriented(EIGHT, 301), (2, 1), mode), 3)


def test_autocast_training() -> None:
    layer = to.nn.OrientedConv2d(16, 7, activation="gelu").to(DEVICE)
    x = torch.randn(4, 16, 14, 14, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        y = torch.compile(layer, fullgraph=True)(x)
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32
    expected = F.gelu(to.oriented_conv2d(x.bfloat16(), layer.weight.bfloat16(), EIGHT, layer.bias.bfloat16()).float())
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)


# ---- streams, graphs, devices -------------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_the_current_stream(op: str) -> None:
    """Behind a long wait and a copy on a side stream: a launch on another stream would read what was there before."""
    spec = spec_of(op, 64, 28, 28, Taps.oriented(EIGHT, 7))
    given = [t.to(DEVICE) for t in operands(spec, 8)]
    expected, stale = run(spec, *given), torch.full_like(given[0], math.nan)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        stale.copy_(given[0])
        out = run(spec, stale, given[1])
    side.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("op", OPS)
def test_cuda_graph(op: str) -> None:
    spec = spec_of(op, 64, 14, 14, Taps.oriented(EIGHT, 7))
    serving.forget()
    to.warmup(spec, DEVICE)
    held = [t.to(DEVICE) for t in operands(spec, 4)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(spec, *held)
    for seed in (1, 2):
        given = operands(spec, 4, seed)
        for buffer, new in zip(held, given, strict=True):
            buffer.copy_(new)
        out.fill_(math.nan)
        graph.replay()
        assert_close(out.cpu(), spec, given)


def test_nothing_is_compiled_inside_a_cuda_graph() -> None:
    spec = spec_of("conv", 64, 14, 14, Taps.oriented(EIGHT, 7))
    given = [t.to(DEVICE) for t in operands(spec, 4)]
    serving.forget()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(to.EnvironmentProblem, match="captured: call tvm_orient"), torch.cuda.graph(graph):
        run(spec, *given)
    assert_close(run(spec, *given).cpu(), spec, operands(spec, 4))


def test_training_in_a_cuda_graph() -> None:
    """make_graphed_callables captures forward and backward."""
    module = to.nn.OrientedConv2d(16, 7).to(DEVICE)
    sample = torch.randn(4, 16, 14, 14, device=DEVICE, requires_grad=True)
    module(sample).sum().backward()  # loads all three kernels
    graphed = torch.cuda.make_graphed_callables(module, (sample,))
    x = torch.randn(4, 16, 14, 14, device=DEVICE)
    torch.testing.assert_close(graphed(x), torch.func.functional_call(to.nn.OrientedConv2d(16, 7).to(DEVICE), dict(module.state_dict()), (x,)))


@pytest.mark.skipif(len(cuda_devices()) < 2, reason="needs two CUDA GPUs")
@pytest.mark.parametrize("op", OPS)
def test_another_device_than_the_current_one(op: str) -> None:
    spec = spec_of(op, 16, 14, 14, Taps.oriented(EIGHT, 7))
    given = operands(spec, 2)
    for index in (1, 0, 1):
        out = run(spec, *(t.to(f"cuda:{index}") for t in given))
        assert out.device.index == index
        assert torch.cuda.current_device() == 0
        assert_close(out.cpu(), spec, given)


def test_backward_from_a_thread_of_its_own() -> None:
    """Autograd runs CUDA backward on its own thread, with its own current device and stream."""
    x = torch.randn(2, 16, 14, 14, device=DEVICE, requires_grad=True)
    w = torch.randn(16, 7, device=DEVICE, requires_grad=True)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        y = to.oriented_conv2d(x, w, EIGHT)
        dx, dw = torch.autograd.grad(y.sum(), (x, w))
    side.synchronize()
    spec = spec_of("conv_dx", 16, 14, 14, Taps.oriented(EIGHT, 7))
    assert_close(dx.cpu(), spec, (torch.ones(2, 16, 14, 14), w.detach().cpu()))
    assert dw.isfinite().all()


# ---- torch.library, torch.compile ---------------------------------------------------------------


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    spec = spec_of(op, 6, 9, 10, line(0, 67.5, 135, k=7), (2, 1))
    first, second = (t.to(DEVICE).requires_grad_() for t in operands(spec, 2))
    plane = (9, 10) if op == "conv_dx" else ()
    given: tuple[Any, ...] = (first, second, spec.taps.key, *plane, [2, 1], "zeros")
    assert torch.library.opcheck(getattr(ops, op), given, test_utils=UTILITIES) == dict.fromkeys(UTILITIES, "SUCCESS")


def test_compiled_whole() -> None:
    def f(x: Tensor, w: Tensor) -> Tensor:
        return to.oriented_conv2d(x.relu(), w, THREE).tanh()

    torch._dynamo.reset()
    compiled = torch.compile(f, fullgraph=True)
    given = [t.to(DEVICE).requires_grad_() for t in (torch.randn(2, 6, 8, 9), torch.randn(6, 5))]
    results = []
    for call in (f, compiled):
        y = call(*given)
        results.append([y, *torch.autograd.grad(y.square().sum(), given)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_kernel_is_the_one_of_this_gpu() -> None:
    device = cuda_devices()[0]
    spec = spec_of("conv", 16, 14, 14, line(45, k=7))
    kernel = serving.kernel(spec, device)
    assert kernel.device is device
    assert device.arch in (kernel.path.parent / "how.json").read_text()
    assert default_choices(spec, device)[0].template in (kernel.path.parent / "how.json").read_text()
