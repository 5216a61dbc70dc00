"""CUDA source whose branches by angle group may hold barriers."""

from __future__ import annotations

import re

from ..names import BRANCH
from .rewritten import Rewritten

_BRANCH = re.compile(rf"for \(int ({BRANCH}\w*) = 0; \1 < (\w+); \+\+\1\) \{{")


def branches(source: str) -> Rewritten:
    """Returns CUDA source whose branches by angle are ifs.

    nvcc moves what does not change out of a loop, here the addresses of every angle, and they all take registers at once. The
    condition is the same for a whole block, so that barriers inside may stay.
    """
    return Rewritten(*_BRANCH.subn(r"if (\2) {\n    const int \1 = 0;", source))
