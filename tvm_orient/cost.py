"""What compiling a kernel of a problem's own costs, foreseen from its offsets: templates unroll them, so code grows with each angle."""

from __future__ import annotations

from .device import Device
from .spec import ConvSpec


def offsets(spec: ConvSpec) -> int:
    """Distinct offsets of every group of channels, summed: what the code of a kernel is as long as."""
    return sum(len(part.taps.distinct(0)) for _, _, part in spec.parts())


def seconds(spec: ConvSpec, device: Device) -> float:
    """CPU seconds that compiling a kernel takes, about."""
    return 0.2 * len(spec.parts()) + 0.02 * offsets(spec)
