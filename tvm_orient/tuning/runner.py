"""Measure kernels in a process of their own: a candidate that crashes takes its worker along, not the tuner.

The worker (`python -m tvm_orient.tuning.runner`) reads one JSON request a line and answers one JSON line. It runs a kernel on
rotating operands, larger than the caches together, so that no candidate is ranked on a hot cache. One in which a candidate failed
is replaced: whatever ran after it in the same CUDA context would fail for it.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import TuningFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec, image_shape, part_shape
from ..toolchain.worker import ChildProcess, Died, interpreter, serve

_TARGET_SECONDS = 0.03  # of runs per candidate
_MOST_BYTES = 1 << 29  # of rotating operands
_COLD_BYTES = {"cpu": 96 << 20, "cuda": 192 << 20}  # more than the last-level caches of the machines we tune on (an H200's L2: 60 MB)
_QUEUE_CYCLES = 200_000  # 0.1 ms: the GPU waits so long before a timed launch that the host has queued all of it


@dataclass(frozen=True)
class Timing:
    """Seconds of one kernel: median and half the distance between the 20th and the 80th percentile; or why there is none."""

    median: float | None
    spread: float = 0.0
    error: str = ""


class Runner(ChildProcess):
    """A worker process for one device; replaced when a candidate kills it, fails in it or takes too long."""

    module = "tvm_orient.tuning.runner"

    def __init__(self, device: Device, timeout: float = 30.0) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")])}
        super().__init__([interpreter(), "-m", self.module], timeout, environment)
        self.device = device

    def time(self, spec: ConvSpec, batch: int, kernel: Path, workspace: tuple[int, int] | None) -> Timing:
        """Time a kernel on fresh random operands."""
        try:
            answer = self.ask(self._request(spec, batch, kernel, workspace))
        except Died as problem:
            return Timing(None, error=f"the kernel crashed the worker: {problem}")
        except TimeoutError:
            return Timing(None, error=f"no answer within {self.timeout:.0f} s")
        return Timing(answer.get("median"), answer.get("spread", 0.0), answer.get("error", ""))

    def verify(self, spec: ConvSpec, kernel: Path, workspace: tuple[int, int] | None) -> tuple[float | None, str]:
        """(largest error relative to the largest output, "") of a kernel against the reference at N = 2, or (None, why it is wrong)."""
        try:
            answer = self.ask(self._request(spec, 2, kernel, workspace) | {"verify": True})
        except (Died, TimeoutError) as problem:
            return None, f"the check did not finish ({type(problem).__name__})"
        return answer.get("relative"), answer.get("error", "")

    def _request(self, spec: ConvSpec, batch: int, kernel: Path, workspace: tuple[int, int] | None) -> dict[str, Any]:
        return {"spec": spec.key, "batch": batch, "kernel": str(kernel), "workspace": workspace, "device": self.device.kind, "index": self.device.index}

    def copy_seconds(self, size: int) -> float:
        """Seconds that `y.copy_(x)` takes to move `size` bytes in all (half read, half written), on rotating tensors.

        Raises:
            TuningFailed: it does not run.
        """
        try:
            answer = self.ask({"copy": size, "device": self.device.kind, "index": self.device.index})
        except (Died, TimeoutError) as problem:
            answer = {"error": str(problem) or f"no answer within {self.timeout:.0f} s"}
        if "median" not in answer:
            raise TuningFailed(f"the copy that the floor is measured by failed: {answer.get('error')}")
        return float(answer["median"])

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def operand_shapes(spec: ConvSpec, batch: int, workspace: tuple[int, int] | None) -> list[tuple[int, ...]]:
    """Shapes of a kernel's parameters, in order; conv_dw's last two are of spec.sums, all others of spec.dtype."""
    x, y, w = image_shape(spec, batch, output=False), image_shape(spec, batch, output=True), (spec.channels, spec.kernel_size)
    if spec.op == "conv_dw":
        return [x, y, part_shape(spec, batch, workspace or (1, 1)), w]
    return [x, w, y] if spec.op == "conv" else [y, w, x]


def _as_nchw(spec: ConvSpec, tensor: Any) -> Any:
    """A kernel's tensor with its axes in torch's order."""
    return tensor.permute(0, 3, 1, 2) if spec.layout == "nhwc" and tensor.dim() == 4 else tensor


def _runs(once: float) -> int:
    return max(5, min(200, int(_TARGET_SECONDS / max(once, 1e-6))))


def _device(request: dict[str, Any]) -> Any:
    import torch

    return torch.device("cuda", request["index"]) if request["device"] == "cuda" else torch.device("cpu")


def _function(request: dict[str, Any]) -> Any:
    import tvm_ffi

    from ..toolchain import openmp

    function = tvm_ffi.load_module(request["kernel"]).get_function("main")
    if request["device"] == "cpu":
        openmp.adopt(Path(request["kernel"]))
    return function


def median(function: Any, sets: list[Any], device: Any) -> dict[str, Any]:
    """{"median", "spread"} in seconds of a function that is called with one set of operands after another; device: a torch.device."""
    clock = _cuda_clock if device.type == "cuda" else _cpu_clock
    clock(function, sets[0])
    once = min(clock(function, operands) for operands in sets[:3])
    times = sorted(clock(function, sets[i % len(sets)]) for i in range(_runs(once)))
    return {"median": times[len(times) // 2], "spread": (times[(len(times) * 4) // 5] - times[len(times) // 5]) / 2}


def copies(size: int, kind: str) -> int:
    """How many sets of operands of so many bytes in all rotate, so that none is met again in a cache."""
    return max(2, min(_MOST_BYTES // max(1, size), -(-_COLD_BYTES[kind] // max(1, size)), 64))


def timed(request: dict[str, Any], cache: dict[Any, Any]) -> dict[str, Any]:
    """{"median", "spread"} of a kernel on operands that cache keeps for the next kernel of the same problem."""
    import torch

    spec, device = ConvSpec.from_key(request["spec"]), _device(request)
    shapes = operand_shapes(spec, request["batch"], tuple(request["workspace"]) if request["workspace"] else None)
    count = copies(sum(spec.itemsize * _product(shape) for shape in shapes), device.type)
    key = (str(shapes), spec.dtype, count)
    if key not in cache:
        cache.clear()
        torch.manual_seed(0)
        dtypes = [getattr(torch, spec.sums if spec.op == "conv_dw" and i > 1 else spec.dtype) for i in range(len(shapes))]
        cache[key] = [[torch.randn(shape, dtype=dtype, device=device) for shape, dtype in zip(shapes, dtypes, strict=True)] for _ in range(count)]
    return median(_function(request), cache[key], device)


def copied(request: dict[str, Any]) -> dict[str, Any]:
    """{"median", "spread"} of a copy that moves request["copy"] bytes."""
    import torch

    device, count = _device(request), max(1, request["copy"] // 8)
    sets = [[torch.ones(count, device=device), torch.ones(count, device=device)] for _ in range(copies(8 * count, device.type))]
    return median(lambda x, y: y.copy_(x), sets, device)


def verified(request: dict[str, Any]) -> dict[str, Any]:
    """{"relative": largest error over the largest value} of a kernel that is right, else {"error": how far it is off}."""
    import torch

    from ..evaluate import reference, tolerance

    spec, device = ConvSpec.from_key(request["spec"]), _device(request)
    shapes = operand_shapes(spec, request["batch"], tuple(request["workspace"]) if request["workspace"] else None)
    torch.manual_seed(1)
    first, second = (torch.randn(shape, dtype=getattr(torch, spec.dtype), device=device) for shape in shapes[:2])
    kind = getattr(torch, spec.sums if spec.op == "conv_dw" else spec.dtype)
    outputs = [torch.full(shape, float("nan"), dtype=kind, device=device) for shape in shapes[2:]]
    _function(request)(first, second, *outputs)
    first, second = _as_nchw(spec, first), _as_nchw(spec, second)
    want = reference.run(spec, first, second)
    error = float((_as_nchw(spec, outputs[-1]).to(first.dtype).double() - want).abs().max()) if want.numel() else 0.0
    bound = tolerance.tolerance(spec, request["batch"], first, second)
    if not error <= bound:  # NaN fails too
        return {"error": f"differs from the reference by {error:.3g}, at most {bound:.3g}"}
    return {"relative": error / max(float(want.abs().max()), 1e-30)}


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total


def _cpu_clock(function: Any, operands: list[Any]) -> float:
    start = time.perf_counter()
    function(*operands)
    return time.perf_counter() - start


def _cuda_clock(function: Any, operands: list[Any]) -> float:
    import torch

    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(_QUEUE_CYCLES)
    start.record()
    function(*operands)
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) * 1e-3


def _main() -> None:
    """Answer requests until standard input ends."""
    import torch  # (before tvm: it brings libcudart)

    from ..toolchain.tvm import load_tvm

    load_tvm()
    cache: dict[Any, Any] = {}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        found = verified(request) if request.get("verify") else copied(request) if "copy" in request else timed(request, cache)
        if request["device"] == "cuda":
            torch.cuda.synchronize(request["index"])  # a fault comes to light when it is waited for: here, and not in the next candidate
        return found

    serve(answer)


if __name__ == "__main__":
    _main()
