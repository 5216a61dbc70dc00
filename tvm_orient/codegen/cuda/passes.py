"""Every rewrite of CUDA source, in order."""

from __future__ import annotations


def finished(source: str, arch: str) -> str:
    """CUDA source with what TVM cannot say: branches that may hold barriers, and copies that nobody waits for one by one, from sm_80 on asynchronous."""
    from .async_copy import asynchronous
    from .batched_loads import batched
    from .device_helpers import declared
    from .group_branches import branches
    from .packed_reads import by_words
    from .predicated_loads import predicated

    source = declared(batched(by_words(branches(source))))
    return asynchronous(predicated(source)) if int(arch.removeprefix("sm_").rstrip("af")) >= 80 else source
