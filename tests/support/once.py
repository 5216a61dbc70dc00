"""What several tests need and takes long to make: made once a session of tests, whichever worker of pytest-xdist asks first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import filelock


def once(place: Path, make: Callable[[Path], None]) -> Path:
    """Returns the folder `place` as `make` filled it: for the first that asks; others wait meanwhile, and where it failed the next one tries again.

    Args:
        place: a folder that the workers of the session share; `make` is given it, empty.
    """
    made = place.with_name(f"{place.name}.made")
    with filelock.FileLock(f"{place}.lock"):
        if not made.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            make(place)
            made.touch()
    return place
