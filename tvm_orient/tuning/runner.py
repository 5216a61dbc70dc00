"""Kernels are measured in a process of their own: a candidate that crashes takes its worker along, not the tuner.

The worker (`python -m tvm_orient.tuning.runner`) answers one request after another. It times a kernel as the bench does, with
cold caches (`evaluate.timing`).
One in which a candidate failed is replaced: whatever ran after it in the same CUDA context would fail for it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import TuningFailed
from ..evaluate.machine import finish, torch_device
from ..evaluate.timing import measured, sets_in_turn
from ..evaluate.verified import Expected
from ..problem.device import Device
from ..problem.spec import ConvSpec, Operand
from ..toolchain.worker import Answer, ChildProcess, environment, module_command, serve

_COPIED_BYTES = 4  # bytes of an element that the floor's copy moves
Request = dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """The seconds that one kernel takes: the median, and half the distance between the 20th and the 80th percentile; or why there is none."""

    median: float | None
    spread: float = 0.0
    error: str = ""


class Kept:
    """Operands that stay for the next call: those of one problem and those of one size of copy, each with its place in the sequence of turns."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[Hashable, Iterator[list[torch.Tensor]]]] = {}

    def turns(self, what: str, of: Hashable, make: Callable[[], list[list[torch.Tensor]]]) -> Iterator[list[torch.Tensor]]:
        """Returns sets of operands in turn, without end: those that are held where they are of the same thing, else new ones in their place.

        Args:
            what: "kernel" or "copy".
            of: what they belong to, a problem or a size; other operands are made when it changes.
            make: makes the sets.
        """
        if what not in self._held or self._held[what][0] != of:
            self._held.pop(what, None)  # gone before the new ones take memory
            self._held[what] = (of, itertools.cycle(make()))
        return self._held[what][1]


class Runner(ChildProcess):
    """A worker process for one device, which is replaced when a candidate kills it, fails in it or takes longer than timeout seconds."""

    def __init__(self, device: Device, timeout: float = 30.0) -> None:
        super().__init__(module_command("tvm_orient.tuning.runner"), timeout, environment())
        self.device = device

    def time(self, spec: ConvSpec, batch: int, kernel: Path, workspace: tuple[int, int] | None) -> Timing:
        """Times a kernel of a spec on random operands of N = batch."""
        answer = self.told(self._request(spec, batch, kernel, workspace))
        return Timing(answer.get("median"), answer.get("spread", 0.0), answer.get("error", ""))

    def verify(self, spec: ConvSpec, kernel: Path, workspace: tuple[int, int] | None) -> tuple[float | None, str]:
        """Returns (largest error relative to the largest output, "") of a kernel against the reference at N = 2, or (None, why it is wrong)."""
        answer = self.told(self._request(spec, 2, kernel, workspace) | {"verify": True})
        return answer.get("relative"), answer.get("error", "")

    def _request(self, spec: ConvSpec, batch: int, kernel: Path, workspace: tuple[int, int] | None) -> Request:
        return {"spec": spec.key, "batch": batch, "kernel": str(kernel), "workspace": workspace, "device": dataclasses.asdict(self.device)}

    def copy_seconds(self, size: int) -> float:
        """Returns the seconds that `y.copy_(x)` takes to move `size` bytes in all (half read, half written), on rotating tensors.

        Raises:
            TuningFailed: it does not run.
        """
        answer = self.told({"copy": size, "device": dataclasses.asdict(self.device)})
        if "median" not in answer:
            raise TuningFailed(f"the copy that the floor is measured by failed: {answer.get('error')}")
        return float(answer["median"])


def _function(request: Request) -> Any:
    import tvm_ffi

    from ..toolchain import openmp

    function = tvm_ffi.load_module(request["kernel"]).get_function("main")
    if request["device"]["kind"] == "cpu":
        openmp.adopt(Path(request["kernel"]))
    return function


def _torch_order(operand: Operand, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a kernel's tensor with its axes in torch's order."""
    return tensor.movedim(operand.channel_axis, 1) if tensor.dim() == 4 else tensor


def _problem(request: Request) -> tuple[ConvSpec, Device, tuple[Operand, ...]]:
    spec = ConvSpec.from_key(request["spec"])
    return spec, Device(**request["device"]), spec.operands(request["batch"], tuple(request["workspace"] or (1, 1)))


def _made(operand: Operand, where: torch.device) -> torch.Tensor:
    """Returns a tensor for an operand: normal random numbers where the caller fills it, else the NaN that a kernel has to replace."""
    dtype = getattr(torch, operand.dtype)
    if operand.role == "input":
        return torch.randn(operand.shape, dtype=dtype, device=where)
    return torch.full(operand.shape, math.nan, dtype=dtype, device=where)


def timed(request: Request, kept: Kept) -> Answer:
    """Returns {"median", "spread"} in seconds of a kernel; kept holds its operands for the next kernel of the same problem."""
    spec, device, operands = _problem(request)
    where = torch_device(device)

    def sets() -> list[list[torch.Tensor]]:
        torch.manual_seed(0)
        first = [_made(operand, where) for operand in operands]
        more = sets_in_turn(spec.bytes_moved(request["batch"]), device) - 1
        return [first, *([tensor.clone() for tensor in first] for _ in range(more))]

    turns = kept.turns("kernel", (request["spec"], request["batch"], operands), sets)
    median, spread = measured(where, _function(request), turns)
    return {"median": median, "spread": spread}


def copied(request: Request, kept: Kept) -> Answer:
    """Returns {"median", "spread"} in seconds of a copy that moves request["copy"] bytes, half of them read and half written."""
    device, count = Device(**request["device"]), max(1, request["copy"] // (2 * _COPIED_BYTES))
    where = torch_device(device)

    def sets() -> list[list[torch.Tensor]]:
        number = sets_in_turn(2 * _COPIED_BYTES * count, device)
        return [[torch.ones(count, device=where), torch.ones(count, device=where)] for _ in range(number)]

    median, spread = measured(where, lambda x, y: y.copy_(x), kept.turns("copy", count, sets))
    return {"median": median, "spread": spread}


def checked(request: Request) -> Answer:
    """Returns {"relative": largest error over the largest value} for a kernel that is right, else {"error": what is wrong}."""
    spec, device, operands = _problem(request)
    torch.manual_seed(1)
    tensors = [_made(operand, torch_device(device)) for operand in operands]
    _function(request)(*tensors)
    given = [_torch_order(operand, tensor) for operand, tensor in zip(operands, tensors, strict=True) if operand.role == "input"]
    result = _torch_order(operands[-1], tensors[-1]).to(getattr(torch, spec.dtype))
    verdict = Expected(spec, *given).verdict(result)
    return {"error": verdict.wrong} if verdict.wrong else {"relative": verdict.relative}


def _main() -> None:
    """Answers requests until standard input ends."""
    from ..toolchain.tvm import load_tvm  # after torch, which brings libcudart

    load_tvm()
    kept = Kept()

    def answer(request: Request) -> Answer:
        found = checked(request) if request.get("verify") else copied(request, kept) if "copy" in request else timed(request, kept)
        finish(Device(**request["device"]))  # a fault comes to light when it is waited for: here, and not in the next candidate
        return found

    serve(answer)


if __name__ == "__main__":
    _main()
