"""The protocol of a template family, and what several templates share: tiling, copies into shared memory, and the least estimate."""

from __future__ import annotations

import dataclasses
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from tvm_orient.codegen.te.config import StageConfig
from tvm_orient.errors import InvalidArgument
from tvm_orient.problem.device import Device, capability
from tvm_orient.problem.spec import ConvSpec

MAX_THREADS = 1024  # threads of a CUDA block
MAX_SHARED = 49152  # bytes of shared memory that a CUDA block has without opting in for more
MIN_CAPABILITY = (8, 0)  # compute capability from which on cp.async exists


class SharedUse(NamedTuple):
    """Bytes of shared memory of a CUDA block by use: merged angles add the largest of each, and a kernel may have 48 KiB."""

    staged: int
    collected: int
    weights: int


MAX_USE = SharedUse(33792, 13312, 2048)  # bytes
# TVM then gives the results the memory of the staged pixels, and where a merged group idles some threads that takes a barrier inside a branch, which it refuses
ONE_OFFSET = "not for a single offset that reaches the plane, where collected results could take the place of the staged pixels"


@dataclass(frozen=True)
class Config:
    """The decisions of a template, one whole number a field; every template has a subclass of its own, whose fields are its knobs.

    `decisions` and `Template.config` are the only ways between it and the plain named integers that records, journals and the search hold.
    """

    def decisions(self) -> dict[str, int]:
        """Returns the decisions by name, in the order of the fields."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


C = TypeVar("C", bound=Config)


class Template(ABC, typing.Generic[C]):
    """One way to schedule single-group problems: named knobs, a default that is always valid, reasons to decline."""

    name: str  #: in records
    version: int  #: changes when the same decisions would give another kernel; older records are then ignored
    kind: str  #: of device, "cpu" or "cuda"
    ops: tuple[str, ...]  #: those of `tvm_orient.ConvSpec.op` that it serves
    layouts: tuple[str, ...] = ("nchw",)  #: those of `tvm_orient.ConvSpec.layout` that it serves
    sums: tuple[str, ...] = ("float32",)  #: those of `tvm_orient.ConvSpec.sums` that it serves
    config_type: type[C]  #: its dataclass of decisions

    def declines(self, spec: ConvSpec, device: Device) -> str | None:
        """Returns None where this template serves the spec on the device, else why it does not."""
        if device.kind != self.kind:
            return f"for {self.kind} only"
        if spec.op not in self.ops:
            return f"for {', '.join(self.ops)} only"
        if spec.layout not in self.layouts:
            return f"for {', '.join(self.layouts)} only"
        if spec.sums not in self.sums:
            return f"for sums in {', '.join(self.sums)}, got {spec.dtype}"
        if device.kind == "cuda" and capability(device.arch) < MIN_CAPABILITY:
            return f"for sm_80 and later, whose copies into shared memory may be asynchronous, got {device.arch}"
        return self._declines(spec, device) if spec.taps.groups == 1 else None

    def _declines(self, spec: ConvSpec, device: Device) -> str | None:
        """Returns None where this template serves a single-group spec of its op, layout and dtype, else why it does not."""
        return None

    @abstractmethod
    def knobs(self, spec: ConvSpec, device: Device) -> dict[str, tuple[int, ...]]:
        """Returns every knob, by the name of its field in the config, with the values that make sense here; in the order of the fields."""

    def config(self, decisions: Mapping[str, int]) -> C:
        """Returns the config that has these decisions; `Config.decisions` is the way back.

        Raises:
            InvalidArgument: a name is not a knob of this template, or a knob has no decision, or one that is no whole number.
        """
        names = [field.name for field in dataclasses.fields(self.config_type)]
        if set(names) != set(decisions):
            raise InvalidArgument(f"decisions must name {', '.join(names)}, got {', '.join(decisions)}")
        for name, value in decisions.items():
            if type(value) is not int:
                raise InvalidArgument(f"{name} must be a whole number, got {value!r}: give one of those that the template's knobs list")
        return self.config_type(**decisions)

    @abstractmethod
    def default(self, spec: ConvSpec, device: Device) -> C:
        """Returns a good choice without tuning; always valid."""

    def invalid(self, spec: ConvSpec, device: Device, decisions: Mapping[str, int]) -> str | None:
        """Returns None where the decisions, as a record or a search has them, make a kernel that fits the device, else why not."""
        try:
            config = self.config(decisions)
        except InvalidArgument as problem:
            return str(problem)
        knobs = self.knobs(spec, device)
        for name, value in decisions.items():
            if value not in knobs[name]:
                return f"{name} must be one of {', '.join(map(str, knobs[name]))}, got {value}"
        return self._invalid(spec, device, config)

    def _invalid(self, spec: ConvSpec, device: Device, config: C) -> str | None:
        """Returns None where a config of values that the knobs list makes a kernel that fits the device, else why not."""
        return None

    def estimate(self, spec: ConvSpec, device: Device, config: C) -> Mapping[str, float]:
        """Returns the clocks of an SM for 32 outputs by resource, before anything is compiled; empty for a template that has no estimate."""
        return {}

    def _candidates(self, spec: ConvSpec, device: Device) -> Iterable[C]:
        """Returns the configs that are worth an estimate, valid or not; none for a template whose default compares nothing."""
        return ()

    def _least(self, spec: ConvSpec, device: Device) -> C:
        """Returns the config that needs the least of everything, valid wherever any is: `least_estimate` falls back on it. The first value of every knob."""
        return self.config({name: values[0] for name, values in self.knobs(spec, device).items()})

    def worth_estimating(self, spec: ConvSpec, device: Device) -> list[C]:
        """Returns the valid configs that are worth comparing by their estimates, beside the default."""
        return [trial for trial in self._candidates(spec, device) if self._invalid(spec, device, trial) is None]

    def unrolled(self, spec: ConvSpec, config: C) -> int:
        """Returns the number of multiply-adds that stand in the code of a thread, which compiling takes time for; 0 where a template has never too many."""
        return 0

    def channel_blocks(self, channels: int, config: C) -> int:
        """Returns the number of blocks of a CUDA kernel that part so many channels of an image among them; one a channel, unless a template says otherwise."""
        return channels

    @abstractmethod
    def stage_config(self, spec: ConvSpec, config: C) -> StageConfig:
        """Returns the layout of the TE stages that `apply` expects."""

    @abstractmethod
    def apply(self, sch: Any, spec: ConvSpec, device: Device, config: C) -> None:
        """Schedule the stages of `prim_func.part_func` in place.

        Each top-level nest must end with its outermost loop over independent tasks (CPU: left serial, `merge` makes it
        parallel; CUDA: bound to blockIdx.x).
        """

    def finish(self, func: Any, spec: ConvSpec, config: C) -> Any:
        """Returns the scheduled function with what schedule primitives cannot express."""
        return func


class Generic(ABC):
    """Kernels that take sizes and offsets at run time (`generic_args.generic_args` gives them): one serves every spec of its op, mode and dtype."""

    name: str
    version: int
    kind: str

    @abstractmethod
    def func(self, op: str, padding_mode: str, dtype: str, device: Device) -> Any:
        """Returns the scheduled PrimFunc."""
