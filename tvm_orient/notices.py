"""Warnings that point at the user's own line, however deep in the package they arise; and those of the log that are said once."""

from __future__ import annotations

import functools
import logging
import sys
import warnings

_SKIPPED = ("tvm_orient", "torch")  # packages whose lines are no user's


def warn(message: str) -> None:
    """Issue a UserWarning for the nearest caller outside this package and torch."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _SKIPPED:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level)


@functools.lru_cache(maxsize=256)
def log_once(log: logging.Logger, message: str, *values: str) -> None:
    """Writes a warning to a log, as `logging.Logger.warning`; again only once 256 others were written in between."""
    log.warning(message, *values)
