"""Waits for global memory: one wait lets everything arrive that is on its way."""

from __future__ import annotations

from tvm_orient.sass.exposed_waits import ExposedWaits
from tvm_orient.sass.trace import Overlap, Trace


def started(warps: int = 2) -> tuple[Trace, ExposedWaits]:
    trace = Trace(1, warps)
    return trace, ExposedWaits(trace)


def test_loads_that_are_on_their_way_together_are_waited_for_once() -> None:
    trace, waits = started()
    waits.load(["R2", "R3"])
    waits.load(["R8"])
    waits.use("R4")
    assert trace.exposed_waits == 0, "nobody needs R4 from memory"
    waits.use("-R3.reuse")
    waits.use("R8")
    assert trace.exposed_waits == 1


def test_a_register_that_gets_another_value_is_not_waited_for() -> None:
    trace, waits = started()
    waits.load(["R2"])
    waits.overwrite("R2")
    waits.use("R2")
    assert trace.exposed_waits == 0


def test_copies_are_waited_for_by_groups() -> None:
    trace, waits = started()
    waits.copy()
    waits.commit()
    waits.commit()
    waits.await_groups(0)
    assert trace.exposed_waits == 1
    waits.await_groups(0)
    assert trace.exposed_waits == 1, "nothing is on its way any more"
    waits.commit()
    waits.await_groups(0)
    assert trace.exposed_waits == 1, "a group without copies"


def test_what_overlaps_with_copies_that_were_sent_ahead() -> None:
    trace, waits = started()
    waits.copy()
    waits.commit()
    waits.per_warp += [10, 30]
    waits.load(["R2"])
    waits.copy()
    waits.commit()
    waits.await_groups(1)
    assert trace.overlaps == {0: Overlap(instructions=30, exposed_waits=0)}
    waits.use("R2")
    assert (trace.exposed_waits, waits.busiest) == (2, 30)
