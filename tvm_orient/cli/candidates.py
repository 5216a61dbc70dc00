"""explain, where no record answers: which templates serve each angle, what they are estimated to take, and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..problem.device import Device
from .output import angle, table

if TYPE_CHECKING:
    from ..kernels.resolve import Explained


def compared(parts: list[Explained], device: Device) -> list[dict[str, Any] | None]:
    """Of each angle that no record answers for: its candidates, best first, and the templates of this kind of device that decline, with their reasons.

    clocks: of an SM for 32 outputs by resource, estimated before anything is compiled; empty for a template without an estimate.
    total: what candidates are ranked by, a little more than the largest of these. None: a record answers.
    """
    from ..perf_model.block_cost import soft_maximum
    from ..schedules import registry
    from ..schedules.choices import is_generic

    found: list[dict[str, Any] | None] = []
    for part in parts:
        if part.record is not None:
            found.append(None)
            continue
        own = None if is_generic([part.choice]) else (part.choice.template, dict(part.choice.decisions))
        serve, declined = registry.compare(part.part, device, own)
        rows = [
            {
                "template": template.name,
                "decisions": dict(decisions),
                "clocks": dict(clocks),
                "total": soft_maximum(clocks) if clocks else None,
                "chosen": own == (template.name, dict(decisions)),
            }
            for template, decisions, clocks in serve
        ]
        found.append({"candidates": rows, "declined": declined})
    return found


def show(printer: Console, parts: list[Explained], found: list[dict[str, Any] | None]) -> None:
    """Two tables: a row an angle and a column a template; and the templates that decline."""
    rows = [(angle(part.part.taps), one) for part, one in zip(parts, found, strict=True) if one is not None]
    names = list(dict.fromkeys(row["template"] for _, one in rows for row in one["candidates"]))
    if names:
        timed = any(row["clocks"] for _, one in rows for row in one["candidates"])
        unit = "clocks of an SM for 32 outputs, estimated, and what takes them" if timed else "none has an estimate: the first is taken"
        printer.print(f"\ntemplates that serve it, * chosen ({unit})", style="bold", soft_wrap=True)
        sheet = table("angle", *names, right=tuple(names) if timed else ())
        for name, one in rows:
            cells = {row["template"]: _cell(row) for row in one["candidates"]}
            sheet.add_row(name, *(cells.get(template, Text("-", style="dim")) for template in names))
        printer.print(sheet)
        if timed and len(parts) > 1:
            printer.print("angles share a launch: the whole that takes the fewest clocks is chosen, its code included", style="dim", soft_wrap=True)
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, one in rows:
        for template, reason in one["declined"].items():
            reasons.setdefault((template, reason), []).append(name)
    if reasons:
        printer.print("\ntemplates that decline", style="bold")
        sheet = table("template", "angles", "why", fold=("why", "angles"))
        sheet.show_header = False
        for (template, reason), angles in reasons.items():
            sheet.add_row(template, "all" if len(angles) == len(rows) else " ".join(angles), Text(reason, style="dim"))
        printer.print(sheet)


def _cell(row: dict[str, Any]) -> Text:
    clocks = row["clocks"]
    said = f"{row['total']:.1f} {max(clocks, key=clocks.__getitem__)}" if clocks else "serves"
    return Text(f"* {said}" if row["chosen"] else said, style="green" if row["chosen"] else "")
