"""The machine code of every template on the problems of the sanitizer's driver, at length: `make machine-code` (pytest -m sweep), hours on two cores.

`-k defaults` leaves out the choices that are one value of one knob away from the default, which are most of the time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from _machine import check_machine, machines

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import sanitize

from tvm_orient.device import arch_device
from tvm_orient.errors import BuildFailed
from tvm_orient.execute import ORDERS
from tvm_orient.spec import OPS

pytestmark = [pytest.mark.sweep, pytest.mark.timeout(7200)]


@pytest.mark.parametrize("depth", ["defaults", "knobs"])
@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("problem", sanitize.PROBLEMS)
def test_machine_code(problem: str, op: str, arch: str, depth: str) -> None:
    """Every case is run, in every order of warps; what is wrong is told all together."""
    device, wrong, count = arch_device(arch), [], 0
    shallow = list(sanitize.cases(device, False, [problem]))
    chosen = shallow if depth == "defaults" else [case for case in sanitize.cases(device, True, [problem]) if case not in shallow]
    for what, spec, choices in chosen:
        if spec.op != op:
            continue
        count += 1
        try:
            (machine,) = machines({"case": (spec, choices)}, arch).values()
            check_machine(machine, ORDERS)
        except (AssertionError, BuildFailed) as problem_found:
            wrong.append(f"{what}, {spec.layout}: {problem_found}")
    print(f"{count} cases")
    assert not wrong, "\n".join([f"{len(wrong)} of {count}:", *wrong])
