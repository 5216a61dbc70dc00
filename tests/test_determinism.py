"""Bitwise equal results from run to run, while other threads take the cores away: no sum depends on who finishes first."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from _helpers import EIGHT, OPS, operands, spec_of

from tvm_orient import build, launch, lower
from tvm_orient.device import cpu_device
from tvm_orient.spec import LAYOUTS
from tvm_orient.taps import Taps

_RUNS = 20


@pytest.fixture(scope="module")
def load() -> Iterator[None]:
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", OPS)
def test_the_same_bits_under_load(load: None, op: str, layout: str, dtype: str) -> None:
    spec = spec_of(op, 16, 9, 10, Taps.oriented(EIGHT, 5), dtype=dtype, layout=layout)
    first, second = operands(spec, 5)
    for choices in ([part.choice for part in build.explain(spec, cpu_device())], lower.generic_choices(spec, cpu_device())):
        kernel = launch.load(spec, cpu_device(), choices)
        expected = kernel(first, second)
        for _ in range(_RUNS):
            assert torch.equal(kernel(first, second), expected)
