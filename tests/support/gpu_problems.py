"""Problems of the tests that need a GPU; they are lowered without one too."""

from __future__ import annotations

from tests.support.cases import CUDA_CASES
from tests.support.helpers import EIGHT, OPS, line, spec_of
from tvm_orient.problem.taps import Taps

SMALL = [(name, spec_of(op, *case)) for name, case in CUDA_CASES.items() for op in OPS]
LAYERS = [
    spec_of(op, channels, size, size, Taps.oriented(EIGHT, k), stride)
    for op in OPS
    for channels, size, k, stride in [(512, 14, 31, 1), (256, 28, 7, 1), (128, 56, 31, 1), (768, 7, 31, 1), (64, 224, 31, 2)]  # the last is the stem
]
ANGLES = [spec_of(op, 64, 56, 56, line(22.5 * i, k=31), stride) for op in OPS for i in range(8) for stride in (1, 2) if stride == 1 or i % 2 == 0]
