"""Output of the verbs: tables and units for people, pure JSON for machines."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..errors import InvalidArgument
from ..problem.spec import ConvSpec
from ..problem.taps import Taps

_PIPE_WIDTH = 100  # columns where no terminal says how many
QUIET_S = 10.0  # seconds between lines of progress where there is no terminal

Json = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, and nothing else there.")]


def console(*, err: bool = False) -> Console:
    """Returns a console that prints text as it is: a path or a key with brackets is never taken for markup."""
    made = Console(stderr=err, markup=False, emoji=False, highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, _PIPE_WIDTH)
    return made


@contextlib.contextmanager
def progress(printer: Console) -> Iterator[Callable[[str], None]]:
    """Shows one line that changes in a terminal, now and then a line elsewhere; always on standard error, apart from the results."""
    if printer.is_terminal:
        with printer.status("starting") as status:
            yield status.update
        return
    said = -QUIET_S

    def say(text: str) -> None:
        nonlocal said
        if time.monotonic() - said >= QUIET_S:
            said = time.monotonic()
            printer.print(text, soft_wrap=True)

    yield say


def plain_file(path: Path | None) -> None:
    """Refuses to replace what is not a plain file: writing is a rename, which would put a file in the place of a device or a folder.

    Raises:
        InvalidArgument: such a path.
    """
    if path is not None and path.exists() and not path.is_file():
        raise InvalidArgument(f"-o takes a plain file, got {path}, which is a {'folder' if path.is_dir() else 'device or a pipe'}: name a file")


def print_json(value: Any) -> None:
    """Prints one JSON value on standard output."""
    typer.echo(json.dumps(value, indent=2))


def table(*columns: str, right: tuple[str, ...] = (), fold: tuple[str, ...] = ()) -> Table:
    """Returns an empty table; columns named in right hold numbers, those in fold are the ones to break where the terminal is narrow."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold", no_wrap=bool(fold) and column not in fold)
    return made


def angle(taps: Taps) -> str:
    """Returns the angles for people: 22.5°, or free where the offsets are no lines."""
    return " ".join(f"{value:g}°" for value in taps.degrees) or "free"


def layer(spec: ConvSpec, device: str) -> str:
    """Returns a spec in one line without its angles."""
    stride = "x".join(map(str, dict.fromkeys(spec.stride)))
    kind = f"{spec.padding_mode}  {spec.dtype}" + ("" if spec.layout == "nchw" else f"  {spec.layout}")
    return f"{spec.op_with_epilogue}  {spec.channels} x {spec.height} x {spec.width}  K={spec.kernel_size}  stride {stride}  {kind}  on {device}"


def duration(seconds: float | None) -> str:
    """Returns seconds in words, as 8.3 s, 1 min 05 s or 2 h 03 min."""
    if seconds is None:
        return "-"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def microseconds(value: float | None) -> str:
    """Returns a time in words, as 8.31 us, 831 us or 8.31 ms, three digits."""
    if value is None:
        return "-"
    number, unit = (value, "us") if value < 1000 else (value / 1000, "ms")
    return f"{number:.{2 if number < 10 else 1 if number < 100 else 0}f} {unit}"


def speedup(default_us: float | None, best_us: float | None) -> str:
    """Returns how many times as fast as the default."""
    return f"{default_us / best_us:.2f}x" if default_us and best_us else "-"


def size(count: int) -> str:
    """Returns bytes in words, as 831 B, 8.3 kB or 8.3 MB."""
    for unit, scale in (("B", 1), ("kB", 10**3), ("MB", 10**6)):
        if count < 1000 * scale:
            return f"{count} B" if scale == 1 else f"{count / scale:.1f} {unit}"
    return f"{count / 10**9:.1f} GB"
