"""demo: the whole path, once, on photographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .application import app, examples
from .output import console
from .spec_options import whole


@app.command(epilog=examples("demo", "demo -o pictures --trials 64"))
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the pictures.")] = Path("demo_out"),
    trials: Annotated[int, typer.Option(parser=whole, metavar="N", help="Candidates to measure for each angle.")] = 8,
) -> None:
    """Tune, build, verify, run and time a bank of oriented filters on a photograph; writes pictures."""
    from ..tools.demo import run

    code = run(out, trials, console())
    if code:
        raise typer.Exit(code)
