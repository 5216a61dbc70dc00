"""Rewritten: what a pass over CUDA source gives back, and Pass, what such a pass is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Rewritten:
    """CUDA source after a pass, and in how many places the pass changed it."""

    source: str  #: the new source
    places: int  #: matches that were replaced
    needless: int = 0  #: places that the pass is for and that are well as they are
    missed: int = 0  #: places that the pass is for and that it does not understand

    def __add__(self, later: Rewritten) -> Rewritten:
        """Returns the later source with the counts of both."""
        return Rewritten(later.source, self.places + later.places, self.needless + later.needless, self.missed + later.missed)


Pass = Callable[[str], Rewritten]
