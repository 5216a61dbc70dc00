"""cache: what is compiled on this machine."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InvalidArgument
from .application import app, examples
from .output import Json, console, print_json, size, table

_UNITS_S = {"": 86400.0, "d": 86400.0, "h": 3600.0, "m": 60.0}  # seconds of the units of an age
cache_app = typer.Typer(no_args_is_help=True, help="List or clear the compiled kernels of this machine.", epilog=examples("cache list"))
app.add_typer(cache_app, name="cache")


@cache_app.command("list", epilog=examples("cache list", "cache list --json"))
def list_entries(as_json: Json = False) -> None:
    """List the compiled kernels: this user's, and those of caches that are only read."""
    from .. import env
    from ..kernels import shared_cache
    from ..kernels.cache import KernelCache
    from ..kernels.part_cache import parts_of

    folders = [KernelCache(folder).directory for folder in env.cache_dirs()]
    entries, others = [how for folder in folders for how in KernelCache(folder).entries()], shared_cache.entries()
    if as_json:
        shown = {folder: [how.plain for how in found] for folder, found in others.items()}
        held = [part for folder in folders for part in parts_of(folder)]
        parts = {"count": len(held), "bytes": sum(part.size for part in held)}
        print_json({"directory": str(folders[0]) if folders else None, "entries": [how.plain for how in entries], "parts": parts, "shared": shown})
        return
    printer = console()
    rows = table("entry", "kernel", "arch", "size", "made", right=("size",), fold=("kernel",))
    for how in (*entries, *(how for found in others.values() for how in found)):
        rows.add_row(how.name, str(how.key.get("spec")), str(how.key.get("arch")), size(how.size), how.made[:16].replace("T", " "))
    if rows.row_count:
        printer.print(rows)
        printer.print()
    for folder, found in [*((str(folder), entries) for folder in folders), *others.items()]:
        note = ", which is only read" if folder in others else ""
        held = parts_of(Path(folder))
        said = f", and {len(held)} compiled parts of kernels, {size(sum(part.size for part in held))}," * bool(held)
        printer.print(f"{len(found)} kernels, {size(sum(how.size for how in found))}{said} in {folder}{note}", soft_wrap=True)
    if not folders:
        printer.print("no cache of this user's own: no home, and TVM_ORIENT_CACHE_DIR is not set", soft_wrap=True)


@cache_app.command("clear", epilog=examples("cache clear", "cache clear --older 30d", "cache clear --older 12h"))
def clear(
    older: Annotated[
        str | None, typer.Option("--older", metavar="AGE", help="Only those that were last used so long ago: 30d, 12h, or a number of days.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Remove every compiled kernel and part of one, or the old ones; they are built again when they are needed."""
    from ..kernels.cache import KernelCache

    age = None if older is None else _seconds(older)
    store = KernelCache()
    gone = store.clear() if age is None else store.clear(time.time() - age)
    if as_json:
        print_json({"directory": str(store.directory), "removed": gone.kernels, "parts": gone.parts})
    else:
        console().print(f"removed {gone.kernels} kernels and {gone.parts} compiled parts of kernels from {store.directory}", soft_wrap=True)


def _seconds(age: str) -> float:
    """Returns the seconds of an age: a number with the unit d, h or m, or of days without one.

    Raises:
        InvalidArgument: it is none.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([dhm]?)", age)
    if found is None:
        raise InvalidArgument(f"--older takes a number with the unit d, h or m, or a number of days, got {age!r}: 30d, 12h or 30, say")
    return float(found[1]) * _UNITS_S[found[2]]
