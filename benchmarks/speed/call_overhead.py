"""Measure what a call of a built kernel costs beyond the kernel: through the torch op, with and without gradients, and beside other ops.

    python -m benchmarks.speed.call_overhead

The problem is tiny and its kernel runs on one thread, so that nearly all of a time is the call. "Bare" is the tvm-ffi function on tensors that exist. Limits:
12 us over it for an op without gradients, 25 us with. A call is one of many like it: each turn begins with some that are not timed.

Limits are for the least of the rounds: on a shared machine another tenant can only add to a time, and here medians of two runs differ by 2. The median
stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from tvm_orient import Taps, ops, oriented_conv2d, tap_conv2d
from tvm_orient.bench import grids
from tvm_orient.bench.methods import public_op
from tvm_orient.problem.device import cpu_device
from tvm_orient.runtime import serving

CALLS = 300  # calls of one function in a round
ROUNDS = 40
FORMS = ("", ", channels_last", ", epilogue", ", epilogue and channels_last")
# microseconds of a call
LIMITS = {f"op{form}": 12.0 for form in FORMS} | {f"op{form}, gradients recorded": 25.0 for form in FORMS}


def microseconds(calls: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Returns (least, median) over rounds of the mean time of a call; the calls take turns."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            for _ in range(CALLS // 10):
                call()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            times[name].append(1e6 * (time.perf_counter() - start) / CALLS)
    return {name: (min(values), statistics.median(values)) for name, values in times.items()}


def methods() -> dict[str, Callable[[], object]]:
    """Returns the ways to call one tiny kernel, and two ATen ops for scale."""
    torch.set_num_threads(1)  # waking other threads is part of a kernel, not of a call
    spec = grids.spec("conv", (8, 4, 4), 3)
    x, w, bias, out = torch.randn(1, 8, 4, 4), torch.randn(8, 3), torch.randn(8), torch.empty(1, 8, 4, 4)
    kernel, plain, dense = serving.kernel(spec, cpu_device()), public_op(spec), w.view(8, 1, 1, 3)
    key = spec.taps.key

    @torch.library.custom_op("tvm_orient_twin::conv", mutates_args=())
    def twin(x: torch.Tensor, weight: torch.Tensor, taps: str) -> torch.Tensor:
        return kernel(x, weight)

    def forms(ending: str, *given: torch.Tensor) -> dict[str, Callable[[], object]]:
        def form(name: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> Callable[[], object]:
            if "epilogue" in name:
                return lambda: ops.conv_epilogue(x, weight, bias, "relu", key, [1, 1], "zeros")
            return lambda: plain(x, weight)

        x, weight, bias = given
        found = {}
        for name in FORMS:
            last = "channels_last" in name
            image = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_(x.requires_grad) if last else x
            ended = {"bias": True, "activation": "relu"} if "epilogue" in name else {}
            serving.kernel(dataclasses.replace(spec, layout="nhwc" if last else "nchw", **ended), cpu_device())
            found[f"op{name}{ending}"] = form(name, image, weight, bias)
        return found

    taps = Taps.from_key(key)
    theta = [math.radians(angle) for angle in grids.EIGHT]
    return {
        "bare tvm-ffi function": lambda: kernel.function(x, w, out),
        "runtime.kernel.Kernel": lambda: kernel(x, w),
        **forms("", x, w, bias),
        **forms(", gradients recorded", *(tensor.clone().requires_grad_() for tensor in (x, w, bias))),
        "custom_op twin": lambda: twin(x, w, key),
        "tap_conv2d": lambda: tap_conv2d(x, w, taps),
        "tap_conv2d, epilogue": lambda: tap_conv2d(x, w, taps, bias, activation="relu"),
        "oriented_conv2d": lambda: oriented_conv2d(x, w, theta),
        "ATen add": lambda: torch.add(x, x),
        "ATen conv2d (1, 3)": lambda: F.conv2d(x, dense, padding=(0, 1), groups=8),
    }


def main() -> int:
    """Print the table; return the exit status: 1 where a limit is broken."""
    argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0]).parse_args()
    times = microseconds(methods())
    bare, bare_median = times["bare tvm-ffi function"]
    table = Table("call", "us", "over bare", "limit", "median us", "over bare")
    broken = []
    for name, (least, median) in times.items():
        limit = LIMITS.get(name)
        if limit is not None and least - bare > limit:
            broken.append(name)
        shown = "" if limit is None else f"{limit:.0f}{'  BROKEN' if name in broken else ''}"
        table.add_row(name, f"{least:.1f}", f"{least - bare:+.1f}", shown, f"{median:.1f}", f"{median - bare_median:+.1f}")
    Console().print(table)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
