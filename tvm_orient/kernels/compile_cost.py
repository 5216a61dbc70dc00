"""The time that compiling a kernel of a problem's own takes, foreseen from its offsets: templates unroll them, so code grows with each angle.

Fitted to what `benchmarks/speed/compile_cost.py` measures: planes of 28 x 28, LLVM on a Xeon with AVX-512, NVRTC 13.0 for sm_90a. A kernel of
twice the code takes more than twice as long. Where a second or more was measured on the CPU, 0.8 to 1.5 times that is foreseen, but for a single
angle with K=31 in channels_last (2.6 s, 0.5 s foreseen). A layer of 128 angles with K=31 took 240 s of CPU time, of which it foresees 244. For CUDA
eight angles with K=31 took 10 s, a weight gradient 21 s on a busy machine (foreseen: 10 and 15); beyond that choices keep the code short, and less
is taken than is foreseen.
"""

from __future__ import annotations

import math

from ..problem.device import Device
from ..problem.spec import ConvSpec

_POWER = 1.5  # exponent of the number of offsets
_START_S = {"cpu": 0.0, "cuda": 2.0}  # seconds by kind of device, whatever is compiled
_GROUP_S = 0.2  # seconds for each group of channels
# seconds for an offset, to the power, by kind of device, whether it is a weight gradient, and layout
_OFFSET_S = {
    ("cpu", False, "nchw"): 0.001,
    ("cpu", False, "nhwc"): 0.002,
    ("cpu", True, "nchw"): 0.0043,
    ("cpu", True, "nhwc"): 0.0043,
    ("cuda", False, "nchw"): 0.002,
    ("cuda", False, "nhwc"): 0.002,
    ("cuda", True, "nchw"): 0.0035,
    ("cuda", True, "nhwc"): 0.0035,
}


def offsets(spec: ConvSpec) -> int:
    """Returns the number of distinct offsets, summed over the groups of channels: the code of a kernel grows with it."""
    return sum(len(part.taps.distinct(0)) for _, _, part in spec.parts())


def seconds(spec: ConvSpec, device: Device) -> float:
    """Returns about how many CPU seconds compiling a kernel for a problem takes; starting a compiler takes some more, once."""
    each = _OFFSET_S[device.kind, spec.op == "conv_dw", spec.layout]
    return _START_S[device.kind] + _GROUP_S * len(spec.parts()) + each * math.pow(offsets(spec), _POWER)
