"""Has a layer compiled: its angles apart, several at once, those that were compiled before taken from the cache, and then put together."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..compiler.parts import Part, placed_parts
from ..problem.cpus import cores
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice, is_generic
from .compile_process import MAX_COMPILERS, requested
from .part_cache import PartCache

_PARTS = "parts"  # folder that parts are compiled to


def compiled(
    spec: ConvSpec,
    device: Device,
    choices: Sequence[Choice],
    folder: Path,
    limit: float | None = None,
    *,
    sources: bool = False,
    parts: PartCache | None = None,
) -> dict[str, Any]:
    """Compiles a spec into folder/kernel.so, in processes of their own, and returns the facts that launching needs and that people ask for.

    Args:
        choices: one for each part of the spec.
        folder: exists; but for compiled parts, which are kept in the user's cache, nothing is written elsewhere.
        limit: seconds after which it is given up; None waits for ever.
        sources: for CUDA, write kernel.cu and kernel.cubin beside kernel.so.

    Raises:
        BuildFailed: a compiler refused, died, or took longer than the limit.
        EnvironmentProblem: a compiler is missing or cannot be started, or the disk is full.
    """
    start, end = time.monotonic(), None if limit is None else time.monotonic() + limit
    request: dict[str, Any] = {"spec": spec.key, "folder": str(folder.absolute()), "sources": sources, "choices": [choice.plain for choice in choices]}
    if is_generic(choices):
        return requested(spec, device, request, folder, limit)
    distinct = list(dict.fromkeys(placed.part for placed in placed_parts(spec, choices, device)))
    paths = _compiled_parts(distinct, device, folder, end, PartCache())
    made = time.monotonic()
    request["parts"] = [[part.plain, str(path.absolute())] for part, path in paths.items()]
    facts = requested(spec, device, request, folder, _left(end))
    for path in paths.values():
        if path.parent == folder / _PARTS:
            path.unlink()
    if (folder / _PARTS).is_dir():
        (folder / _PARTS).rmdir()
    return facts | {"seconds": {"parts": round(made - start, 3), "layer": round(time.monotonic() - made, 3)}}


def _compiled_parts(parts: Sequence[Part], device: Device, folder: Path, end: float | None, cache: PartCache) -> dict[Part, Path]:
    """Returns the file of each part: as many are compiled at once as there are cores, and none twice."""
    found = {part: cache.find(part, device) for part in parts}
    missing = [part for part, path in found.items() if path is None]
    if missing:
        (folder / _PARTS).mkdir()

    def make(part: Part) -> Path:
        path = folder / _PARTS / f"{part.symbol}.part"
        requested(part.spec, device, {"part": part.plain, "folder": str(folder / _PARTS), "path": str(path.absolute())}, folder, _left(end))
        kept = cache.keep(part, device, path)
        if kept != path:
            path.unlink()
        return kept

    workers = max(1, min(len(missing), cores(), MAX_COMPILERS))
    with concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="tvm_orient compiles") as pool:
        futures = {part: pool.submit(make, part) for part in missing}
        try:
            made = {part: future.result() for part, future in futures.items()}
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # those that were begun end first, all others never begin
            raise
    return {part: made[part] if path is None else path for part, path in found.items()}


def _left(end: float | None) -> float | None:
    """Returns the seconds until a time of time.monotonic, at least none; None where there is no end."""
    return None if end is None else max(0.0, end - time.monotonic())
