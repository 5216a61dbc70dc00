"""Machine code of generated kernels, executed with values (`tvm_orient.evaluate.cubin_executor`) and compared with the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tests.support.helpers import assert_close, operands
from tvm_orient.evaluate import cubin_executor
from tvm_orient.evaluate.cubin_executor import Case, Machine
from tvm_orient.problem.device import arch_device

__all__ = ["Case", "Machine", "check_machine", "machines", "outcome"]


def machines(cases: Mapping[str, Case], arch: str) -> dict[str, Machine]:
    """The cases compiled for an arch."""
    return cubin_executor.machines(cases, arch_device(arch))


def outcome(machine: Machine, given: Sequence[Tensor], order: str = "ascending", seed: int = 0) -> Tensor:
    """What the machine code computes, its warps run in that order; fails where it touches memory that is not its own."""
    called = cubin_executor.run(machine, given, order, seed)
    assert not called.faults, f"{machine.spec}: {'; '.join(called.faults)}"
    return called.result


def check_machine(machine: Machine, orders: Sequence[str] = ("ascending",), batch: int = 2, note: str = "") -> None:
    """The machine code against the oracle, and the same to the last bit in every order of warps."""
    given, first = operands(machine.spec, batch), None
    for order in orders:
        found = outcome(machine, given, order)
        assert_close(found, machine.spec, given, note=f"{note} {order} {machine.choices}")
        assert first is None or torch.equal(found, first), f"{machine.spec}: the result depends on the order of warps"
        first = found
