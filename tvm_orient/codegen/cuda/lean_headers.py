"""Leaves a header out of CUDA source that nothing in it needs: reading it takes NVRTC eight times as long as the kernel of one angle."""

from __future__ import annotations

import re

from .rewritten import Rewritten

_TRAITS = re.compile(r"  #include <cuda/std/type_traits>\n  namespace std \{\n(?:    using cuda::std::\w+;\n)+  \}\n")
_USED = re.compile(r"(?<!using cuda::)\bstd::")


def lean(source: str) -> Rewritten:
    """Returns CUDA source without <cuda/std/type_traits> and the names that it is read for, where the source uses none of namespace std.

    Nothing is left out of a source that uses one, or whose preamble is another than is known: it compiles as before.
    """
    without, places = _TRAITS.subn("", source, count=1)
    return Rewritten(source, 0) if _USED.search(without) else Rewritten(without, places)
