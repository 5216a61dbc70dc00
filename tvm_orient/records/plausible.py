"""Tells whether the times of a record can be true: what a machine that was busy with other work measures often contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import OrientError
from ..problem.spec import ConvSpec

_SLOWEST = 1e3  # bytes a microsecond (1 GB/s): a copy that is slower was not alone on its machine
_FASTEST = 2e7  # bytes a microsecond (20 TB/s): more than any memory gives
_COPY_CALL_US = 50.0  # of a copy that has next to nothing to move
_KERNEL_CALL_US = 10.0  # that a bare kernel is called sooner than a copy
_BELOW_FLOOR = 0.5  # share of a copy's time: a copy reads what it overwrites, which a sum over images does not
_LINE = 64  # bytes that memory gives at once
_SPREAD_US = 5.0  # ticks of a clock
_SPREAD = 0.5  # share of the median


def impossible(spec: ConvSpec, batch: int, median_us: float, floor_us: float) -> str | None:
    """Returns why a kernel's time and its floor's, in microseconds for a batch of images, cannot both be those of a quiet machine; None where they can."""
    moved = spec.bytes_moved(batch)
    said = f"its floor, a copy of {moved / 1e6:.3g} MB in {floor_us:.4g} us, is {moved / floor_us / 1e3:.2g} GB/s"
    if floor_us > _COPY_CALL_US + moved / _SLOWEST:
        return f"{said}, slower than any machine that has nothing else to do"
    if moved / floor_us > _FASTEST:
        return f"{said}, more than any memory gives"
    share = (median_us + _KERNEL_CALL_US) / floor_us
    if share < _BELOW_FLOOR and share < _BELOW_FLOOR * _needed(spec):  # which takes longer to find out
        return f"{median_us:.4g} us is less than half its floor, a copy of the same bytes in {floor_us:.4g} us"
    return None


def _needed(spec: ConvSpec) -> float:
    """Returns the share of an operand's and a result's bytes that have to move: strides may pass over rows, and taps may all lie outside the plane."""
    extents = ((spec.height, spec.out_height, spec.stride[0]), (spec.width, spec.out_width, spec.stride[1]))
    touched = []
    for axis, (extent, outputs, stride) in enumerate(extents):
        offsets = {offset[axis] for line in spec.taps.table for offset in line}
        places = {i * stride + offset for i in range(outputs) for offset in offsets}
        touched.append(len({place % extent for place in places} if spec.padding_mode == "circular" else {place for place in places if 0 <= place < extent}))
    read = touched[0] * min(spec.width, touched[1] * (_LINE // spec.itemsize))
    image, result = spec.height * spec.width, spec.out_height * spec.out_width
    needed = {"conv": read + result, "conv_dx": image + min(read, result), "conv_dw": read + min(read, result)}[spec.op]
    return needed / (image + result)


def doubtful(key: str, median_us: float, spread_us: float, floor_us: float, provenance: Mapping[str, Any]) -> str | None:
    """Returns why the times of a record of the spec with that key cannot be believed; None where they can, or where it does not say its batch."""
    if spread_us > _SPREAD_US + _SPREAD * median_us:
        return f"its runs spread by {spread_us:.4g} us around {median_us:.4g} us"
    batch = provenance.get("batch")
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        return None
    try:
        return impossible(ConvSpec.from_key(key), batch, median_us, floor_us)
    except OrientError:  # whoever reads records says what is wrong with their keys
        return None
