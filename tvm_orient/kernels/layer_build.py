"""Has a layer compiled: its angles apart, several at once, those that were compiled before taken from the cache, and then put together."""

from __future__ import annotations

import collections
import contextlib
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from ..compiler.parts import Part, placed_parts
from ..problem.cpus import cores
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice, is_generic
from .compile_process import Deadline, requested
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
    urgent: bool = True,
) -> dict[str, Any]:
    """Compiles a spec into folder/kernel.so, in processes of their own, and returns the facts that launching needs and that people ask for.

    Args:
        choices: one for each part of the spec.
        folder: exists; but for compiled parts, which are kept in the user's cache, nothing is written elsewhere.
        limit: seconds after which it is given up; None waits for ever.
        sources: for CUDA, write kernel.cu and kernel.cubin beside kernel.so.
        urgent: False where nobody asked for it: it then gives way to what was asked for, and to the program.

    Raises:
        BuildFailed: a compiler refused, died, or took longer than the limit.
        EnvironmentProblem: a compiler is missing or cannot be started, or the disk is full.
    """
    start, deadline = time.monotonic(), Deadline(limit)
    request: dict[str, Any] = {"spec": spec.key, "folder": str(folder.absolute()), "sources": sources, "choices": [choice.plain for choice in choices]}
    if is_generic(choices):
        return requested(spec, device, request, folder, deadline, urgent=urgent)
    distinct = list(dict.fromkeys(placed.part for placed in placed_parts(spec, choices, device)))
    with _Parts(device, folder, deadline, urgent) as parts:
        paths = parts.files(distinct)
        made = time.monotonic()
        request["parts"] = [[part.plain, str(path.absolute())] for part, path in paths.items()]
        facts = requested(spec, device, request, folder, deadline, urgent=urgent)
    return facts | {"seconds": {"parts": round(made - start, 3), "layer": round(time.monotonic() - made, 3)}}


class _Parts:
    """The compiled parts of one layer: taken from the cache, or compiled beside the kernel and put there.

    Args:
        device: what they are compiled for.
        folder: of the kernel.
        deadline: when compiling is given up.
        urgent: somebody asked for the kernel.
    """

    def __init__(self, device: Device, folder: Path, deadline: Deadline, urgent: bool) -> None:
        self.device, self.folder, self.deadline, self.urgent = device, folder, deadline, urgent
        self.cache, self.made = PartCache(), folder / _PARTS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.made, ignore_errors=True)

    def files(self, parts: Sequence[Part]) -> dict[Part, Path]:
        """Returns the file of each part, beside the kernel: as many are compiled at once as there is room for, and none twice.

        Raises:
            BuildFailed, EnvironmentProblem: as `compiled`, of the first that failed; those that were begun end first, and no other is begun.
        """
        self.made.mkdir()
        found = {part: self.cache.take(part, self.device, self.made) for part in parts}
        missing = collections.deque(part for part, path in found.items() if path is None)
        failed: list[BaseException] = []

        def work() -> None:
            while missing and not failed:
                with contextlib.suppress(IndexError):  # another thread took the last
                    part = missing.popleft()
                    try:
                        found[part] = self._compiled(part)
                    except BaseException as problem:
                        failed.append(problem)

        # daemons: a program that ends does not wait for them, and its compilers end with it
        threads = [threading.Thread(target=work, name="tvm_orient compiles a part", daemon=True) for _ in range(min(len(missing), cores()))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as problem:  # such as a key that was pressed: nobody wants the others
            failed.append(problem)
            raise
        if failed:
            raise failed[0]
        return {part: path for part, path in found.items() if path is not None}

    def _compiled(self, part: Part) -> Path:
        """Has a part compiled, and returns its file."""
        path = self.made / f"{part.symbol}.part"
        request = {"part": part.plain, "folder": str(self.made.absolute()), "path": str(path.absolute())}
        requested(part.spec, self.device, request, self.folder, self.deadline, urgent=self.urgent)
        self.cache.keep(part, self.device, path)
        return path
