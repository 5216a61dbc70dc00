"""CPU: the base of templates that unroll their taps: which sums and how many taps they serve, and the vectors of the machine."""

from __future__ import annotations

from typing import TypeVar

from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import DTYPES, ConvSpec

from ..base import Config, Template

MAX_UNROLLED = 2048  # multiply-adds in one patch: beyond, LLVM takes seconds and the code leaves the instruction cache
MAX_TAPS = 256  # taps of a channel

U = TypeVar("U", bound=Config)


class BaseUnrolled(Template[U]):
    """A CPU template of unrolled taps."""

    kind = "cpu"
    sums = ("float32", "float64")

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        if spec.kernel_size > MAX_TAPS:
            return f"unrolls its taps, at most {MAX_TAPS}, got {spec.kernel_size}"
        return None


def vectors(spec: ConvSpec, device: Device) -> tuple[int, ...]:
    """Returns the lanes of a vector of sums, widest first."""
    widest = device.vector_bytes // DTYPES[spec.sums]
    return tuple(v for v in (widest, widest // 2, widest // 4) if v > 1)
