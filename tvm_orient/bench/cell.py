"""One cell of a bench: every method on the same operands, checked, then timed in turns."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import torch

from .. import env
from ..errors import OrientError, Unsupported, last_line
from ..evaluate.machine import clocks, finish, no_collector, others_busy, time_limit, torch_device
from ..evaluate.timing import sets_in_turn, timed
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

Report = Callable[[str], None]

_SLOW_S = {"cpu": 3.0, "cuda": 0.5}  # what one method may spend in one state of the cache; slow ones get fewer calls, _MIN_CALLS at least
_MIN_CALLS = {"cpu": 5, "cuda": 3}  # timed calls of a method, however slow: a GPU's time spreads less, and is lent by the minute
_FAR = 3  # times our own time: a peer beyond that gets the fewest calls too
_LONG_S = 0.1  # a call so long pays for waking its own threads without showing it
_SETTLE_S = 0.002  # between turns on a CPU: other pools of threads than the coming one stop waiting for work


def silent(text: str) -> None:
    """Reports to nobody."""


class Cell:
    """One spec on its way through: operands, expected result, runs."""

    def __init__(self, spec: ConvSpec, device: Device, batch: int, report: Report, title: str, patience: float | None = None) -> None:
        self.spec, self.device, self.batch, self.patience = spec, device, batch, patience
        self.where = torch_device(device)
        self.report, self.title = report, title
        self.operands = sample(spec, batch, self.where)
        self._sets: dict[torch.memory_format, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self.count = sets_in_turn(spec.bytes_moved(batch), device)

    def say(self, text: str) -> None:
        """Reports a step of this cell."""
        self.report(f"{self.title}: {text}")

    def rows(self, wanted: Sequence[str], repeats: int, states: Sequence[str]) -> list[Row]:
        """Check everything, time what is right, check again."""
        runs = [*self._ours(), *self._theirs(floors.FLOORS, [peer.name for peer in floors.FLOORS]), *self._theirs(registry.PEERS, wanted)]
        with base.settings():
            self.say("reference")
            self.expected = Expected(self.spec, *self.operands)
            for run in runs:
                self._check(run)
            load, speeds = others_busy() if self.device.kind == "cpu" else None, ""
            for state in states:
                self._time([run for run in runs if not run.failed], repeats, state)
                speeds = speeds or clocks(self.device)
            for run in runs:
                self._check(run)
        return self._written(runs, states, {"busy": load, "clocks": speeds})

    # ---- methods --------------------------------------------------------------------------------

    def _ours(self) -> list[Method]:
        """Tuned, as the logs choose, through the torch op; and untuned: through the op too where the logs know nothing."""
        self.say("building our kernels")
        form = torch.channels_last if self.spec.layout == "nhwc" else torch.contiguous_format
        tuned, default = Method(TUNED, ours=True, layout=form), Method(DEFAULT, ours=True, layout=form)
        try:
            recorded = any(part.record is not None for part in resolve.explain(self.spec, self.device))
        except Unsupported as problem:  # no template, or TVM_ORIENT_LOOKUP forbids untuned kernels
            tuned.fail(f"failed: {problem}")
            self._try(default, self._untuned)
            return [tuned, default]
        if recorded:
            self._try(tuned, self._chosen)
            self._try(default, self._untuned)
        else:
            tuned.fail("not tuned: no record may answer for it")
            self._try(default, self._chosen)
        return [tuned, default]

    def _try(self, run: Method, make: Callable[[], Call]) -> None:
        try:
            run.calls = [make()]
        except OrientError as problem:
            run.fail(f"failed: {problem}")

    def _chosen(self) -> Call:
        serving.kernel(self.spec, self.device)
        return public_op(self.spec)

    def _untuned(self) -> Call:
        spec, device = self.spec, self.device
        return twin_op(serving.load(spec, device, default_choices(spec, device), compiling=env.building_call() > 0))

    def _theirs(self, among: Sequence[base.Peer], wanted: Collection[str]) -> list[Method]:
        runs = []
        for peer in (peer for peer in among if peer.name in wanted):
            floor = peer in floors.FLOORS
            run = Method(peer.name, floor=floor, layout=peer.memory_format)
            reason = peer.applies(self.spec)
            if reason is None:
                run.note = "floor: moves the bytes, computes nothing" if floor else ""
                try:
                    # a copy writes to a place of its own, so there is one copy for each set
                    run.calls = [peer.make(self.spec, self.where) for _ in range(self.count if floor else 1)]
                except OrientError as problem:
                    run.fail(f"failed: {problem}")
            elif not floor:
                run.fail(f"does not apply: {reason}")
            if not (floor and reason):
                runs.append(run)
        return runs

    # ---- one call -------------------------------------------------------------------------------

    def _set(self, layout: torch.memory_format, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        sets = self._sets.setdefault(layout, [])
        while len(sets) <= index:
            sets.append(tuple(t.clone(memory_format=layout) if t.dim() == 4 else t.clone() for t in self.operands))  # type: ignore[arg-type]
        return sets[index]

    def _call(self, run: Method, index: int) -> tuple[Call, tuple[torch.Tensor, torch.Tensor]]:
        """The function and the operands of a set, with the place of its last result given back."""
        run.results.extend([None] * (index + 1 - len(run.results)))
        run.results[index] = None
        return run.calls[index % len(run.calls)], self._set(run.layout, index)

    def _check(self, run: Method) -> None:
        """Sets run.error; fails the run where the result is not that of the reference."""
        if run.failed or run.floor:
            return
        self.say(f"checking {run.name}")
        for _ in range(2):  # what the allocator gives next is not an earlier method's right result
            torch.full(tuple(self.expected.result.shape), math.nan, dtype=self.operands[0].dtype, device=self.where)
        try:
            call, operands = self._call(run, 0)
            with time_limit(None if run.ours else self.patience):
                result = call(*operands)
        except Exception as problem:  # of a peer: whatever its compiler raises; it must not end the others
            run.fail(f"failed: {_what_failed(problem)}")
            return
        verdict = self.expected.verdict(result)
        if verdict.difference < math.inf:
            run.error = max(run.error or 0.0, verdict.relative)
        if verdict.wrong:
            run.fail(f"wrong: {verdict.wrong}; no time is given")

    # ---- turns ----------------------------------------------------------------------------------

    def _time(self, runs: list[Method], repeats: int, state: str) -> None:
        """Fills run.times[state], in seconds."""
        sets = itertools.cycle(range(self.count if state == "cold" else 1))
        for run in runs:
            self._touch(run, sets, state)
        runs = [run for run in runs if not run.failed]
        shares = {run.name: self._share(run, runs, repeats) for run in runs}
        order, shuffled = list(runs), random.Random(0)
        with no_collector():
            for turn in range(repeats):
                self.say(f"{state}: round {turn + 1} of {repeats}")
                shuffled.shuffle(order)
                for run in order:
                    share = shares[run.name]  # of the repeats, evenly spread
                    if (turn + 1) * share // repeats > turn * share // repeats:
                        run.times[state].append(self._turn(run, next(sets), next(sets)))
        for run in runs:
            run.results = []

    def _share(self, run: Method, runs: Sequence[Method], repeats: int) -> int:
        """How many of the repeats a method gets: few where its calls are long, or where a peer is far from us."""
        fewest = _MIN_CALLS[self.device.kind]
        ours = min((other.seconds for other in runs if other.ours), default=math.inf)
        far = not (run.ours or run.floor) and run.seconds > _FAR * ours
        return min(repeats, fewest if far else max(fewest, int(_SLOW_S[self.device.kind] / (2 * run.seconds + _SETTLE_S))))

    def _touch(self, run: Method, sets: Iterator[int], state: str) -> None:
        """Calls a method with every set, so that all memory has been touched, for a few seconds at most; sets run.seconds of a call."""
        self.say(f"{state}: {run.name}")
        spent, run.times[state] = 0.0, []
        for index in itertools.islice(sets, self.count if state == "cold" else 2):
            try:
                call, operands = self._call(run, index)
                start = time.perf_counter()
                run.results[index] = call(*operands)
                finish(self.device)
            except Exception as problem:  # of a peer: out of memory, say
                run.fail(f"failed: {_what_failed(problem)}")
                return
            run.seconds = time.perf_counter() - start
            spent += run.seconds
            if spent > _SLOW_S[self.device.kind]:
                return

    def _turn(self, run: Method, before: int, index: int) -> float:
        """Seconds of one timed call, after one that is not timed."""
        if self.device.kind == "cpu":
            time.sleep(_SETTLE_S)
        if run.seconds < _LONG_S:
            call, operands = self._call(run, before)
            run.results[before] = call(*operands)
        call, operands = self._call(run, index)
        seconds, run.results[index] = timed(self.where, call, operands)
        return seconds

    # ---- rows -----------------------------------------------------------------------------------

    def _written(self, runs: list[Method], states: Sequence[str], circumstances: dict[str, Any]) -> list[Row]:
        spec, moved = self.spec, self.spec.bytes_moved(self.batch)
        problem: dict[str, Any] = {name: getattr(spec, name) for name in ("op", "channels", "height", "width", "kernel_size", "padding_mode", "dtype")}
        stride = "x".join(str(step) for step in dict.fromkeys(spec.stride))
        problem |= {"spec": spec.key, "angles": angles_text(spec), "stride": stride, "batch": self.batch}
        problem |= provenance(self.device) | circumstances
        rows = []
        for state in states:
            medians = {run.name: float(np.median(run.times[state])) for run in runs if run.times.get(state)}
            floor = next((medians[run.name] for run in runs if run.floor and run.name in medians), None)
            best = min((medians[run.name] for run in runs if run.ours and run.name in medians), default=None)
            for run in runs:
                fields: dict[str, Any] = {"method": run.name, "error": run.error, "checked": not (run.failed or run.floor), "note": run.note}
                time_s = medians.get(run.name)
                if time_s is not None:
                    low, high = (float(np.quantile(run.times[state], part)) for part in (0.2, 0.8))
                    speed: dict[str, Any] = {
                        "floor_ratio": floor / time_s if floor else None,
                        "vs_ours": time_s / best if best else None,
                        "gbps": moved / time_s / 1e9,
                    }
                    rows.append(Row(**problem, **fields, **speed, cache=state, median_ms=1e3 * time_s, p20_ms=1e3 * low, p80_ms=1e3 * high))
                elif state == states[0]:
                    nothing: dict[str, Any] = dict.fromkeys(("median_ms", "p20_ms", "p80_ms", "gbps", "floor_ratio", "vs_ours"))
                    rows.append(Row(**problem, **fields, **nothing, cache=""))
        return rows


def provenance(device: Device) -> dict[str, Any]:
    """Says where a row of measurements was made: device, threads, versions, date."""
    found = {"device": device.slug, "hardware": device.name, "threads": torch.get_num_threads(), "torch": str(torch.__version__)}
    recorded = versions.provenance()
    found |= {name: recorded[name] for name in ("tvm", "version")}
    return {**found, "date": datetime.now(UTC).isoformat(timespec="seconds")}


def _what_failed(problem: BaseException) -> str:
    """The kind of a problem and the last line of what it says, on one line of a table."""
    return f"{type(problem).__name__}: {last_line(problem)[:200]}"
