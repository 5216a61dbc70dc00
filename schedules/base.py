"""The rule protocol of a template family, and what several of them share."""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tvm_orient.banks import WARP
from tvm_orient.batches import MOST_UNROLLED, batches
from tvm_orient.device import Device, capability
from tvm_orient.estimate import soft_maximum
from tvm_orient.form import Form
from tvm_orient.gather import gather
from tvm_orient.spec import ConvSpec

Decisions = Mapping[str, int]
_BY_ROWS, _ROLLED = 4, 20  # instructions of a copy of half precision, besides a conversion for each value, where turns are unrolled and where not
CLOSE = 1.035  # estimates that differ by less than this are equal: a second resource at 0.87 of the first makes that much
_SMALL = 4  # values that a lane moves at once
ASYNCHRONOUS = (8, 0)  # least compute capability with cp.async
_NARROW = 64  # columns of a plane whose rows are never cut


class Most(NamedTuple):
    """Bytes of shared memory of a CUDA block by use: merged angles add the largest of each, and a kernel may have 48 KiB."""

    staged: int
    collected: int
    weights: int


MOST = Most(33792, 13312, 2048)
# TVM then gives the results the memory of the staged pixels, and where a merged group idles some threads that takes a barrier inside a branch, which it refuses
ONE_OFFSET = "not for a single offset that reaches the plane, where collected results could take the place of the staged pixels"
ONE_TILE = {"turns": 1, "stages": 1}  # knobs of a block that copies one tile, waits for it and computes it


class Template(ABC):
    """One way to schedule single-group problems: named knobs, a default that is always valid, reasons to decline."""

    name: str  #: in records
    version: int  #: changes when the same decisions would give another kernel; older records are then ignored
    kind: str  #: of device, "cpu" or "cuda"
    ops: tuple[str, ...]  #: those of `tvm_orient.ConvSpec.op` that it serves
    layouts: tuple[str, ...] = ("nchw",)  #: those of `tvm_orient.ConvSpec.layout` that it serves
    sums: tuple[str, ...] = ("float32",)  #: those of `tvm_orient.ConvSpec.sums` that it serves

    def declines(self, spec: ConvSpec, device: Device) -> str | None:
        """None where this template serves the spec on the device, else why it does not."""
        if device.kind != self.kind:
            return f"for {self.kind} only"
        if spec.op not in self.ops:
            return f"for {', '.join(self.ops)} only"
        if spec.layout not in self.layouts:
            return f"for {', '.join(self.layouts)} only"
        if spec.sums not in self.sums:
            return f"for sums in {', '.join(self.sums)}, got {spec.dtype}"
        if device.kind == "cuda" and capability(device.arch) < ASYNCHRONOUS:
            return f"for sm_80 and later, whose copies into shared memory may be asynchronous, got {device.arch}"
        return self._declines(spec, device) if spec.taps.groups == 1 else None

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        """As `declines`, of single-group specs of its op, layout and dtype."""
        return None

    @abstractmethod
    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        """Every named knob with the values that make sense here, in the order in which they are sampled."""

    @abstractmethod
    def default(self, spec: ConvSpec, device: Device) -> Decisions:
        """A good choice without tuning; always valid."""

    def invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        """None where the decisions make a kernel that fits the device, else why not."""
        knobs = self.knobs(spec, device)
        if set(knobs) != set(decisions):
            return f"decisions must name {', '.join(knobs)}, got {', '.join(decisions)}"
        for name, value in decisions.items():
            if value not in knobs[name]:
                return f"{name} must be one of {', '.join(map(str, knobs[name]))}, got {value}"
        return self._invalid(spec, device, decisions)

    def _invalid(self, spec: ConvSpec, device: Device, decisions: Decisions) -> str | None:
        return None

    def estimate(self, spec: ConvSpec, device: Device, decisions: Decisions) -> dict[str, float]:
        """Clocks of an SM for 32 outputs by resource, before anything is compiled; empty for a template that has no estimate."""
        return {}

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterable[Decisions]:
        """Choices that are worth an estimate, valid or not; none for a template whose default compares nothing."""
        return ()

    def worth_estimating(self, spec: ConvSpec, device: Device) -> list[Decisions]:
        """Valid choices that are worth comparing by their estimates, beside the default."""
        return [trial for trial in self._candidates(spec, device) if self._invalid(spec, device, trial) is None]

    def unrolled(self, spec: ConvSpec, decisions: Decisions) -> int:
        """Multiply-adds that stand in the code of a thread, which compiling takes time for; 0 where a template has never too many."""
        return 0

    @abstractmethod
    def form(self, spec: ConvSpec, decisions: Decisions) -> Form:
        """The layout of the TE stages that `apply` expects."""

    @abstractmethod
    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        """Schedule the stages of `compute.part_func` in place.

        Each top-level nest must end with its outermost loop over independent tasks (CPU: left serial, `merge` makes it
        parallel; CUDA: bound to blockIdx.x).
        """

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        """The scheduled function with what schedule primitives cannot express."""
        return func


