"""explain: which templates serve each angle, what they and the default are estimated to take, and why the others do not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..problem.device import Device
from ..problem.spec import ConvSpec
from .output import angle, table

if TYPE_CHECKING:
    from ..kernels.resolve import Explained
    from ..schedules.registry import Rival


def compared(spec: ConvSpec, parts: list[Explained], device: Device) -> list[dict[str, Any]]:
    """Returns for each angle its candidates, best first, the default, and the templates of this kind of device that decline, with their reasons.

    candidates: the least choice of each template, and the chosen one in the place of its template's; `chosen` says which it is.
    default: what is taken where no record answers, in this layer; its template is the generic kernel where no other serves one of the angles.
    clocks: of an SM for 32 outputs by resource, estimated before anything is compiled, in a layer of this angle alone; empty without an estimate.
    total: what candidates are ranked by, a little more than the largest of these; None without an estimate.
    """
    from ..schedules import registry
    from ..schedules.choices import default_choices, is_generic

    found: list[dict[str, Any]] = []
    for part, default in zip(parts, default_choices(spec, device), strict=True):
        own = None if is_generic([part.choice]) else (part.choice.template, part.choice.config)
        serve, declined = registry.compare(part.part, device, own)
        rows = [{**_plain(rival), "chosen": own == (rival.template.name, rival.config)} for rival in serve]
        if is_generic([default]):
            plain: dict[str, Any] = {"template": default.template, "decisions": {}, "clocks": {}, "total": None}
        else:
            plain = _plain(registry.estimated(registry.find(default.template), part.part, device, default.config))
        found.append({"candidates": rows, "default": plain, "declined": declined})
    return found


def _plain(rival: Rival) -> dict[str, Any]:
    """Returns the same in types that JSON has."""
    return {"template": rival.template.name, "decisions": rival.config.decisions(), "clocks": dict(rival.clocks), "total": rival.total}


def show(printer: Console, parts: list[Explained], found: list[dict[str, Any]]) -> None:
    """Prints two tables: a row an angle and a column a template; and the templates that decline."""
    rows = [(angle(part.part.taps), one) for part, one in zip(parts, found, strict=True)]
    names = list(dict.fromkeys(row["template"] for _, one in rows for row in one["candidates"]))
    if names:
        timed = any(row["clocks"] for _, one in rows for row in one["candidates"])
        unit = "clocks of an SM for 32 outputs, estimated, and what takes them" if timed else "none has an estimate: the first is taken"
        unit += " where no record answers" if any(part.record for part in parts) else ""
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
