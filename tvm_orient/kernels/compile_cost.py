"""The time that compiling a kernel of a problem's own takes, foreseen from its offsets: templates unroll them, and angles are compiled apart.

Fitted to what `benchmarks/speed/compile_cost.py` measures: float32, planes of 28 x 28, LLVM on an EPYC with AVX-512, NVRTC 13.0 for sm_90a, on a busy machine.
A kernel of twice the angles takes twice as long. 0.7 to 1.5 times what was measured is foreseen, but for long lines in few groups: half of it for four angles
with K=63 in channels_last on the CPU and in a weight gradient for CUDA, a quarter for one angle with K=31 in channels_last (2 s on the CPU). Eight angles
with K=31 took 2.4 to 2.8 s on the CPU, a weight gradient 6.0 s; for CUDA 4.8 to 5.0 s and 14 s (foreseen: 2.9, 6.0, 4.0 and 13 s). Several angles are compiled
at once, where there are cores for it.
"""

from __future__ import annotations

from ..problem.device import Device
from ..problem.spec import ConvSpec

_START_S = {"cpu": 0.1, "cuda": 0.2}  # seconds by kind of device, whatever is compiled
# seconds for each group of channels, by kind of device and whether it is a weight gradient
_GROUP_S = {("cpu", False): 0.1, ("cpu", True): 0.1, ("cuda", False): 0.13, ("cuda", True): 0.35}
# seconds for each offset, by the same
_OFFSET_S = {("cpu", False): 0.009, ("cpu", True): 0.0228, ("cuda", False): 0.0125, ("cuda", True): 0.045}


def offsets(spec: ConvSpec) -> int:
    """Returns the number of distinct offsets, summed over the groups of channels: the code of a kernel grows with it."""
    return sum(len(part.taps.distinct(0)) for _, _, part in spec.parts())


def seconds(spec: ConvSpec, device: Device) -> float:
    """Returns about how many CPU seconds compiling a kernel for a problem takes, of all its angles; starting a compiler takes some more, once."""
    which = device.kind, spec.op == "conv_dw"
    return _START_S[device.kind] + _GROUP_S[which] * len(spec.parts()) + _OFFSET_S[which] * offsets(spec)