@functools.lru_cache(maxsize=2048)
def least_estimate(template: Any, spec: ConvSpec, device: Device, close: float = 1.0) -> tuple[tuple[str, int], ...]:
    """Of what a template's `_candidates` gives, the first valid decisions of at most `close` times the least estimate; its `_least` where none is."""
    valid = template.worth_estimating(spec, device)
    if not valid:
        return tuple(template._least(spec, device).items())
    scores = [soft_maximum(template.estimate(spec, device, trial)) for trial in valid]
    most = close * min(scores)
    return tuple(next(trial for trial, score in zip(valid, scores, strict=True) if score <= most).items())


class Generic(ABC):
    """Kernels that take sizes and offsets at run time (`anysize.plan` gives them): one serves every spec of its op, mode and dtype."""

    name: str
    version: int
    kind: str

    @abstractmethod
    def func(self, op: str, padding_mode: str, dtype: str, device: Device) -> Any:
        """The scheduled PrimFunc."""


def divisors(value: int, most: int) -> tuple[int, ...]:
    """Divisors of value up to `most`, ascending."""
    return tuple(d for d in range(1, min(value, most) + 1) if value % d == 0)


def most_dividing(value: int, most: int) -> int:
    """The largest divisor of value that is <= most."""
    return divisors(value, most)[-1]


