"""build: kernels compiled ahead, into the cache or into folders to ship."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from ..errors import OrientError
from ..perf_model.gpu_specs import borrowed
from ..problem.device import Device
from ..problem.spec import ConvSpec
from .application import app, complain, examples
from .output import Json, console, duration, print_json, size, table
from .spec_options import Arch, Target, chosen_device, takes_problem

_AT_ONCE = 2  # kernels that are built at once


@app.command(epilog=examples("build --arch sm_90a --channels 512 --height 56 --width 56 --kernel-size 31 -o kernels", "build --specs keys.txt --target cpu"))
@takes_problem
def build(
    specs: list[ConvSpec],
    target: Target = None,
    arch: Arch = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="DIR", help="Export folders to ship; without it, fill the cache.")] = None,
    as_json: Json = False,
) -> None:
    """Compile kernels ahead of time. --arch needs neither that GPU nor nvcc."""
    device = chosen_device(target, arch)
    printer = console(err=as_json)
    if printer.is_terminal:
        with printer.status(f"building {len(specs)} kernels for {device.arch}") as shown:
            rows = _all(specs, device, out, lambda done: shown.update(f"{done} of {len(specs)} kernels built for {device.arch}"))
    else:
        rows = _all(specs, device, out, lambda _: None)
    failed = [row for row in rows if row["error"]]
    note = borrowed(device.arch) if device.kind == "cuda" else ""
    if as_json:
        print_json({"device": device.slug, "arch": device.arch, "figures": note, "kernels": rows})
    else:
        _print(rows)
        if note:
            console().print(f"\n{note}", style="yellow", soft_wrap=True)
    for row in failed:
        complain(f"{row['spec']}: {row['error']}")
    if failed:
        raise typer.Exit(1)


def _all(specs: list[ConvSpec], device: Device, out: Path | None, report: Callable[[int], None]) -> list[dict[str, Any]]:
    """Returns a row of the table for each kernel, in order; while one is put together the angles of the next are compiled.

    Args:
        report: is told how many are built.
    """
    rows = []
    with concurrent.futures.ThreadPoolExecutor(_AT_ONCE) as pool:
        futures = [pool.submit(_one, spec, device, out) for spec in specs]
        try:
            for future in futures:
                rows.append(future.result())
                report(len(rows))
        except KeyboardInterrupt:
            from ..kernels import compile_process

            pool.shutdown(wait=False, cancel_futures=True)
            compile_process.close()  # those that wait for a compiler are told that it has ended
            raise
    return rows


def _one(spec: ConvSpec, device: Device, out: Path | None) -> dict[str, Any]:
    """Returns one row of the table; a kernel that cannot be built does not stop the others."""
    start = time.perf_counter()
    try:
        if out is None:
            from ..kernels.build import build as compiled

            folder = compiled(spec, device).parent
        else:
            from ..kernels.bundle import export

            folder = export(spec, device, out)
        held, error = sum(file.stat().st_size for file in folder.iterdir() if file.is_file()), None
    except OrientError as problem:
        folder, held, error = None, 0, str(problem)
    seconds = round(time.perf_counter() - start, 3)
    return {"spec": spec.key, "folder": None if folder is None else str(folder), "bytes": held, "seconds": seconds, "error": error}


def _print(rows: list[dict[str, Any]]) -> None:
    printer = console()
    shown = table("kernel", "folder", "size", "time", right=("size", "time"), fold=("kernel",))
    for row in rows:
        folder = Text("failed", style="red") if row["folder"] is None else Path(row["folder"]).name
        shown.add_row(row["spec"], folder, size(row["bytes"]) if row["folder"] else "-", duration(row["seconds"]))
    printer.print(shown)
    for parent in sorted({str(Path(row["folder"]).parent) for row in rows if row["folder"]}):
        printer.print(f"\nin {parent}", soft_wrap=True)
