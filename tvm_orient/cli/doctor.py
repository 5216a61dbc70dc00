"""doctor: what works on this machine, and what to install for the rest."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .application import app, examples
from .output import Json, console, print_json

if TYPE_CHECKING:
    from ..tools.doctor import Check

_COLOURS = {"ok": "green", "missing": "yellow", "broken": "bold red"}


@app.command(epilog=examples("doctor", "doctor --json"))
def doctor(as_json: Json = False) -> None:
    """Look at this machine: what works here, what is missing and what to install; exit 1 if something is broken."""
    printer = console(err=as_json)
    with printer.status("looking") if printer.is_terminal else contextlib.nullcontext():
        from ..tools.doctor import broken, examine, lacks

        checks = examine()
    works, wrong = lacks(checks), broken(checks)
    if as_json:
        able = {what: {"works": not needs, "lacks": needs} for what, needs in works.items()}
        print_json({"healthy": not wrong, "works": able, "checks": [dataclasses.asdict(check) for check in checks]})
    else:
        _print(printer, checks, works)
        count = "nothing is broken" if not wrong else f"{len(wrong)} broken: {', '.join(check.name for check in wrong)}"
        printer.print(f"\n{count}", style="red" if wrong else "green")
    if wrong:
        raise typer.Exit(1)


def _print(printer: Console, checks: list[Check], works: dict[str, list[str]]) -> None:
    rows, section = _rows(), ""
    for check in checks:
        if check.section != section:
            if section:
                rows.add_row()
            section = check.section
            rows.add_row(Text(section, style="bold"))
        told = Text(check.detail)
        if check.hint and (check.state != "ok" or section == "environment"):
            told.append(f"\n{check.hint}", style="dim")
        rows.add_row("  " + check.name, Text(check.state, style=_COLOURS[check.state]), told)
    printer.print(rows)
    able = _rows()
    for what, needs in works.items():
        verdict = Text("no", style="yellow") if needs else Text("yes", style="green")
        able.add_row("  " + what, verdict, Text(f"lacks {', '.join(needs)}" if needs else "", style="dim"))
    printer.print("\nwhat works here", style="bold")
    printer.print(able)


def _rows() -> Table:
    rows = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for fold in (False, False, True):
        rows.add_column(overflow="fold", no_wrap=not fold)
    return rows
