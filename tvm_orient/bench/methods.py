"""Methods of a bench: our kernels, as the public op and alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from .. import ops
from ..problem.spec import ConvSpec
from ..problem.taps_key import degrees_text

Call = Callable[..., torch.Tensor]


@dataclass
class Method:
    """A method on its way through a bench: calls holds one function per set of operands, results the last result of each."""

    name: str
    ours: bool = False
    floor: bool = False
    layout: torch.memory_format = torch.contiguous_format
    calls: list[Call] = field(default_factory=list)
    results: list[torch.Tensor | None] = field(default_factory=list)
    times: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    error: float | None = None
    note: str = ""
    failed: bool = False

    def fail(self, why: str) -> None:
        self.note, self.failed, self.times = why, True, {}
        self.calls, self.results = [], []


def angles_text(spec: ConvSpec) -> str:
    """Returns the angles of a spec in degrees, such as "0 22.5 45"; "free" where the offsets are no lines."""
    return " ".join(map(degrees_text, spec.taps.degrees)) or "free"


def public_op(spec: ConvSpec) -> Call:
    """Returns the torch op of a spec as a function of its operands: what a caller gets, with dispatch and checks."""
    taps, stride, mode = spec.taps.key, list(spec.stride), spec.padding_mode
    if spec.op == "conv":
        return lambda x, weight: ops.conv(x, weight, taps, stride, mode)
    if spec.op == "conv_dx":
        return lambda dy, weight: ops.conv_dx(dy, weight, taps, spec.height, spec.width, stride, mode)
    return lambda x, dy: ops.conv_dw(x, dy, taps, stride, mode)


_twins: list[Call] = []
_library = torch.library.Library("tvm_orient_bench", "DEF")
_library.define("twin(Tensor first, Tensor second, int number) -> Tensor")


def _twin(first: torch.Tensor, second: torch.Tensor, number: int) -> torch.Tensor:
    return _twins[number](first, second)


for _key in ("CPU", "CUDA"):
    _library.impl("twin", _twin, _key)
torch.library.register_autograd("tvm_orient_bench::twin", lambda ctx, grad: (None, None, None), lib=_library)


def twin_op(kernel: Call) -> Call:
    """Returns a kernel called through an op like ours, so that two kernels differ in nothing but themselves."""
    _twins.append(kernel)
    number = len(_twins) - 1
    return lambda first, second: torch.ops.tvm_orient_bench.twin.default(first, second, number)


def sample(spec: ConvSpec, batch: int, where: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns normal random operands of spec.op, the same in every run."""
    first, second = (operand.torch_shape for operand in spec.operands(batch)[:2])
    source, dtype = torch.Generator(where).manual_seed(0), getattr(torch, spec.dtype)
    return torch.randn(first, generator=source, dtype=dtype, device=where), torch.randn(second, generator=source, dtype=dtype, device=where)