def parted(channels: int, planes: int, turns: int) -> tuple[int, int]:
    """(turns, planes of each) of a block that part these channels evenly: the most of each up to what is asked for."""
    planes = most_dividing(channels, planes)
    return most_dividing(channels // planes, turns), planes


def in_turn(sch: Any, channels: Any, decisions: Decisions) -> Any:
    """The loop over channels as one over blocks, one over the tiles of a block, and one over the planes of a tile; for `pipeline` where stages overlap."""
    from tvm_orient.pipeline import AHEAD

    turns, planes = parted(int(sch.get(channels).extent), decisions["planes"], decisions["turns"])
    block, turn, plane = sch.split(channels, [None, turns, planes])
    if decisions["stages"] > 1 and turns > 1:
        sch.annotate(turn, AHEAD, planes)
    return block, turn, plane


def idle_stages(decisions: Decisions) -> str | None:
    """Why a block has no use for its stages, or None."""
    if decisions["stages"] > decisions["turns"]:
        return f"a block of {decisions['turns']} tiles has no use for {decisions['stages']} stages: turns must be at least as many"
    return None


def apart(skew: int) -> tuple[int, int]:
    """What a skew says of planes in shared memory: they lie (second) values apart, but for multiples of (first), so that lanes of several meet in no bank.

    Small skews are for lanes in consecutive planes, others for lanes that go on in the next plane where they end in one.
    """
    return (max(1, 2 * skew) if skew <= _SMALL else WARP, skew)


def quads(spec: ConvSpec, tiled: bool = False) -> tuple[int, ...]:
    """Columns that can be loaded at once, most first: groups must tile the row and not straddle its ends, nor be parted by a stride (tiles are not)."""
    g = gather(spec)
    return (1,) if g.wrap or (g.step[1] > 1 and not tiled) else tuple(q for q in (4, 2, 1) if g.source[1] % q == 0)


def tiles(spec: ConvSpec, patch: int = 1) -> tuple[int, ...]:
    """Columns of outputs that a block may own, 0 for whole rows; for planes that are strided or wide. Whole vectors of the source, multiples of `patch`."""
    g = gather(spec)
    width, across = g.output[1], max(g.phases[1], patch)
    found = {t for t in (14, 16, 28, 32, 56, 112, *((width,) if width <= 128 else ())) if t <= width and t % across == 0}
    return (0, *sorted(found)) if g.step[1] > 1 or width > _NARROW else (0,)


def cooperate(sch: Any, block: Any, threads: int, vector: int, around: int = 1, scope: str = "shared") -> None:
    """All threads of the block fill a shared buffer together, in so many loops, the innermost axis as one vector where it is one."""
    if scope == "shared":
        sch.set_scope(block, 0, scope)
    *loops, last = sch.get_loops(block)[around:]
    loop = sch.fuse(*loops) if vector > 1 else sch.fuse(*loops, last)
    _, thread = sch.split(loop, [None, threads])
    sch.bind(thread, "threadIdx.x")
    if vector > 1:
        sch.vectorize(last)


def by_rows(planes: int, rows: int, across: int, threads: int) -> tuple[int, int, int]:
    """How `cooperate_by_rows` parts planes of rows of `across` vectors: planes and rows at once, and turns; no rows where one is too long."""
    at_once = threads // across
    if at_once == 0:
        return 1, 0, -(-planes * rows * across // threads)
    if at_once >= rows:
        together = most_dividing(planes, at_once // rows)
        return together, rows, planes // together
    even = -(-rows // -(-rows // at_once))
    while rows % even and math.gcd(rows, even) > 1:  # TVM would stage the rows of a last turn that do not exist
        even -= 1
    return 1, even, planes * -(-rows // even)


def copied_by_rows(vector: int, *turns: int) -> tuple[int, int]:
    """(instructions of a copy, waits for memory) of images of half precision that are staged in so many turns each.

    Where turns are unrolled the loads of all batches are on their way at once: they are neither volatile nor behind a branch.
    """
    copy = vector + (_BY_ROWS if max(turns) <= MOST_UNROLLED else _ROLLED)
    return copy, 1 + sum(min(1, count) if count <= MOST_UNROLLED else batches(count, vector) for count in turns)


def cooperate_by_rows(sch: Any, block: Any, threads: int, vector: int, around: int = 1, scope: str = "shared", unroll: bool = False) -> None:
    """As `cooperate`, for planes (n, plane, row, ..., column): a thread keeps its place in a row in every turn. scope: of what is filled; unroll: the turns.

    So a turn only adds constants to an address, where `cooperate` divides. Threads that do not fill a row idle.
    """
    n, plane, row, *columns = sch.get_loops(block)[around:]
    last = columns.pop() if vector > 1 else None
    across = math.prod(int(sch.get(loop).extent) for loop in columns)
    planes, rows, *_ = by_rows(int(sch.get(plane).extent), int(sch.get(row).extent), across, threads)
    if not rows:
        cooperate(sch, block, threads, vector, around, scope)
        return
    if scope == "shared":
        sch.set_scope(block, 0, scope)
    turn, plane = sch.split(plane, [None, planes])
    step, row = sch.split(row, [None, rows])
    sch.reorder(turn, step, plane, row)
    turns = sch.fuse(n, turn, step)
    if unroll and int(sch.get(turns).extent) <= MOST_UNROLLED:
        sch.unroll(turns)
    sch.bind(sch.fuse(plane, row, *columns), "threadIdx.x")
    if last is not None:
        sch.vectorize(last)
