"""One cell of a bench: every method on the same operands, checked, then timed in turns."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from .. import env
from ..errors import OrientError, Unsupported
from ..evaluate.machine import clocks, others_busy, time_limit, torch_device
from ..evaluate.timing import sets_in_turn
from ..evaluate.verified import Expected
from ..kernels import resolve
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..runtime import serving
from ..schedules.choices import default_choices
from ..toolchain import versions
from .methods import Call, Method, angles_text, public_op, sample, twin_op
from .peers import base, floors, registry
from .rows import DEFAULT, TUNED, Row
from .turns import OperandSets, Turns, what_failed

Report = Callable[[str], None]

_PROBLEM_FIELDS = ("op", "channels", "height", "width", "kernel_size", "padding_mode", "dtype")  # of a spec, that its rows have too
_UNTIMED = ("median_ms", "p20_ms", "p80_ms", "gbps", "floor_ratio", "vs_ours")  # fields of a row that are None where a method got no time


def silent(text: str) -> None:
    """Reports to nobody."""


class Cell:
    """One spec on its way through a bench: its operands, the expected result, and the methods that are checked and timed.

    Attributes:
        sets: the operands, and how many sets of them are used in turn.
    """

    def __init__(self, spec: ConvSpec, device: Device, batch: int, report: Report, title: str, patience: float | None = None) -> None:
        self.spec, self.device, self.batch, self.patience = spec, device, batch, patience
        self.where = torch_device(device)
        self.report, self.title = report, title
        self.sets = OperandSets(sample(spec, batch, self.where), sets_in_turn(spec.bytes_moved(batch), device))

    def say(self, text: str) -> None:
        """Reports a step of this cell."""
        self.report(f"{self.title}: {text}")

    def rows(self, wanted: Sequence[str], repeats: int, states: Sequence[str]) -> list[Row]:
        """Checks everything, times what is right, checks again; returns a row for each method and state."""
        methods = [*self._ours(), *self._theirs(floors.FLOORS, [peer.name for peer in floors.FLOORS]), *self._theirs(registry.PEERS, wanted)]
        turns = Turns(self.device, self.sets, self.say)
        with base.settings():
            self.say("reference")
            self.expected = Expected(self.spec, *self.sets.operands)
            for method in methods:
                self._check(method)
            load, speeds = others_busy() if self.device.kind == "cpu" else None, ""
            for state in states:
                turns.time([method for method in methods if not method.failed], repeats, state)
                speeds = speeds or clocks(self.device)
            for method in methods:
                self._check(method)
        common = _problem_fields(self.spec, self.batch) | provenance(self.device) | {"busy": load, "clocks": speeds}
        return [row for state in states for row in _rows_of_state(methods, state, common, self.spec.bytes_moved(self.batch), first=state == states[0])]

    def _ours(self) -> list[Method]:
        """Returns ours tuned, as the logs choose, through the torch op; and untuned: through the op too where the logs know nothing."""
        self.say("building our kernels")
        layout = torch.channels_last if self.spec.layout == "nhwc" else torch.contiguous_format
        tuned, default = Method(TUNED, ours=True, layout=layout), Method(DEFAULT, ours=True, layout=layout)
        try:
            recorded = any(part.record is not None for part in resolve.explain(self.spec, self.device))
        except Unsupported as problem:  # no template, or TVM_ORIENT_LOOKUP forbids untuned kernels
            tuned.fail(f"failed: {problem}")
            _add_call(default, self._untuned)
            return [tuned, default]
        if recorded:
            _add_call(tuned, self._chosen)
            _add_call(default, self._untuned)
        else:
            tuned.fail("not tuned: no record may answer for it")
            _add_call(default, self._chosen)
        return [tuned, default]

    def _chosen(self) -> Call:
        serving.kernel(self.spec, self.device)
        return public_op(self.spec)

    def _untuned(self) -> Call:
        spec, device = self.spec, self.device
        return twin_op(serving.load(spec, device, default_choices(spec, device), compiling=env.building_call() > 0))

    def _theirs(self, among: Sequence[base.Peer], wanted: Collection[str]) -> list[Method]:
        methods = []
        for peer in (peer for peer in among if peer.name in wanted):
            floor = peer in floors.FLOORS
            method = Method(peer.name, floor=floor, layout=peer.memory_format)
            reason = peer.applies(self.spec)
            if reason is None:
                method.note = "floor: moves the bytes, computes nothing" if floor else ""
                try:
                    # a copy writes to a place of its own, so there is one copy for each set
                    method.calls = [peer.make(self.spec, self.where) for _ in range(self.sets.count if floor else 1)]
                except OrientError as problem:
                    method.fail(f"failed: {problem}")
            elif not floor:
                method.fail(f"does not apply: {reason}")
            if not (floor and reason):
                methods.append(method)
        return methods

    def _check(self, method: Method) -> None:
        """Sets method.error; fails the method where its result is not that of the reference."""
        if method.failed or method.floor:
            return
        self.say(f"checking {method.name}")
        for _ in range(2):  # what the allocator gives next is not an earlier method's right result
            torch.full(tuple(self.expected.result.shape), math.nan, dtype=self.sets.operands[0].dtype, device=self.where)
        try:
            call, operands = self.sets.call(method, 0)
            with time_limit(None if method.ours else self.patience):
                result = call(*operands)
        except Exception as problem:  # of a peer: whatever its compiler raises; it must not end the others
            method.fail(f"failed: {what_failed(problem)}")
            return
        verdict = self.expected.verdict(result)
        if verdict.difference < math.inf:
            method.error = max(method.error or 0.0, verdict.relative)
        if verdict.wrong:
            method.fail(f"wrong: {verdict.wrong}; no time is given")


def _add_call(method: Method, make: Callable[[], Call]) -> None:
    try:
        method.calls = [make()]
    except OrientError as problem:
        method.fail(f"failed: {problem}")


def _rows_of_state(methods: Sequence[Method], state: str, common: dict[str, Any], moved: int, *, first: bool) -> list[Row]:
    """Returns the rows of one state of the cache; methods without a time are told of once, in the first state.

    Args:
        common: the fields that all rows of the cell share.
        moved: bytes that a call moves at least.
    """
    medians = {method.name: float(np.median(method.times[state])) for method in methods if method.times.get(state)}
    floor = next((medians[method.name] for method in methods if method.floor and method.name in medians), None)
    best = min((medians[method.name] for method in methods if method.ours and method.name in medians), default=None)
    rows = []
    for method in methods:
        fields: dict[str, Any] = {"method": method.name, "error": method.error, "checked": not (method.failed or method.floor), "note": method.note}
        seconds = medians.get(method.name)
        if seconds is not None:
            low, high = (float(np.quantile(method.times[state], part)) for part in (0.2, 0.8))
            speed: dict[str, Any] = {
                "floor_ratio": floor / seconds if floor else None,
                "vs_ours": seconds / best if best else None,
                "gbps": moved / seconds / 1e9,
            }
            rows.append(Row(**common, **fields, **speed, cache=state, median_ms=1e3 * seconds, p20_ms=1e3 * low, p80_ms=1e3 * high))
        elif first:
            nothing: dict[str, Any] = dict.fromkeys(_UNTIMED)
            rows.append(Row(**common, **fields, **nothing, cache=""))
    return rows


def _problem_fields(spec: ConvSpec, batch: int) -> dict[str, Any]:
    """Returns the fields of a row that say which problem was timed."""
    fields = {name: getattr(spec, name) for name in _PROBLEM_FIELDS}
    stride = "x".join(str(step) for step in dict.fromkeys(spec.stride))
    return fields | {"spec": spec.key, "angles": angles_text(spec), "stride": stride, "batch": batch}


def provenance(device: Device) -> dict[str, Any]:
    """Returns where a row of measurements was made: device, threads, versions, date."""
    found = {"device": device.slug, "hardware": device.name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    recorded = versions.provenance()
    found |= {name: recorded[name] for name in ("tvm", "version")}
    return {**found, "date": datetime.now(UTC).isoformat(timespec="seconds")}
