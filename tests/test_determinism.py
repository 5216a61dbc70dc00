"""Bitwise equal results from run to run, while other threads take the cores away: no sum depends on who finishes first."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest
import torch
from _helpers import EIGHT, OPS, operands, spec_of

from tvm_orient import build, launch, lower
from tvm_orient.device import cpu_device
from tvm_orient.launch import Converted, Kernel
from tvm_orient.spec import LAYOUTS, ConvSpec
from tvm_orient.taps import Taps

pytestmark = pytest.mark.timeout(600)  # the first test pays for the kernels of all
_RUNS = 20
_DTYPES = ("float32", "bfloat16")


def problem(op: str, layout: str, dtype: str) -> ConvSpec:
    return spec_of(op, 16, 9, 10, Taps.oriented(EIGHT, 5), dtype=dtype, layout=layout)


@pytest.fixture(scope="module")
def kernels() -> dict[ConvSpec, list[Kernel | Converted]]:
    """Of each problem its own kernel and the generic one; made before the load, under which a compiler takes minutes."""
    device, found = cpu_device(), {}
    for spec in itertools.starmap(problem, itertools.product(OPS, LAYOUTS, _DTYPES)):
        choices = ([part.choice for part in build.explain(spec, device)], lower.generic_choices(spec, device))
        found[spec] = [launch.load(spec, device, chosen) for chosen in choices]
    return found


@pytest.fixture(scope="module")
def load(kernels: dict[ConvSpec, list[Kernel | Converted]]) -> Iterator[None]:
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
def test_the_same_bits_under_load(load: None, kernels: dict[ConvSpec, list[Kernel | Converted]], op: str, layout: str, dtype: str) -> None:
    spec = problem(op, layout, dtype)
    first, second = operands(spec, 5)
    for kernel in kernels[spec]:
        expected = kernel(first, second)
        for _ in range(_RUNS):
            assert torch.equal(kernel(first, second), expected)
