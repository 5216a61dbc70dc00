"""Which problems are measured and tuned: the tables of the README and of docs/performance.md, and the shapes that networks use."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a bare checkout works without an install

from tvm_orient.spec import DTYPES, OPS, ConvSpec
from tvm_orient.taps import Taps

EIGHT = tuple(22.5 * step for step in range(8))
Plane = tuple[int, int, int]  # channels, height, width
_HALVES = tuple(name for name in ("float16", "bfloat16") if name in DTYPES)


@dataclass(frozen=True)
class Grid:
    """Problems of one batch size, most telling first."""

    batch: int
    specs: tuple[ConvSpec, ...]


def spec(op: str, plane: Plane, taps: int, degrees: Sequence[float] = EIGHT, stride: int = 1, dtype: str = "float32") -> ConvSpec:
    """One problem, its angles in degrees."""
    radians = np.asarray([math.radians(angle) for angle in degrees], dtype=np.float32)
    return ConvSpec(op, *plane, Taps.oriented(radians, taps), (stride, stride), dtype=dtype)


def _squares(channels: Iterable[int], sides: Iterable[int]) -> list[Plane]:
    return [(c, side, side) for c, side in zip(channels, sides, strict=True)]


def table(kind: str, quick: bool = False) -> Grid:
    """The table of a kind of device: on a CPU eight angles and angle 0 alone; on CUDA every angle alone too, and half precision."""
    if kind == "cpu":
        planes = [(256, 28, 28)] if quick else _squares((128, 256, 512), (56, 28, 14))
        return Grid(8, tuple(spec(op, plane, taps, degrees) for degrees in (EIGHT, (0.0,)) for op in OPS for plane in planes for taps in (7, 31)))
    planes = [(512, 28, 28)] if quick else _squares((512, 512, 512), (56, 28, 14))
    alone = [(0.0,)] if quick else [(angle,) for angle in EIGHT]
    first = [(EIGHT, "float32"), *((angle, "float32") for angle in alone), *(() if quick else ((EIGHT, half) for half in _HALVES))]
    return Grid(64, tuple(spec(op, plane, taps, degrees, dtype=dtype) for degrees, dtype in first for taps in (31, 7) for plane in planes for op in OPS))


# (network, planes, blocks of each, taps): reference shapes at 224 x 224; widened ones stand inside the pointwise pair of a block
_SIDES = (56, 28, 14, 7)
_BLOCKS = (
    ("T", (96, 192, 384, 768), (3, 3, 9, 3), (31, 15)),
    ("T++", (384, 768, 1536, 3072), (3, 3, 9, 3), (31,)),
    ("B", (128, 256, 512, 1024), (3, 3, 27, 3), (31, 15)),
    ("B++", (512, 1024, 2048, 4096), (3, 3, 27, 3), (31,)),
)


def networks(quick: bool = False) -> Grid:
    """Every layer of the published networks, forward and backward, with eight angles: where most blocks are comes first."""
    found: dict[tuple[Plane, int, int], int] = {}
    for _, channels, blocks, sizes in _BLOCKS:
        for plane, count in zip(_squares(channels, _SIDES), blocks, strict=True):
            for taps in sizes:
                found[plane, taps, 1] = max(count, found.get((plane, taps, 1), 0))
    for side in (224, 112):
        for taps in (31, 15):
            found[(64, side, side), taps, 2] = 1
    layers = sorted(found, key=lambda layer: -found[layer] * math.prod(layer[0]))
    return Grid(64, tuple(spec(op, plane, taps, stride=stride) for plane, taps, stride in layers[: 2 if quick else None] for op in OPS))
