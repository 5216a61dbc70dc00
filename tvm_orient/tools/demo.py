"""Demo: the whole path once, on a real photograph. Tune, build, verify, compile, time, and show what the filters see.

The photograph is band-passed at three scales, which leaves thin bright and dark lines; a filter then adds along a line of
31 pixels, so that lines in its direction stand out and others cancel. One image a scale, one channel a direction.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .. import nn
from ..bench.bench import bench
from ..bench.rows import DEFAULT, TUNED, Row
from ..env import user_log_dir
from ..errors import EnvironmentProblem, InvalidArgument
from ..evaluate.verified import Expected
from ..functional import oriented_conv2d
from ..kernels import resolve
from ..problem.device import Device, cpu_device, cuda_devices
from ..problem.line_offsets import angles_between
from ..problem.spec import ConvSpec
from ..problem.taps import Taps
from ..records.store import log_path
from ..runtime import serving
from ..tuning.result import Outcome, TooBusy
from ..tuning.result import Progress as Step
from ..tuning.tune import distinct_parts, tune
from .plots import responses, speed

_DIRECTIONS = 8  # angles of the layer, evenly spaced
_TAPS = 31  # K, taps of a line
_SCALES = (1.0, 1.6, 2.5)  # standard deviations in pixels; four would pass 32 MB, from where on a CPU allocates anew in each call
_WAIT_S = 15.0  # for other work to end
_ALIKE = 0.03  # share by which times differ from one run to the next
_PEERS = ("compiled_gather", "compiled_shift", "compiled_shift_padded", "grouped_raster", "native", "native_channels_last")
_WORDS = {
    TUNED: "tvm_orient, tuned",
    DEFAULT: "tvm_orient, not tuned",
    "copy": "memory copy of the same bytes",
    "compiled_gather": "torch.compile: gathers",
    "compiled_shift": "torch.compile: shifted adds",
    "compiled_shift_padded": "torch.compile: shifted adds, padded copy",
    "grouped_raster": "F.conv2d: a dense kernel per angle",
    "native": "F.conv2d: (1, K)",
    "native_channels_last": "F.conv2d: (1, K), channels_last",
}


def run(out: Path, trials: int, console: Console) -> int:
    """Writes out/montage.png and out/speed.png, and says what it does; 0, or 1 where a result is wrong.

    trials: candidates that tuning may measure for each angle. Records go to the user's log folder, so that a second run has
    little to tune.

    Raises:
        EnvironmentProblem: a package is missing.
        InvalidArgument: out is no folder.
        TuningFailed: as it says.
        BuildFailed: as it says.
    """
    _require("skimage", "scikit-image", "a photograph")
    _require("matplotlib", "matplotlib", "pictures")
    if out.exists() and not out.is_dir():
        raise InvalidArgument(f"the pictures go to a folder, got {str(out)!r}, which is a file: name another with -o")
    out.mkdir(parents=True, exist_ok=True)
    device = cuda_devices()[0] if torch.cuda.is_available() and cuda_devices() else cpu_device()
    photograph = _photograph()
    x, weight = (tensor.to("cuda" if device.kind == "cuda" else "cpu") for tensor in (_bands(photograph), _weights()))
    angles = angles_between(_DIRECTIONS)
    spec = ConvSpec("conv", _DIRECTIONS, photograph.shape[0], photograph.shape[1], Taps.oriented(angles, _TAPS))
    size = f"{spec.height} x {spec.width}, at {len(x)} scales x {_DIRECTIONS} directions"
    _say(console, "photograph", f"camera.png of scikit-image (CC0), {size}: x is {tuple(x.shape)}")

    _tune(spec, device, trials, len(x), console)
    start = time.perf_counter()
    serving.forget()
    serving.kernel(spec, device)
    steps = sorted({found.choice.step for found in resolve.explain(spec, device)})
    _say(console, "build", f"one kernel for {_DIRECTIONS} angles of {_TAPS} taps in {time.perf_counter() - start:.1f} s (records: {', '.join(steps)})")
    y = oriented_conv2d(x, weight, angles.tolist())
    if not _verified(spec, x, weight, y, console) or not _compiled(x, weight, y, console):
        return 1
    with console.status("timing") as status:
        rows = bench([spec], device, batch=len(x), peers=_PEERS, repeats=20, report=lambda text: status.update(text.rpartition("): ")[2]), states=["cold"])
    _say(console, "time", f"median of interleaved calls with cold caches on {device.name}, {torch.get_num_threads()} threads")
    console.print()
    console.print(_table(rows))
    console.print()
    _say(console, "verdict", _verdict(rows))
    responses.responses_png(photograph, y.sum(0).cpu().numpy(), [math.degrees(angle) for angle in angles.tolist()], out / "montage.png")
    timed = sorted((row for row in rows if row.median_ms), key=lambda row: row.median_ms or 0.0)
    speed.speed_png([(_words(row, rows), row.median_ms or 0.0, row.ours) for row in timed], out / "speed.png")
    for name, what in (("montage.png", "photograph, responses, dominant orientation"), ("speed.png", "the table as bars")):
        console.print(f"{out / name}: {what}", soft_wrap=True)
    return 1 if any(row.note.startswith("wrong") for row in rows if row.ours) else 0


def _require(module: str, package: str, what: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise EnvironmentProblem(f"the demo needs {package} for {what}, which is not installed: run `pip install 'tvm-orient[demo]'`")


def _say(console: Console, step: str, text: str) -> None:
    console.print(Text(f"{step:<12}", style="bold"), Text(text), soft_wrap=True)


# ---- the problem --------------------------------------------------------------------------------


def _photograph() -> NDArray[np.float32]:
    """Returns the photograph: (H, W), brightness from 0 to 1."""
    from skimage import data

    return np.asarray(data.camera(), dtype=np.float32) / np.float32(255)  # type: ignore[no-untyped-call]


def _bands(photograph: NDArray[np.float32]) -> torch.Tensor:
    """Returns (scales, directions, H, W): the difference of two blurs of the photograph, positive on dark lines; the same for each direction."""
    plane = torch.from_numpy(photograph)[None, None]
    bands = torch.cat([_blur(plane, 1.6 * scale) - _blur(plane, scale) for scale in _SCALES])
    bands = bands / bands.std((1, 2, 3), keepdim=True)
    return bands.expand(-1, _DIRECTIONS, -1, -1).contiguous()


def _blur(plane: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = math.ceil(4 * sigma)
    bell = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * sigma**2))
    bell = bell / bell.sum()
    padded = F.pad(plane, (reach, reach, reach, reach), mode="reflect")
    return F.conv2d(F.conv2d(padded, bell.view(1, 1, 1, -1)), bell.view(1, 1, -1, 1))


def _weights() -> torch.Tensor:
    """Returns (directions, taps): a bell along the line, of sum 1."""
    place = torch.arange(_TAPS) - _TAPS // 2
    bell = torch.exp(-((place / 7.0) ** 2) / 2)
    return (bell / bell.sum()).expand(_DIRECTIONS, -1).contiguous()


# ---- the steps ----------------------------------------------------------------------------------


def _tune(spec: ConvSpec, device: Device, trials: int, batch: int, console: Console) -> None:
    angles = len(distinct_parts(spec))
    _say(console, "tune", f"{angles} of {_DIRECTIONS} angles (mirrored ones share a record), {trials} candidates each, on {device.slug}")
    columns = (TextColumn("  {task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    start = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=angles * trials)

        def report(step: Step) -> None:
            bar.update(task, completed=step.position * trials + step.trial, description=_progress(step))

        try:
            outcomes, busy = tune(spec, device, trials=trials, batch=batch, report=report, wait=_WAIT_S), ""
        except TooBusy as problem:
            outcomes, busy = problem.outcomes, str(problem)
    if busy:
        _say(console, "", f"stopped: {busy}")
    _say(console, "", _came_to(outcomes, time.perf_counter() - start))
    if any(outcome.written for outcome in outcomes):
        _say(console, "", f"recorded in {log_path(user_log_dir(), device.slug, spec.op)}")


def _progress(step: Step) -> str:
    if step.waiting:
        return f"other work uses {step.waiting[0]:.0%} of the cores: waiting"
    best = f", best {step.best_us / 1e3:.2f} ms" if step.best_us else ""
    untuned = f" against {step.default_us / 1e3:.2f} ms untuned" if step.default_us else ""
    return f"angle {step.position + 1} of {step.parts}{best}{untuned}"


def _came_to(outcomes: Sequence[Outcome], seconds: float) -> str:
    """Returns what tuning came to, in a line."""
    faster = [outcome for outcome in outcomes if outcome.record is not None]
    gains = [outcome.default_us / outcome.best_us for outcome in faster if outcome.default_us and outcome.best_us]
    gain = f", {math.prod(gains) ** (1 / len(gains)):.2f}x on average" if gains else ""
    resumed = sum(outcome.resumed for outcome in outcomes)
    before = f", {resumed} of them in an earlier run" if resumed else ""
    measured = sum(outcome.trials for outcome in outcomes)
    doubted = sum(bool(outcome.doubt) for outcome in outcomes)
    noise = f"; {doubted} are not recorded, for their times were noise" if doubted else ""
    return f"{seconds:.0f} s, {measured} candidates measured{before}; {len(faster)} of {len(outcomes)} angles beat the untuned kernel{gain}{noise}"


def _verdict(rows: Sequence[Row]) -> str:
    """Returns what tuning changed in the layer as a whole, in a line."""
    own = {row.method: row.median_ms for row in rows if row.ours and row.median_ms}
    tuned, untuned = own.get(TUNED), own.get(DEFAULT)
    if tuned is None or untuned is None:
        return "the untuned kernel stands: nothing that was tried is faster"
    if abs(untuned / tuned - 1) <= _ALIKE:
        return f"tuned and untuned are alike here (within {_ALIKE:.0%}): the untuned choice was good already, as it mostly is on CPUs that it was made from"
    if untuned > tuned:
        return f"tuning made the layer {untuned / tuned:.2f} times as fast"
    return f"tuned angles take {tuned / untuned:.2f} times as long together as untuned ones: angles are tuned alone, and share a launch here"


def _verified(spec: ConvSpec, x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, console: Console) -> bool:
    verdict = Expected(spec, x, weight).verdict(y)
    found = f"largest difference from the float64 reference {verdict.difference:.1e}, rounding allows {verdict.bound:.1e}"
    _say(console, "verify", f"{found}: {'WRONG' if verdict.wrong else 'right'}")
    return not verdict.wrong


def _compiled(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, console: Console) -> bool:
    layer = nn.OrientedConv2d(_DIRECTIONS, _TAPS, directions=_DIRECTIONS, bias=False, device=x.device)
    with torch.no_grad():
        layer.weight.copy_(weight)
        start = time.perf_counter()
        same = torch.equal(torch.compile(layer, fullgraph=True)(x), y)
    _say(console, "compile", f"torch.compile(fullgraph=True) in {time.perf_counter() - start:.1f} s: {'the same bits' if same else 'ANOTHER RESULT'}")
    return same


def _words(row: Row, rows: Sequence[Row]) -> str:
    """Returns the name of a method for people."""
    tuned = any(other.method == TUNED and other.median_ms for other in rows)
    return "tvm_orient, tuning kept the default" if row.method == DEFAULT and not tuned else _WORDS[row.method]


def _table(rows: Sequence[Row]) -> Table:
    """Returns a table of the methods, the fastest first, what could not run last."""
    fastest = min((row.median_ms for row in rows if row.median_ms and not row.ours and not row.floor), default=None)
    sheet = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    sheet.add_column("same result by")
    for name in ("ms", "of a copy's speed", "against ours", "error"):
        sheet.add_column(name, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda row: row.median_ms or math.inf):
        style = "bold green" if row.method == TUNED else "bold" if row.ours or row.median_ms == fastest else "dim" if row.floor else ""
        if row.median_ms is None:
            continue
        ratio = "" if row.vs_ours is None or row.vs_ours == 1 else f"{row.vs_ours:.2f}x" if row.floor or row.vs_ours < 1 else f"{row.vs_ours:.2f}x slower"
        error = "" if row.error is None else f"{row.error:.0e}"
        values: list[Any] = [f"{row.median_ms:.2f}", f"{100 * (row.floor_ratio or 0):.0f} %", ratio, error]
        sheet.add_row(Text(_words(row, rows), style=style), *(Text(value, style=style) for value in values))
    return sheet
