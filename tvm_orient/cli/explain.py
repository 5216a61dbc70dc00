"""explain: which record or default each angle of a problem would be built from, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from ..env import LOOKUP_MODES
from ..perf_model.gpu_specs import borrowed
from ..problem.labels import asked_text
from ..problem.spec import ConvSpec
from . import candidates, changes
from .application import app, examples
from .output import Json, angle, console, layer, microseconds, print_json, speedup, table
from .sass import absent, predicted, read, shown
from .spec_options import Arch, Target, chosen_device, takes_problem

if TYPE_CHECKING:
    from ..kernels.resolve import Explained


@app.command(
    epilog=examples(
        "explain --channels 512 --height 56 --width 56 --kernel-size 31", "explain conv-c512h56w56-s1-zeros-float32-nchw-k31a22.5 --arch sm_90a --sass"
    )
)
@takes_problem
def explain(
    specs: list[ConvSpec],
    target: Target = None,
    arch: Arch = None,
    mode: Annotated[str | None, typer.Option(metavar="|".join(LOOKUP_MODES), help="Which records may answer.", show_default="TVM_ORIENT_LOOKUP")] = None,
    sass: Annotated[bool, typer.Option("--sass", help="Compile each angle for the GPU, count what its code does, and predict a bound; needs no GPU.")] = False,
    as_json: Json = False,
    asked: Sequence[float] = (),
) -> None:
    """Say where the kernel of each angle comes from: which step of the lookup answered, and why the earlier ones did not.

    Also what each template and the default are estimated to take, why others decline, and what would change the choice.
    """
    from ..kernels.resolve import explain as explained

    device = chosen_device(target, arch)
    answers = [(spec, explained(spec, device, mode)) for spec in specs]
    choices = [candidates.compared(spec, parts, device) for spec, parts in answers]
    for (spec, parts), compared in zip(answers, choices, strict=True):
        for part, one in zip(parts, compared, strict=True):
            one["changes"] = changes.changes(part, device, one, spec)
    note = borrowed(device.arch) if device.kind == "cuda" else ""
    code = [read(parts, device) if sass else [] for _, parts in answers]
    if as_json:
        whole = zip(answers, choices, code, strict=True)
        plain = [{"spec": spec.key, "parts": _plain(spec, parts, compared, facts)} for (spec, parts), compared, facts in whole]
        print_json({"device": dataclasses.asdict(device), "figures": note, "specs": plain})
        return
    printer = console()
    for number, ((spec, parts), compared, facts) in enumerate(zip(answers, choices, code, strict=True)):
        if number:
            printer.print()
        _print(printer, spec, parts, device.slug, asked)
        candidates.show(printer, parts, compared)
        changes.show(printer, parts, [one["changes"] for one in compared])
        if note:
            printer.print(f"\n{note}", style="yellow", soft_wrap=True)
        if sass:
            printer.print("\nmachine code, executed per output", style="bold")
            printer.print(shown(parts, facts))
            if (clocks := predicted(parts, facts)) is not None:
                printer.print("\nclocks of an SM for 32 outputs, predicted: no resource can do it in less", style="bold")
                printer.print(clocks)
            if lacking := absent(parts, device):
                printer.print(lacking, style="dim", soft_wrap=True)


def _plain(spec: ConvSpec, parts: list[Explained], compared: list[dict[str, Any]], facts: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "spec": part.part.key,
            "degrees": part.part.taps.degrees,
            "channels": [first, stop],
            "step": part.choice.step,
            "template": part.choice.template,
            "template_version": part.choice.version,
            "decisions": part.choice.by_name,
            "record": None if part.record is None else part.record.model_dump(by_alias=True),
            "source": None if part.source is None else str(part.source),
            "tried": [{"step": step, "why_not": why} for step, why in part.tried],
            **choices,
        }
        for (first, stop, _), part, choices in zip(spec.parts(), parts, compared, strict=True)
    ]
    for row, kernels in zip(rows, facts, strict=False):  # empty without --sass
        row["sass"] = kernels
    return rows


def _names(parts: list[Explained], asked: Sequence[float]) -> list[str]:
    """Returns what each part's angle is called: as it was asked for, with the round angle that has the same taps where that is another."""
    if len(asked) != len(parts):
        return [angle(part.part.taps) for part in parts]
    return [asked_text([one], part.part.taps.degrees[0], "°") for one, part in zip(asked, parts, strict=True)]


def _print(printer: Console, spec: ConvSpec, parts: list[Explained], device: str, asked: Sequence[float]) -> None:
    printer.print(layer(spec, device), style="bold")
    printer.print()
    timed = ("time", "vs default") if any(part.record for part in parts) else ()
    rows = table("angle", "channels", "from", "template", "decisions", *timed, right=timed, fold=("decisions",))
    for (first, stop, _), part, called in zip(spec.parts(), parts, _names(parts, asked), strict=True):
        record, choice = part.record, part.choice
        decisions = " ".join(f"{name}={value}" for name, value in choice.decisions)
        times = ("-", "-") if record is None else (microseconds(record.median_us), speedup(record.default_us, record.median_us))
        source = Text(choice.step, style="green" if record else "yellow")
        template = f"{choice.template} v{choice.version}"
        rows.add_row(called, f"{first}-{stop - 1}", source, template, decisions, *times[: len(timed)])
    printer.print(rows)
    printer.print("\nsteps of the lookup, in order", style="bold")
    whole = table("step", "angles", "answer", fold=("answer", "angles"))
    whole.show_header = False
    for step, angles, answer in _story(parts):
        answered = answer.startswith("answered")
        whole.add_row(step, "all" if len(angles) == len(parts) else " ".join(angles), Text(answer, style="green" if answered else "dim"))
    printer.print(whole)


def _story(parts: list[Explained]) -> list[tuple[str, list[str], str]]:
    """Returns (step, angles, what it said) in the order of the lookup; angles that heard the same stand together."""
    from ..records.lookup import STEPS
    from ..schedules.choices import is_generic

    said: dict[tuple[str, str], list[str]] = {}
    for part in parts:
        name, tried = angle(part.part.taps), dict(part.tried)
        for step in STEPS:
            if step == part.choice.step and is_generic([part.choice]):
                said.setdefault((step, f"answered by the generic kernel: {tried[step]}"), []).append(name)
            elif step in tried:
                said.setdefault((step, tried[step]), []).append(name)
            elif step == part.choice.step:
                answer = f"answered, from {part.source}" if part.source else "answered: the template's own choice, untuned (see `tvm-orient tune`)"
                said.setdefault((step, answer), []).append(name)
    return [(step, angles, what) for step in STEPS for (other, what), angles in said.items() if other == step]
