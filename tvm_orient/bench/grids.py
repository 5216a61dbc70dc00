"""Grids of problems that are measured and tuned: the tables of the README and of docs/performance.md, and the layers that networks use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..problem.spec import DTYPES, OPS, ConvSpec
from ..problem.taps import Taps

EIGHT = tuple(22.5 * step for step in range(8))  # degrees
Plane = tuple[int, int, int]  # channels, height, width
_HALVES = tuple(name for name in ("bfloat16", "float16") if name in DTYPES)  # dtypes of half precision


@dataclass(frozen=True)
class Grid:
    """Problems of one batch size, most telling first."""

    batch: int
    specs: tuple[ConvSpec, ...]


def spec(op: str, plane: Plane, taps: int, degrees: Sequence[float] = EIGHT, stride: int = 1, dtype: str = "float32") -> ConvSpec:
    """Return the problem of an op on a plane, of K = taps; its angles are given in degrees, and its padding is zeros."""
    radians = np.asarray([math.radians(angle) for angle in degrees], dtype=np.float32)
    return ConvSpec(op, *plane, Taps.oriented(radians, taps), stride=(stride, stride), dtype=dtype)


def _squares(channels: Iterable[int], sides: Iterable[int]) -> list[Plane]:
    return [(c, side, side) for c, side in zip(channels, sides, strict=True)]


def table(kind: str, quick: bool = False) -> Grid:
    """Return the table of a kind of device, cpu or cuda: 512 channels, all eight angles in one call and each alone; on CUDA in half precision too.

    The eight angles in one call come first, of every dtype; then each angle alone, plane by plane, so that a run which is
    cut has whole planes: the slowest angle against the fastest needs all of them.
    """
    sides, dtypes = ((28,) if quick else (56, 14, 28)), (("float32",) if quick or kind == "cpu" else ("float32", *_HALVES))
    alone = (0.0,) if quick else EIGHT
    layers = [(taps, plane) for taps in (31, 7) for plane in [(512, side, side) for side in sides]]
    together = [spec(op, plane, taps, dtype=dtype) for dtype in dtypes for taps, plane in layers for op in OPS]
    single = [spec(op, plane, taps, (angle,), dtype=dtype) for dtype in dtypes for taps, plane in layers for angle in alone for op in OPS]
    return Grid(8 if kind == "cpu" else 64, tuple(together + single))


# what the published benchmark passes as degrees to a parameter in radians: the angles that it ran, and none of which is vertical
WRITTEN = (0.0, 22.5, 45.0, 66.75, 90.0, 112.5, 135.0, 157.5)


def published(kind: str, quick: bool = False) -> Grid:
    """Return the published benchmark's problems, at the angles that it ran: conv and conv_dw, since it times no gradient of x."""
    planes = _squares((512, 512, 512), (56, 28, 14)) if kind == "cuda" and not quick else [(64, 14, 14)]
    ran = [math.degrees(written) % 360 for written in (WRITTEN[:2] if quick else WRITTEN)]
    batch = 64 if kind == "cuda" else 2
    return Grid(batch, tuple(spec(op, plane, taps, (angle,)) for taps in (31, 7) for plane in planes for angle in ran for op in ("conv", "conv_dw")))


# (network, planes, blocks of each, taps): reference shapes at 224 x 224; widened ones stand inside the pointwise pair of a block
_SIDES = (56, 28, 14, 7)
_BLOCKS = (
    ("T", (96, 192, 384, 768), (3, 3, 9, 3), (31, 15)),
    ("T++", (384, 768, 1536, 3072), (3, 3, 9, 3), (31,)),
    ("B", (128, 256, 512, 1024), (3, 3, 27, 3), (31, 15)),
    ("B++", (512, 1024, 2048, 4096), (3, 3, 27, 3), (31,)),
)


def networks(quick: bool = False) -> Grid:
    """Return every layer of the published networks, forward and backward, with eight angles: the stem first, then where most blocks are."""
    found: dict[tuple[Plane, int, int], int] = {}
    for _, channels, blocks, sizes in _BLOCKS:
        for plane, count in zip(_squares(channels, _SIDES), blocks, strict=True):
            for taps in sizes:
                found[plane, taps, 1] = max(count, found.get((plane, taps, 1), 0))
    for side in (224, 112):
        for taps in (31, 15):
            found[(64, side, side), taps, 2] = 1
    # one of each kind first: the stem's two layers, whose stride no other has
    layers = sorted(found, key=lambda layer: (layer[2] == 1, -found[layer] * math.prod(layer[0])))
    return Grid(64, tuple(spec(op, plane, taps, stride=stride) for plane, taps, stride in layers[: 2 if quick else None] for op in OPS))


def batch_of_one(kind: str, quick: bool = False) -> Grid:
    """Return problems of one image at a time: the table's layers of eight angles, then those of the networks; on CUDA in bfloat16 too."""
    first = [(plane, taps, 1) for taps in (31, 7) for plane in _squares((512, 512, 512), (56, 28, 14))]
    rest = [((one.channels, one.height, one.width), one.kernel_size, one.stride[0]) for one in networks().specs if one.op == "conv"]
    layers = list(dict.fromkeys(first + rest))[: 2 if quick else None]
    dtypes = ("float32", *(name for name in _HALVES if name == "bfloat16" and kind == "cuda"))
    return Grid(1, tuple(spec(op, plane, taps, stride=stride, dtype=dtype) for dtype in dtypes for plane, taps, stride in layers for op in OPS))


GRIDS: dict[str, Callable[[str, bool], Grid]] = {
    "table": table,
    "networks": lambda kind, quick: networks(quick),
    "batch1": batch_of_one,
    "published": published,
}
