"""check: whether the kernel of a problem computes what it should, and where it does not; a GPU need not be here."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import InvalidArgument
from ..problem.spec import ConvSpec
from .application import app, complain, examples
from .output import Json, angle, console, duration, layer, print_json, progress, table
from .spec_options import Arch, Target, chosen_device, takes_problem, whole

if TYPE_CHECKING:
    from ..evaluate.check import Checked, Outcome
    from ..problem.device import Device
    from ..schedules.choices import Choice

_STYLES = {"right": "green", "wrong": "red", "left out": "yellow"}
_SAID = {  # what each way looks at
    "compiled": "the CPU's kernel, compiled and called",
    "serial": "loops, indices and predicates of the schedule, on the CPU",
    "blocks": "the CUDA source with its barriers, threads in two orders",
    "machine": "the machine code, warps in two orders",
}


@app.command(
    epilog=examples(
        "check --channels 16 --height 14 --width 14 --kernel-size 31",
        "check --op all --channels 8 --height 14 --width 14 --kernel-size 31 --angles 22.5 --arch sm_90a",
        "check conv-c8h14w14-s1-zeros-float32-nchw-k31a22.5 --arch sm_90a --template shared_patch --decisions tiles_per_block=1,stages=1 --way blocks",
    )
)
@takes_problem
def check(
    specs: list[ConvSpec],
    target: Target = None,
    arch: Arch = None,
    template: Annotated[str | None, typer.Option(metavar="NAME", help="Check this template instead of the one that would be built.")] = None,
    decisions: Annotated[str | None, typer.Option(metavar="K=V,...", help="With --template: what it is to decide instead of its default.")] = None,
    way: Annotated[
        list[str] | None, typer.Option(metavar="WAY", help="compiled (on a CPU); serial, blocks, machine (of a GPU). May be given again.", show_default="all")
    ] = None,
    batch: Annotated[int, typer.Option(parser=whole, metavar="N", help="Images at a time.")] = 2,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the random operands.")] = 0,
    as_json: Json = False,
) -> None:
    """Hold the kernel of a problem to the float64 reference, and say where it is wrong. No GPU is needed.

    A channel costs time and shows nothing new: give one for each angle. Exit 1 where something is wrong, or where nothing could be checked.
    """
    from ..evaluate.check import check as checked

    device = chosen_device(target, arch)
    found = []
    with progress(console(err=True)) as report:
        for number, spec in enumerate(specs, 1):
            choices = _choices(spec, device, template, decisions)
            found.append(checked(spec, device, choices, batch=batch, seed=seed, ways=way, report=_told(report, spec, number, len(specs))))
    if as_json:
        print_json({"device": dataclasses.asdict(device), "checks": [_plain(one) for one in found]})
    else:
        _print(console(), found, device.slug)
    for one in found:
        if not one.right:
            complain(f"{one.spec}: {_verdict(one)}")
    if not all(one.right for one in found):
        raise typer.Exit(1)


def _told(report: Callable[[str], None], spec: ConvSpec, number: int, count: int) -> Callable[[str], None]:
    """Returns what the progress line says when a way begins."""
    return lambda way: report(f"checking {number} of {count}: {spec.op}, {spec.taps.groups} angles, {way}: {_SAID[way]}")


def _choices(spec: ConvSpec, device: Device, template: str | None, decisions: str | None) -> Sequence[Choice]:
    """Returns what would be built, or what the options force.

    Raises:
        InvalidArgument: decisions without a template or of another form, or as `check.forced`.
        Unsupported: as `check.forced`.
    """
    if template is None:
        if decisions is not None:
            raise InvalidArgument(f"--decisions are those of a template, got {decisions!r} and no --template: name one, such as --template shared_patch")
        from ..kernels.resolve import explain

        return [part.choice for part in explain(spec, device)]
    from ..evaluate.check import forced

    return forced(spec, device, template, _decided(decisions))


def _decided(text: str | None) -> dict[str, int]:
    """Returns the decisions that K=V,K=V means.

    Raises:
        InvalidArgument: another form.
    """
    decided = {}
    for word in (text or "").split(",") if text is not None else ():
        name, _, value = word.strip().partition("=")
        if not name or not value.isascii() or not value.isdigit():
            raise InvalidArgument(
                f"--decisions takes whole numbers by name, separated by commas, got {word.strip()!r}: such as --decisions tiles_per_block=1,stages=1"
            )
        decided[name] = int(value)
    return decided


def _verdict(one: Checked) -> str:
    """Returns in a few words what is not right."""
    wrong = [outcome.way for outcome in one.outcomes if outcome.status == "wrong"]
    if wrong:
        return f"wrong by {', '.join(wrong)}"
    return "nothing was checked: " + "; ".join(f"{outcome.way}: {outcome.reasons[0]}" for outcome in one.outcomes)


def _plain(one: Checked) -> dict[str, Any]:
    parts = [
        {"degrees": list(part.taps.degrees), "channels": [first, stop], **dataclasses.asdict(choice), "decisions": choice.by_name}
        for (first, stop, part), choice in zip(one.spec.parts(), one.choices, strict=True)
    ]
    ways = [_plain_outcome(one, outcome) for outcome in one.outcomes]
    return {
        "spec": one.spec.key, "computed": one.computed.key, "right": one.right, "batch": one.batch, "seed": one.seed, "tolerance": one.tolerance,
        "parts": parts, "ways": ways,
    }  # fmt: skip


def _plain_outcome(one: Checked, outcome: Outcome) -> dict[str, Any]:
    """Returns an outcome in types that JSON has: what is not a finite number is told by its name."""
    plain = dataclasses.asdict(outcome)
    plain["error"] = _number(outcome.error)
    if outcome.worst is not None:
        worst = outcome.worst
        plain["worst"] |= {"degrees": list(one.spec.taps.group(worst.group).degrees), "got": _number(worst.got), "expected": _number(worst.expected)}
    return plain


def _number(value: float | None) -> float | str | None:
    return value if value is None or math.isfinite(value) else str(value)


def _print(printer: Console, found: list[Checked], device: str) -> None:
    for number, one in enumerate(found):
        if number:
            printer.print()
        printer.print(layer(one.spec, device), style="bold")
        printer.print(f"{one.batch} images, seed {one.seed}; rounding explains an error of at most {one.tolerance:.2g}", style="dim", soft_wrap=True)
        for kernel, angles in _kernels(one).items():
            printer.print(f"{kernel}: {'all angles' if len(angles) == len(one.choices) else ' '.join(angles)}", style="dim", soft_wrap=True)
        if one.computed != one.spec:
            printer.print(f"the generic kernel computes {one.computed.key}; torch adds the rest", style="dim", soft_wrap=True)
        printer.print()
        printer.print(_rows(one))
        for outcome in one.outcomes:
            for reason in outcome.reasons:
                printer.print(f"\n{outcome.way}: {reason}", style=_STYLES[outcome.status], soft_wrap=True)
            if any(outcome.wrong):
                groups = [f"{angle(one.spec.taps.group(g))}: {count}" for g, count in enumerate(outcome.wrong) if count]
                printer.print(f"\n{outcome.way}: elements that are wrong, by angle: {', '.join(groups)}", style="red", soft_wrap=True)


def _kernels(one: Checked) -> dict[str, list[str]]:
    """Returns the angles of each choice, which goes by its template and decisions."""
    found: dict[str, list[str]] = {}
    for (_, _, part), choice in zip(one.spec.parts(), one.choices, strict=True):
        decided = " ".join(f"{name}={value}" for name, value in choice.decisions)
        found.setdefault(f"{choice.template} v{choice.version}{f' ({decided})' if decided else ''}", []).append(angle(part.taps))
    return found


def _rows(one: Checked) -> Table:
    """Returns one row a way."""
    place = "at c, tap" if one.spec.op == "conv_dw" else "at n, c, h, w"
    rows = table(
        "way", "result", "error", place, "angle", "template", "got", "expected", "time", right=("error", "got", "expected", "time"), fold=("template",)
    )
    for outcome in one.outcomes:
        error = "-" if outcome.error is None else f"{outcome.error:.2g}"
        worst = outcome.worst
        where = ("-",) * 5
        if worst is not None:
            at = ", ".join(map(str, worst.index))
            where = (at, angle(one.spec.taps.group(worst.group)), worst.template, f"{worst.got:.5g}", f"{worst.expected:.5g}")
        rows.add_row(outcome.way, Text(outcome.status, style=_STYLES[outcome.status]), error, *where, duration(outcome.seconds))
    return rows
