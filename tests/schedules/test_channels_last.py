"""channels_last: native kernels for the three ops, chosen by the memory format of the tensor, with results of the same format."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

import tvm_orient as to
from tests.support.cases import LAST_CASES as CASES
from tests.support.cases import last_spec
from tests.support.helpers import OPS, assert_close, check_blocks, check_cpu, check_serial, line, operands, spec_of
from tests.support.sampling import facets, sampled
from tvm_orient import ops
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import loader, serving
from tvm_orient.schedules import choices
from tvm_orient.schedules.choices import default_choices

GPU = arch_device("sm_90a")
LAST = torch.channels_last
SWEEP = list(itertools.product(CASES, OPS))


@pytest.mark.parametrize(("case", "op"), sampled(SWEEP, pairs=lambda case, op: facets(last_spec(op, case)), once=lambda case, op: (case,)))
def test_on_a_cpu(case: str, op: str) -> None:
    check_cpu(last_spec(op, case))


@pytest.mark.parametrize(
    ("case", "op"),
    sampled([one for one in SWEEP if one[0] != "float64"], pairs=lambda case, op: facets(last_spec(op, case)), once=lambda case, op: (case,)),
)
def test_for_cuda(case: str, op: str) -> None:
    check_serial(last_spec(op, case), batches=(1, 3))


def each(*cases: str) -> list[pytest.ParameterSet]:
    """These cases beside every op: a sample with each of both."""
    return sampled(itertools.product(cases, OPS), pairs=lambda *_: (), once=lambda case, op: (case, op))


@pytest.mark.parametrize(("case", "op"), each("a vector and some", "stride 3x2", "circular, ragged stride"))
def test_blocks(case: str, op: str) -> None:
    spec = last_spec(op, case)
    check_blocks(spec, default_choices(spec, GPU))


@pytest.mark.parametrize(("case", "op"), each("whole vectors", "stride 3x2", "circular", "wider than the plane", "float64"))
def test_operators_keep_the_format(case: str, op: str) -> None:
    spec = last_spec(op, case)
    first, second = operands(spec, 2)
    images = [t.contiguous(memory_format=LAST) if t.dim() == 4 else t for t in (first, second)]
    plane = (spec.height, spec.width) if op == "conv_dx" else ()
    out = getattr(ops, op)(*images, spec.taps.key, *plane, spec.stride, spec.padding_mode)
    assert_close(out, spec, (first, second))
    if op != "conv_dw":
        assert out.is_contiguous(memory_format=LAST)
        assert not out.is_contiguous()


def test_the_kernel_is_the_native_one() -> None:
    x, w = torch.randn(2, 16, 6, 7).contiguous(memory_format=LAST), torch.randn(16, 5)
    to.oriented_conv2d(x, w, 0.3)
    loaded = [kernel.spec for kernel in serving._kernels.values() if (kernel.spec.channels, kernel.spec.height, kernel.spec.width) == (16, 6, 7)]
    assert {spec.layout for spec in loaded} == {"nhwc"}
    assert not choices.is_generic(default_choices(loaded[0], loader.device_of(x)))


def test_gradients() -> None:
    """Of a module, against the same in the other format; gradients of images keep the format too."""
    results = []
    module = to.nn.OrientedConv2d(24, 7, directions=8, stride=2)
    x, dy = torch.randn(3, 24, 9, 10), torch.randn(3, 24, 5, 5)
    for form in (torch.contiguous_format, LAST):
        given = x.contiguous(memory_format=form).requires_grad_()
        y = module(given)
        grads = torch.autograd.grad(y, (given, *module.parameters()), dy.contiguous(memory_format=form))
        assert y.is_contiguous(memory_format=form)
        assert grads[0].is_contiguous(memory_format=form)
        results.append((y, *grads))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("first", [torch.contiguous_format, LAST], ids=["x contiguous", "x channels last"])
def test_formats_that_differ(first: torch.memory_format) -> None:
    """The gradient that comes back may have another format than x."""
    other = LAST if first is torch.contiguous_format else torch.contiguous_format
    taps, x, dy = line(0, 45, k=5), torch.randn(2, 6, 7, 8), torch.randn(2, 6, 7, 8)
    out = ops.conv_dw(x.contiguous(memory_format=first), dy.contiguous(memory_format=other), taps.key, (1, 1), "zeros")
    assert_close(out, spec_of("conv_dw", 6, 7, 8, taps), (x, dy))


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op: str) -> None:
    spec = spec_of(op, 6, 5, 7, line(0, 45, k=3), (2, 1))
    given = [(t.contiguous(memory_format=LAST) if t.dim() == 4 else t).requires_grad_() for t in operands(spec, 2)]
    plane = (5, 7) if op == "conv_dx" else ()
    torch.library.opcheck(getattr(ops, op), (*given, spec.taps.key, *plane, spec.stride, spec.padding_mode))


def test_compiled() -> None:
    def step(x: Tensor, w: Tensor) -> Tensor:
        return to.oriented_conv2d(x.mul(2), w, [0.0, 0.5], stride=2).relu()

    x, w = torch.randn(2, 8, 9, 10).contiguous(memory_format=LAST).requires_grad_(), torch.randn(8, 5, requires_grad=True)
    expected = step(x, w)
    grads = torch.autograd.grad(expected.sum(), (x, w))
    result = torch.compile(step, fullgraph=True)(x, w)
    assert torch.equal(result, expected)
    assert result.is_contiguous(memory_format=LAST)
    for one, other in zip(torch.autograd.grad(result.sum(), (x, w)), grads, strict=True):
        torch.testing.assert_close(one, other)


def test_what_no_template_serves_is_converted() -> None:
    """More taps than a template unrolls: the generic kernel, which knows one layout, and a result that has the other."""
    taps = Taps.oriented([0.3], 301)
    x, w = torch.randn(2, 4, 9, 11), torch.randn(4, 301)
    y = to.tap_conv2d(x.contiguous(memory_format=LAST), w, taps)
    assert y.is_contiguous(memory_format=LAST)
    assert_close(y, spec_of("conv", 4, 9, 11, taps), (x, w))


def test_an_empty_batch() -> None:
    x = torch.empty(0, 4, 5, 6).contiguous(memory_format=LAST)
    assert to.oriented_conv2d(x, torch.randn(4, 3), math.pi / 4).shape == (0, 4, 5, 6)


def test_a_kernel_refuses_the_images_of_another() -> None:
    """It sees addresses alone, so launching looks at the rest."""
    for op in OPS:
        spec = spec_of(op, 4, 6, 7, line(0, 45, k=3), layout="nhwc")
        kernel, given = serving.kernel(spec, cpu_device()), operands(spec, 2)
        assert_close(kernel(*given), spec, given)
        for which in range(2 if op == "conv_dw" else 1):
            for wrong in (given[which].double(), given[which][..., 1:], given[which][:, 1:], given[which].to("meta")):
                with pytest.raises(to.InvalidArgument, match="this kernel takes an image"):
                    kernel(*given[:which], wrong, *given[which + 1 :])


def test_threads_that_call_one_kernel() -> None:
    spec = spec_of("conv", 16, 30, 31, line(0, 45, k=7), layout="nhwc")
    kernel, (_, w) = serving.kernel(spec, cpu_device()), operands(spec, 1)
    images = [torch.randn(1, 16, 30, 31).contiguous(memory_format=LAST) for _ in range(4)]
    call, want = kernel.prepared(images[0], w), [kernel(x, w) for x in images]
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda i: torch.equal(call(images[i % 4], w), want[i % 4]), range(400)))
