"""explain: what would change the choice of each angle, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console

from ..problem.device import Device
from ..problem.spec import ConvSpec
from .output import angle, microseconds

if TYPE_CHECKING:
    from ..kernels.resolve import Explained

_LENT = ("alias", "mirror", "nearest")  # steps that answer with a record of another device or problem


def changes(part: Explained, device: Device, compared: dict[str, Any], layer: ConvSpec) -> list[str]:
    """Sentences on what limits a choice, what stands next to it, and what tuning or another lookup would do.

    Args:
        compared: what `candidates.compared` says of this angle.
        layer: what it is an angle of.
    """
    return [*_beside(part, compared, len(layer.parts()) == 1), *_by_records(part, device, compared["default"], layer)]


def _beside(part: Explained, compared: dict[str, Any], alone: bool) -> list[str]:
    """Returns the chosen template among the others."""
    chosen = next((row for row in compared["candidates"] if row["chosen"]), None)
    others = [row for row in compared["candidates"] if not row["chosen"]]
    if chosen is None:
        served = f"; {' and '.join(row['template'] for row in others)} would serve this angle, but one kernel runs the whole layer" if others else ""
        return [f"the generic kernel runs it, since for some angle of the layer every template declines{served}"]
    if not others:
        return [f"no template but {chosen['template']} serves it"]
    if not chosen["clocks"]:
        names = " and ".join(row["template"] for row in others)
        return [f"{names} would serve it too: without estimates the first template is the default, and only a record takes another"]
    said = [f"{chosen['template']} is limited by {_limit(chosen)}: a choice with less of that would be faster, if nothing else grows"]
    following = min((row for row in others if row["clocks"]), key=lambda row: row["total"], default=None)
    if following is None:
        return said
    share = following["total"] / chosen["total"] - 1
    if share >= 0:
        said.append(f"next is {following['template']}, estimated {share:.0%} slower and limited by {_limit(following)}")
    else:
        said.append(f"alone, {following['template']} is estimated {-share:.0%} faster; {_why_passed(part, alone)}")
    return said


def _why_passed(part: Explained, alone: bool) -> str:
    if part.record is not None:
        return "a record says what was measured, and goes before estimates"
    if alone:
        return "such estimates count as equal, and of equal ones the choice that compiles sooner or has the smaller blocks is taken"
    return "it is passed over since angles share a launch, whose blocks take the registers and shared memory of the largest and whose code counts as a whole"


def _limit(row: dict[str, Any]) -> str:
    return str(max(row["clocks"], key=row["clocks"].__getitem__))


def _by_records(part: Explained, device: Device, default: dict[str, Any], layer: ConvSpec) -> list[str]:
    """Returns what the record that answered says, or what one would do."""
    key, record = layer.plain.key, part.record
    where = "on this machine" if device.kind == "cpu" else f"on a machine with {device.slug}"
    if record is None:
        return [f"a record would go first: `tvm-orient tune {key}` {where} measures choices of every template that serves and records each angle's best"]
    same = (default["template"], default["decisions"]) == (part.choice.template, part.choice.by_name)
    said = []
    if same:
        said.append("without the record nothing would change: it holds what the default would be")
    else:
        estimated = f", estimated at {default['total']:.1f} clocks by {_limit(default)}" if default["clocks"] else ""
        decided = " ".join(f"{name}={value}" for name, value in default["decisions"].items())
        said.append(f"without the record the default would be {default['template']} ({decided}){estimated}")
    said.append(f"when it was tuned, the choice took {microseconds(record.median_us)} and the default of that day {microseconds(record.default_us)}")
    if part.choice.step in _LENT:
        said.append(
            f"the record is of {record.spec} on {record.device}: one of this very problem and device would go first (`tvm-orient tune {key}` {where}), "
            "and --mode strict passes this one over"
        )
    return said


def show(printer: Console, parts: list[Explained], said: list[list[str]]) -> None:
    """Prints the sentences; angles of which the same is said stand together."""
    angles: dict[str, list[str]] = {}
    places: dict[str, int] = {}
    for part, sentences in zip(parts, said, strict=True):
        for place, sentence in enumerate(sentences):
            angles.setdefault(sentence, []).append(angle(part.part.taps))
            places.setdefault(sentence, place)
    printer.print("\nwhat would change the choice", style="bold")
    for sentence, of in sorted(angles.items(), key=lambda item: places[item[0]]):  # what is said of one angle beside what is said of another
        head = "" if len(of) == len(parts) else f"{' '.join(of)}: "
        printer.print(f"- {head}{sentence}", soft_wrap=True)
