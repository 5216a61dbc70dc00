"""Plans how the compiled parts of a layer are put together: where each stands, and where its share of the workspace begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice
from .compile_part import compile_part
from .parts import CompiledPart, Part, PartLaunch, Placed, placed_parts, workspaces

Compiled = Mapping[Part, CompiledPart]


@dataclass(frozen=True)
class LayerPlan:
    """A layer that is to be put together.

    Attributes:
        spec: of the layer.
        device: what its parts were compiled for.
        placed: its parts where they stand, first channel to last.
        compiled: each of them, compiled.
        starts: where in the workspace each one's share begins, in elements for each image.
        workspace: (bands, taps) that conv_dw needs for each image and channel; None for another op.
    """

    spec: ConvSpec
    device: Device
    placed: Sequence[Placed]
    compiled: Sequence[CompiledPart]
    starts: Sequence[int]
    workspace: tuple[int, int] | None

    def launches(self) -> list[list[PartLaunch]]:
        """Returns the kernels, or the functions, of all parts for each launch of the layer, in order."""
        return [list(every) for every in zip(*(compiled.launches for compiled in self.compiled), strict=True)]


def compiled_parts(spec: ConvSpec, device: Device, choices: Sequence[Choice]) -> dict[Part, CompiledPart]:
    """Return every part of a layer, compiled one after the other in this process.

    Raises:
        BuildFailed, EnvironmentProblem: as `compile_part`.
    """
    distinct = dict.fromkeys(placed.part for placed in placed_parts(spec, choices, device))
    return {part: compile_part(part, device) for part in distinct}


def planned(spec: ConvSpec, device: Device, choices: Sequence[Choice], compiled: Compiled | None = None) -> LayerPlan:
    """Return the plan of a layer.

    Args:
        choices: one for each of `spec.parts()`, none of them generic.
        compiled: its parts; None compiles them now.

    Raises:
        BuildFailed, EnvironmentProblem: as `compile_part`.
    """
    compiled = compiled_parts(spec, device, choices) if compiled is None else compiled
    placed = placed_parts(spec, choices, device)
    starts, space = workspaces(spec, [(one.part.channels, compiled[one.part].workspace) for one in placed])
    return LayerPlan(spec, device, placed, [compiled[one.part] for one in placed], starts, space)
