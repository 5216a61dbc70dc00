"""The command line: tvm-orient. One file a verb; nothing imports this package."""

from __future__ import annotations

from . import bench, build, cache, check, demo, doctor, explain, logs, show, tune  # noqa: F401  each registers its verbs with the app
from .application import app

__all__ = ["app"]
