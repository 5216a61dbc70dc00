"""Half precisions: operands and results of two bytes, sums in float32."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

import tvm_orient as to
from tests.support.helpers import OPS, assert_close, check_cpu, check_generic, check_serial, line, nvrtc_missing, operands, spec_of
from tests.support.sampling import facets, sampled
from tvm_orient.compiler import library, lower
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.schedules.choices import default_choices, generic_choices

HALVES = ("float16", "bfloat16")
# name: channels, height, width, taps, stride, padding
CASES: dict[str, tuple[Any, ...]] = {
    "one pixel": (3, 1, 1, line(0, 45, k=3)),
    "one row": (2, 1, 20, line(22.5, 90, k=7)),
    "odd": (3, 13, 17, line(22.5, 112.5, k=15)),
    "whole vectors": (4, 8, 32, line(157.5, k=31)),
    "stride 2": (3, 14, 14, line(45, 90, k=7), (2, 2)),
    "circular, ragged stride": (2, 9, 7, line(22.5, k=7), (3, 2), "circular"),
    "four angles": (8, 9, 14, line(0, 45, 90, 157.5, k=15)),
}


SWEEP = sampled(
    itertools.product(CASES, OPS, HALVES), pairs=lambda case, op, dtype: facets(spec_of(op, *CASES[case], dtype=dtype)), once=lambda case, op, dtype: (case,)
)


@pytest.mark.parametrize(("case", "op", "dtype"), SWEEP)
def test_cpu(case: str, op: str, dtype: str) -> None:
    spec = spec_of(op, *CASES[case], dtype=dtype)
    check_cpu(spec)
    check_generic(spec, "cpu")


@pytest.mark.parametrize(("case", "op", "dtype"), SWEEP)
def test_cuda(case: str, op: str, dtype: str) -> None:
    spec = spec_of(op, *CASES[case], dtype=dtype)
    check_serial(spec, batches=(2,))
    check_generic(spec, "cuda", (2,))


@pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
@pytest.mark.parametrize(("arch", "dtype"), [("sm_80", "bfloat16"), ("sm_90a", "float16")])
def test_cuda_compiles(arch: str, dtype: str) -> None:
    from tvm_orient.compiler.predict import together
    from tvm_orient.sass import cubin
    from tvm_orient.toolchain import nvrtc

    device, sources = arch_device(arch), {}
    for op in OPS:
        spec = spec_of(op, 16, 28, 28, line(45, k=7), dtype=dtype)
        for name, choices in (("own", default_choices(spec, device)), ("generic", generic_choices(spec, device))):
            sources[f"{op}_{name}"] = library.cuda_source(lower.scheduled(spec, device, choices), device)
    assert len(cubin.kernels(nvrtc.compile_cubin(together(sources), arch))) == 8  # conv_dw has two


@pytest.mark.parametrize("dtype", HALVES)
def test_forward_and_backward_through_the_public_function(dtype: str) -> None:
    kind, taps = getattr(torch, dtype), line(0, 45, 90, k=9)
    x, w = (torch.randn(2, 6, 12, 13, dtype=kind).requires_grad_(), torch.randn(6, 9, dtype=kind).requires_grad_())
    bias = torch.randn(6, dtype=kind)
    y = to.tap_conv2d(x, w, taps, bias)
    dy = torch.randn_like(y)
    y.backward(dy)
    assert y.dtype == x.grad.dtype == w.grad.dtype == kind  # type: ignore[union-attr]
    spec = {op: spec_of(op, 6, 12, 13, taps, dtype=dtype) for op in OPS}
    assert_close(to.tap_conv2d(x, w, taps).detach(), spec["conv"], (x.detach(), w.detach()))
    assert_close(x.grad, spec["conv_dx"], (dy, w.detach()))  # type: ignore[arg-type]
    assert_close(w.grad, spec["conv_dw"], (x.detach(), dy))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", HALVES)
def test_sums_are_kept_in_float32(dtype: str) -> None:
    """4096 ones and a half: in two bytes the sum would stop growing at 2048 or 256."""
    kind = getattr(torch, dtype)
    x, dy = torch.ones(1, 1, 64, 64, dtype=kind), torch.full((1, 1, 64, 64), 0.5, dtype=kind)
    dw = torch.ops.tvm_orient.conv_dw(x, dy, line(0, k=1).key, [1, 1], "zeros")
    assert dw.item() == 2048.0


def test_a_module_in_half_keeps_its_taps() -> None:
    module = to.nn.OrientedConv2d(16, 31)
    before = module.taps
    half = module.to(torch.bfloat16)
    assert half.taps == before
    assert half.theta.dtype == torch.float32
    assert half(torch.randn(1, 16, 9, 9, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("residual", [False, True])
def test_autocast(dtype: str, residual: bool) -> None:
    """Operands follow the region's dtype, parameters and their gradients stay float32, as torch's own convolutions do."""
    kind = getattr(torch, dtype)
    module, own = to.nn.OrientedConv2d(8, 7, residual=residual), torch.nn.Conv2d(8, 8, (1, 7), padding=(0, 3), groups=8)
    x = torch.randn(2, 8, 10, 11, requires_grad=True)
    with torch.autocast("cpu", kind):
        y, theirs = module(x), own(x)
    assert y.dtype == theirs.dtype == kind
    y.float().sum().backward()
    y = y.detach()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == x.grad.dtype == torch.float32  # type: ignore[union-attr]
    exact = module.double()(x.detach().double()).detach()
    assert float((y.double() - exact).abs().max()) <= 8 * torch.finfo(kind).eps * float(exact.abs().max() + 1)


def test_autocast_leaves_float64_alone() -> None:
    x, w = torch.randn(1, 2, 5, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert to.oriented_conv2d(x, w, 0.3).dtype == torch.float64


def test_autocast_under_compile() -> None:
    module = to.nn.OrientedConv2d(8, 7)
    x = torch.randn(2, 8, 10, 11)
    compiled = torch.compile(module, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(x), module(x), rtol=0.02, atol=0.02)  # Inductor adds the bias before it rounds
        assert compiled(x).dtype == torch.bfloat16


def test_the_cpu_kernel_moves_two_bytes() -> None:
    spec = spec_of("conv", 4, 8, 32, line(0, k=7), dtype="bfloat16")
    script = lower.scheduled(spec, cpu_device(), default_choices(spec, cpu_device())).script()
    assert '"bfloat16"' in script
    given = operands(spec, 1)
    assert {t.dtype for t in given} == {torch.bfloat16}
