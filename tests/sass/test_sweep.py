"""The machine code of every template on the problems of the sanitizer's driver, at length: `make machine-code` (pytest -m sweep), hours on two cores.

`-k defaults` leaves out the choices that are one value of one knob away from the default, which are most of the time.
"""

from __future__ import annotations

import pytest

from benchmarks.gpu import sanitize
from tests.support.machine_code import check_machine, machines
from tvm_orient.errors import BuildFailed
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.spec import OPS
from tvm_orient.sass.executor import ORDERS

_TOGETHER = 12  # cases that are compiled at once

pytestmark = [pytest.mark.sweep, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("depth", ["defaults", "knobs"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("problem", sanitize.PROBLEMS)
def test_machine_code(problem: str, op: str, arch: str, depth: str) -> None:
    """Every case is run, in every order of warps; what is wrong is told all together."""
    device, wrong = arch_device(arch), []
    shallow = list(sanitize.cases(device, False, [problem]))
    chosen = shallow if depth == "defaults" else [case for case in sanitize.cases(device, True, [problem]) if case not in shallow]
    chosen = [case for case in chosen if case[1].op == op]
    for start in range(0, len(chosen), _TOGETHER):
        some = {f"case{start + i}": case for i, case in enumerate(chosen[start : start + _TOGETHER])}
        for name, machine in machines({name: (spec, choices) for name, (_, spec, choices) in some.items()}, arch).items():
            try:
                check_machine(machine, ORDERS)
            except (AssertionError, BuildFailed) as why:
                wrong.append(f"{some[name][0]}, {machine.spec.layout}: {why}")
    print(f"{len(chosen)} cases")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(chosen)}:", *wrong])
