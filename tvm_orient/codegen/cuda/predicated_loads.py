"""Predicates loads at the edge of a plane in CUDA source: no branch, and no order between them.

As TVM prints it, a value that may lie outside the plane is loaded under an if. Where nvcc moves the address in there too it keeps the
branch, and a patch waits for one load after the other, some twenty instructions each.
"""

from __future__ import annotations

import re

from .. import names
from .rewritten import Rewritten

_GUARDED = re.compile(
    rf"(?P<indent> *)float (?P<name>{names.CONDITION_VALUE}\w*);\n *if \((?P<inside>.*)\) \{{\n"
    rf" *(?P=name) = (?P<from>{names.X_POINTER})\[(?P<at>.*)\];\n *\}} else \{{\n *(?P=name) = 0x0p\+0f[^;]*;\n *\}}\n"
    rf" *(?P<to>{names.STAGE_LOCAL_POINTER}\[.*\]) = (?P=name);\n"
)
_STORE = re.compile(rf"(?m)^ *{names.STAGE_LOCAL_POINTER}\[[^=]*\] = (.*);$")
_INSIDE = re.compile(rf"{names.X_POINTER}\[.*\]|0x0p\+0f.*")  # what is stored where a pixel lies inside for certain, or outside


def predicated(source: str) -> Rewritten:
    """Returns the source with every load of float32 from an image into a staged register predicated.

    For a weight gradient this pass does not pay (`passes.applied` leaves it out): nvcc would hoist the addresses of a whole patch beside
    its sums, and spill. The source must be for sm_80 or later. Needless are stores of pixels of which the compiler knows where they lie,
    missed are any other stores into a staged register.
    """
    changed, places = _GUARDED.subn(rf"\g<indent>\g<to> = {names.LOAD}<float>(\g<from> + (\g<at>), \g<inside>);\n", source)
    stored = _STORE.findall(changed)
    needless = sum(_INSIDE.fullmatch(value) is not None for value in stored)
    return Rewritten(changed, places, needless, len(stored) - needless - places)
