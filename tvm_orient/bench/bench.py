"""Bench: our kernels, their untuned defaults, the floor and the peers, on the same operands in the same run.

Every result is checked against the reference before anything is timed and once more after; what fails gets no time. Methods
take turns in an order that is shuffled each round, so that a slow spell of the machine falls on all of them. A turn is one
call that is not timed and one that is: the first wakes the method's own threads, after those of the method before went to
sleep. Cold is what `tvm_orient.evaluate.timing` says, as in tuning. Warm: the untimed call had the same operands.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..errors import EnvironmentProblem, InvalidArgument
from ..evaluate.machine import keep_freed_memory
from ..problem.device import Device, cuda_devices
from ..problem.spec import ConvSpec
from ..runtime import serving
from .cell import Cell, Report, silent
from .methods import angles_text
from .peers import registry
from .rows import STATES, Row


def bench(
    specs: Sequence[ConvSpec],
    device: Device,
    *,
    batch: int,
    peers: bool | Collection[str] = True,
    repeats: int = 30,
    report: Report | None = None,
    states: Sequence[str] = STATES,
    patience: float | None = None,
) -> list[Row]:
    """Returns rows of every method for every spec at N = batch, in the order: ours, the floor, the peers.

    On CUDA the times are those of the device: the launch is queued behind a pause. On a CPU results lie in memory that was used before:
    glibc keeps what this process frees from then on.

    Args:
        peers: True for all of peers.PEERS, False for none, or the names of those wanted.
        repeats: timed calls of each method in each state; one that needs more than 3 s for them (0.5 s on CUDA) gets fewer, 5 at least (3),
            and so does a peer that needs over three times our time.
        report: told what is being done, a line at a time.
        states: of the cache, "cold" and "warm".
        patience: seconds that a peer's first call may take, compiling included; None: any.

    Raises:
        InvalidArgument: batch or repeats < 1, an unknown peer or state.
        EnvironmentProblem: the device is not in this machine.
    """
    for name, value in (("batch", batch), ("repeats", repeats)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidArgument(f"{name} must be a whole number >= 1, got {value!r}")
    wanted = [peer.name for peer in registry.PEERS] if peers is True else list(peers or ())
    for what, names, known in (("peers", wanted, [peer.name for peer in registry.PEERS]), ("states", states, STATES)):
        if unknown := [name for name in names if name not in known]:
            raise InvalidArgument(f"{what} must be among {', '.join(known)}, got {unknown[0]!r}")
    if ended := [spec for spec in specs if spec != spec.plain]:
        raise InvalidArgument(f"bench times the operators without an epilogue, as their peers have none, got {ended[0]}: give {ended[0].plain}")
    if device.kind == "cuda" and device not in cuda_devices():
        raise EnvironmentProblem(f"timing needs the device itself, and {device.slug} is not in this machine: run this where it is, or bench the CPU")
    if device.kind == "cpu":
        keep_freed_memory()
    serving.forget()  # records may have been written since a kernel was loaded
    rows = []
    for number, spec in enumerate(specs, 1):
        title = f"{spec.op} {spec.channels}x{spec.height}x{spec.width} K={spec.kernel_size} at {angles_text(spec)} ({number} of {len(specs)})"
        rows += Cell(spec, device, batch, (report or silent), title, patience).rows(wanted, repeats, states)
    return rows
