"""When a kernel of a problem's own is worth its making, where nobody asked for it: what it would save, against what making it costs.

Nobody knows how many calls will come. A making is begun once the calls so far have spent a share of what it costs: a problem that is seen once, as a
photograph is, has none made, and one that a network calls in every step has it soon.

On a CPU a kernel of its own gains nothing where a plane is too large to stay near: both then wait for memory. Measured on one core of an AMD EPYC with
1 MiB of second-level cache, N=1 (time of the generic kernel over that of its own, K=31, one angle): conv 2.0 for planes of 256 x 256, 1.9 for 512 x 512,
0.9 for 724 x 724, 1.3 for 1024 x 1024, 0.7 for 1448 x 1448, 1.0 for 2048 x 2048; conv_dw 1.1 for 512 x 512, 0.9 for 1024 x 1024, 0.5 for 2048 x 2048.
Eight angles with K=31 and planes of 724 x 724 take some seconds to compile, and gain 0.9.
"""

from __future__ import annotations

import math

from ..kernels import compile_cost
from ..problem.device import Device
from ..problem.spec import DTYPES, ConvSpec

_SHARE = 0.01  # of the seconds that a making is foreseen to take: what calls have spent on the generic kernel when it is begun
_MAX_PLANE = 1 << 20  # bytes of a plane, in the dtype of sums, that stays near a core
MAX_SECONDS = 30.0  # CPU seconds that a making may be foreseen to take where nobody asked for it


def against(spec: ConvSpec, device: Device, tuned: bool = False) -> str | None:
    """Says why a problem's own kernel is not made unless it is asked for; returns None where it is.

    Args:
        tuned: there is a record of this very problem, so that somebody has measured it.
    """
    foreseen = compile_cost.seconds(spec, device)
    if foreseen > MAX_SECONDS:
        return (
            f"its own, of {compile_cost.offsets(spec)} distinct offsets in {spec.taps.groups} groups, would take about {foreseen:.0f} s to compile, "
            f"and unasked it may take {MAX_SECONDS:.0f} s"
        )
    plane = spec.height * spec.width * DTYPES[spec.sums]
    if not tuned and device.kind == "cpu" and spec.layout == "nchw" and plane > _MAX_PLANE:
        return f"its own would be no faster, since a plane of {plane} bytes is beyond the {_MAX_PLANE} that stay near a core"
    return None


def calls_left(spec: ConvSpec, device: Device, calls: int, spent: float) -> int:
    """Returns after about how many further calls the making of a problem's own kernel is to be begun; 0 for now.

    Args:
        calls: those that the generic kernel has answered, at least one.
        spent: seconds that they took. On a GPU a call ends before its kernel does, so there the number of calls alone decides.
    """
    if device.kind != "cpu":
        return 0
    lacking = _SHARE * compile_cost.seconds(spec, device) - spent
    return max(0, math.ceil(lacking * calls / spent)) if spent > 0 else calls
