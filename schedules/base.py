"""The rule protocol of a template family, and what several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.problem.device import Device, capability
from tvm_orient.problem.spec import ConvSpec

Decisions = Mapping[str, int]
ASYNCHRONOUS = (8, 0)  # least compute capability with cp.async


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
    def form(self, spec: ConvSpec, decisions: Decisions) -> StageConfig:
        """The layout of the TE stages that `apply` expects."""

    @abstractmethod
    def apply(self, sch: Any, spec: ConvSpec, device: Device, decisions: Decisions) -> None:
        """Schedule the stages of `conv_nchw.part_func` in place.

        Each top-level nest must end with its outermost loop over independent tasks (CPU: left serial, `merge` makes it
        parallel; CUDA: bound to blockIdx.x).
        """

    def finish(self, func: Any, spec: ConvSpec, decisions: Decisions) -> Any:
        """The scheduled function with what schedule primitives cannot express."""
        return func


class Generic(ABC):
    """Kernels that take sizes and offsets at run time (`generic_args.generic_args` gives them): one serves every spec of its op, mode and dtype."""

    name: str
    version: int
    kind: str

    @abstractmethod
    def func(self, op: str, padding_mode: str, dtype: str, device: Device) -> Any:
        """The scheduled PrimFunc."""
