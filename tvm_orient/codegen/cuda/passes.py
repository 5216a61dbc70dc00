"""Lists the passes over CUDA source that TVM generates, in their order, and holds them to what the scheduled TIR promised.

A pass is a set of regular expressions over what TVM prints. If TVM printed something else, or a buffer had another name, the pass would
match nothing and the kernel would be right but slow. So each pass counts its places, and a kernel in which one finds fewer than it must is
not built.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...errors import BuildFailed
from ...problem.device import capability
from .async_copy import asynchronous
from .batched_loads import batched
from .device_helpers import declared
from .group_branches import branches
from .lean_headers import lean
from .packed_reads import by_words
from .predicated_loads import predicated
from .rewritten import Pass, Rewritten

ASYNCHRONOUS_COPIES = (8, 0)  # least compute capability that has cp.async, and that predicated loads are good for
_EVERYWHERE: tuple[Pass, ...] = (lean, branches, by_words, batched, declared)  # first to last


def applied(arch: str, *, weight_gradient: bool) -> tuple[Pass, ...]:
    """Returns the passes for an arch such as sm_90a, first to last; registers of a weight gradient have no room for addresses of predicated loads."""
    if capability(arch) < ASYNCHRONOUS_COPIES:
        return _EVERYWHERE
    return (*_EVERYWHERE, *([] if weight_gradient else [predicated]), asynchronous)


def hold(report: Mapping[str, Rewritten], least: Mapping[str, int], kernel: str) -> None:
    """Checks that each pass found as many places as the scheduled TIR promised it, and understood all of them.

    Args:
        report: what each pass made of the source, by its name.
        least: the least places by pass, as `promises.promised` counts them.
        kernel: what to call the kernel in a message.

    Raises:
        BuildFailed: a pass found fewer places, or some that it does not understand.
    """
    for name, count in least.items():
        done = report.get(name, Rewritten("", 0))
        if count and (done.places + done.needless < count or done.missed):
            raise BuildFailed(
                f"the pass {name} must find at least {count} places in the CUDA source of {kernel} and understand each, got {done.places + done.needless} "
                f"and {done.missed} that it does not understand: the kernel would be right but slow; compare what TVM prints with names.py"
            )


def finished(source: str, passes: Sequence[Pass], report: dict[str, Rewritten]) -> str:
    """Returns CUDA source after these passes, and adds to the report what each found."""
    for change in passes:
        done = change(source)
        source, report[change.__name__] = done.source, report.get(change.__name__, Rewritten("", 0)) + done
    return source
