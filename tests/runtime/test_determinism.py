"""Bitwise equal results from run to run, while other threads take the cores away: no sum depends on who finishes first."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterator

import pytest
import torch

from tests.support.helpers import EIGHT, OPS, operands, spec_of
from tvm_orient.functional import warmup
from tvm_orient.kernels import resolve
from tvm_orient.nn import OrientedConv2d
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import LAYOUTS, ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import serving
from tvm_orient.runtime.kernel import GenericAdapter, Kernel
from tvm_orient.schedules.choices import generic_choices

pytestmark = pytest.mark.timeout(600)  # the first test pays for the kernels of all
_RUNS = 20
_DTYPES = ("float32", "bfloat16")


def problem(op: str, layout: str, dtype: str) -> ConvSpec:
    return spec_of(op, 16, 9, 10, Taps.oriented(EIGHT[1:4], 5), dtype=dtype, layout=layout)


def test_a_module_that_is_saved_and_loaded_has_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels belong to problems, not to modules: before a problem has its own and after, both modules run the same one."""
    monkeypatch.setenv("TVM_ORIENT_BUILD", "100000")
    module, x = OrientedConv2d(6, 5, directions=3), torch.randn(2, 6, 11, 7)
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    loaded = OrientedConv2d(6, 5, theta=[1.0, 1.1, 1.2])
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for make in (lambda: None, lambda: warmup(loaded, x)):
        make()
        results = []
        for one in (module, loaded, module, loaded):
            leaf = x.clone().requires_grad_()
            y = one(leaf)
            results.append((y, *torch.autograd.grad(y.sin().sum(), (leaf, one.weight))))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# ---- under load; what is above compiles, which takes many times longer beside it ---------------


@pytest.fixture(scope="module")
def kernels() -> dict[ConvSpec, list[Kernel | GenericAdapter]]:
    """Of each problem its own kernel and the generic one; made before the load, under which a compiler takes minutes."""
    device, found = cpu_device(), {}
    for spec in itertools.starmap(problem, itertools.product(OPS, LAYOUTS, _DTYPES)):
        choices = ([part.choice for part in resolve.explain(spec, device)], generic_choices(spec, device))
        found[spec] = [serving.load(spec, device, chosen) for chosen in choices]
    return found


@pytest.fixture(scope="module")
def load(kernels: dict[ConvSpec, list[Kernel | GenericAdapter]]) -> Iterator[None]:
    """Four threads that multiply matrices as fast as they can."""
    over = threading.Event()

    def work() -> None:
        a = torch.randn(192, 192)
        while not over.is_set():
            a = (a @ a).clamp(-1, 1)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("dtype", _DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_under_load(load: None, kernels: dict[ConvSpec, list[Kernel | GenericAdapter]], op: str, layout: str, dtype: str) -> None:
    spec = problem(op, layout, dtype)
    first, second = operands(spec, 5)
    for kernel in kernels[spec]:
        expected = kernel(first, second)
        for _ in range(_RUNS):
            assert torch.equal(kernel(first, second), expected)
