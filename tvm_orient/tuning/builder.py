"""The processes that tuning works with: those that compile candidates, several at once, and the one that measures them.

A builder (`python -m tvm_orient.tuning.builder`) reads one JSON request a line and answers one JSON line, as the measuring process does. A
round of candidates is compiled before any of it is measured, so that no compiler runs beside a measurement.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..compiler.layer import compile_layer
from ..errors import BuildFailed
from ..problem.device import Device
from ..problem.spec import ConvSpec
from ..schedules.choices import Choice
from ..toolchain.worker import ChildProcess, environment, module_command, serve
from .runner import Runner

Workspace = tuple[int, int] | None
_MAX_BUILD_S = 180.0  # seconds that one candidate may take to compile; the slowest known takes a tenth of it


def build(part: ConvSpec, device: Device, choice: Choice, path: Path) -> Workspace:
    """Compiles one candidate to path, and returns the shape of the workspace that conv_dw needs for each image and channel, (bands, taps), or None.

    Raises:
        BuildFailed: TVM or the compiler behind it refused.
    """
    return compile_layer(part, device, [choice], path).workspace


class _Builder(ChildProcess):
    """A process that compiles candidates for one device."""

    lasting = True  # a candidate that was refused spoils nothing

    def __init__(self, device: Device) -> None:
        super().__init__(module_command("tvm_orient.tuning.builder"), _MAX_BUILD_S, environment())
        self.device = device

    def build(self, part: ConvSpec, choice: Choice, path: Path) -> Workspace:
        """Compiles as the function `build` does, in the process."""
        answer = self.told({"spec": part.key, "choice": choice.plain, "device": dataclasses.asdict(self.device), "path": str(path)})
        if "error" in answer:
            raise BuildFailed(f"{choice.template} {choice.by_name} did not compile: {answer['error']}")
        space = answer["workspace"]
        return (int(space[0]), int(space[1])) if space else None


class BuilderPool:
    """Compiled candidates of one angle at a time, and the worker that measures on the device; shared by problems tuned in a row.

    Args:
        device: the one that candidates are compiled for and measured on.
        jobs: processes that compile; with 1, candidates are compiled in this process.
    """

    def __init__(self, device: Device, jobs: int = 1) -> None:
        self.device, self.jobs, self.worker = device, max(1, jobs), Runner(device)
        self._builders = [_Builder(device) for _ in range(self.jobs if self.jobs > 1 else 0)]
        self._folder = tempfile.TemporaryDirectory(prefix="tvm_orient-")
        self._built: dict[tuple[ConvSpec, Choice], tuple[Path, Workspace] | BuildFailed] = {}

    def prepare(self, part: ConvSpec, choices: Sequence[Choice]) -> None:
        """Compiles those that are not compiled yet, at once where there are builders; what fails is told when it is asked for."""
        new = [choice for choice in dict.fromkeys(choices) if (part, choice) not in self._built]
        if not self._builders or len(new) < 2:
            return
        shares = [(builder, new[i :: len(self._builders)]) for i, builder in enumerate(self._builders)]
        with concurrent.futures.ThreadPoolExecutor(len(shares)) as pool:
            try:
                list(pool.map(lambda share: self._share(part, *share), shares))
            except KeyboardInterrupt:
                for builder in self._builders:  # their threads wait for answers
                    builder.close()
                raise

    def _share(self, part: ConvSpec, builder: _Builder, choices: Sequence[Choice]) -> None:
        for choice in choices:
            path = self._place()
            try:
                self._built[part, choice] = path, builder.build(part, choice, path)
            except BuildFailed as problem:
                self._built[part, choice] = problem

    def built(self, part: ConvSpec, choice: Choice) -> tuple[Path, Workspace]:
        """Returns (path of the library, workspace) of a candidate, compiled now if it was not before.

        Raises:
            BuildFailed: it does not compile.
        """
        if (part, choice) not in self._built:
            path = self._place()
            try:
                self._built[part, choice] = path, build(part, self.device, choice, path)
            except BuildFailed as problem:
                self._built[part, choice] = problem
        found = self._built[part, choice]
        if isinstance(found, BuildFailed):
            raise found
        return found

    def _place(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder.name)) / "kernel.so"

    def clear(self) -> None:
        """Forgets what is compiled: another angle begins."""
        for found in self._built.values():
            if not isinstance(found, BuildFailed):
                found[0].unlink(missing_ok=True)
        self._built.clear()

    def close(self) -> None:
        """Ends every process and removes what they made."""
        for worker in (self.worker, *self._builders):
            worker.close()
        self._folder.cleanup()

    def __enter__(self) -> BuilderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    part, choice = ConvSpec.from_key(request["spec"]), Choice.of_plain(request["choice"])
    return {"workspace": build(part, Device(**request["device"]), choice, Path(request["path"]))}


def _main() -> None:
    """Answers requests until standard input ends."""
    import torch  # noqa: F401  (before tvm: it brings libcudart)

    serve(_answer)


if __name__ == "__main__":
    _main()
