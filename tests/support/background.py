"""What the processes of test_background.py do: calls whose kernels stand-ins for the compiler make, in a cache of their own.

`python -m tests.support.background NAME FOLDER`; the generic kernel comes from TVM_ORIENT_SHARED_CACHE.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from pathlib import Path

import torch

import tvm_orient as to
from tests.support.compilers import BLOCKED, COPYING, pids, stand_in, until
from tests.support.helpers import assert_close, operands
from tests.support.serving import CPU, spec_at
from tvm_orient.runtime import kernel, serving

WIDTHS = (50, 51, 52)  # of the problems that ranks call


class _Patch:
    """Sets attributes as pytest's monkeypatch does, and leaves them."""

    setattr = staticmethod(setattr)


def _begin(folder: Path, width: int = WIDTHS[0], compilers: int = 1) -> None:
    """Has a making begun that never ends, and goes on once so many compilers have been started by all processes."""
    stand_in(_Patch, BLOCKED.format(folder=str(folder)))
    given = operands(spec_at(width), 2)
    for _ in range(2):
        to.tap_conv2d(*given, spec_at(width).taps)
    until(lambda: len(pids(folder)) == compilers)


def leaves(folder: Path) -> None:
    """Ends in the middle."""
    _begin(folder)


def waits(folder: Path) -> None:
    """Is interrupted in the middle, in code of the user."""
    _begin(folder)
    (folder / "waiting").touch()
    time.sleep(60)


def warms(folder: Path) -> None:
    """Is interrupted in the middle of a warmup."""
    stand_in(_Patch, BLOCKED.format(folder=str(folder)))
    (folder / "waiting").touch()
    to.warmup([spec_at(width) for width in WIDTHS])


def _child(folder: str, compilers: int) -> None:
    before = to.compiling().pending
    _begin(Path(folder), WIDTHS[1], compilers)
    Path(folder, "child.json").write_text(json.dumps([before, to.compiling().pending]))


def _of_multiprocessing(method: str, folder: Path) -> None:
    """A child ends in the middle, while its parent goes on; the parent then ends in the middle too."""
    if method == "fork":
        _begin(folder)
    child = multiprocessing.get_context(method).Process(target=_child, args=(str(folder), 2 if method == "fork" else 1))
    child.start()
    child.join(60)
    print(json.dumps({"exit": child.exitcode, "pending": to.compiling().pending}), flush=True)


def forks(folder: Path) -> None:
    """The child is forked while the parent makes a kernel."""
    _of_multiprocessing("fork", folder)


def spawns(folder: Path) -> None:
    """The child is a process of its own."""
    _of_multiprocessing("spawn", folder)


def rank(folder: Path) -> None:
    """Calls problems, all at the time at which the other rank does, and tells what came of it."""
    stand_in(_Patch, COPYING.format(folder=str(folder), seconds=0.3))
    specs = [spec_at(width) for width in WIDTHS]
    (folder / f"{os.getpid()}.ready").touch()
    until(lambda: len(list(folder.glob("*.ready"))) == 2)
    for _ in range(3):
        for spec in specs:
            given = operands(spec, 2)
            assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    done = to.compiling().wait(60)
    for spec in specs:
        given = operands(spec, 2)
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    own = [isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel) for spec in specs]
    print(json.dumps({"done": done, "ready": to.compiling().ready, "failed": to.compiling().failed, "own": own}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    {f.__name__: f for f in (leaves, waits, warms, forks, spawns, rank)}[sys.argv[1]](Path(sys.argv[2]))
