"""Which choice makes the kernel of each angle, and why, as `tvm-orient explain` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import InvalidArgument, Unsupported
from ..problem.device import Device, recorded_device
from ..problem.spec import ConvSpec
from ..records.lookup import lookup
from ..records.plausible import doubtful
from ..records.record import Record
from ..schedules import registry
from ..schedules.choices import Choice, generic_choices


@dataclass(frozen=True)
class Explained:
    """Where one angle group's choice came from: the step of the lookup that answered, and why the earlier ones did not."""

    part: ConvSpec  #: the group alone, over all channels
    choice: Choice  #: template, version, decisions and step
    record: Record | None  #: None where no record answered
    source: Path | None  #: the record's file
    tried: tuple[tuple[str, str], ...]  #: (step, why it did not answer), in order


def accepts(part: ConvSpec, device: Device, record: Record) -> str | None:
    """Says why a record makes no valid kernel for a part on a device any more; returns None where it still does."""
    template = next((t for t in registry.TEMPLATES if t.name == record.template), None)
    if template is None:
        return f"template {record.template} does not exist in this version"
    if template.version != record.template_version:
        return f"template {record.template} is version {template.version}, the record is for {record.template_version}"
    decisions = Choice.named(record.template, record.template_version, record.decisions).by_name
    noise = doubtful(record.spec, record.median_us, record.spread_us, record.floor_us, record.provenance)
    return noise or template.declines(part, device) or template.invalid(part, device, decisions)


def outdated(record: Record) -> str | None:
    """Says why lookup passes over a record for its own problem on the device that it was made on; returns None where it does not."""
    try:
        device = recorded_device(record.device, str(record.provenance.get("cc")), int(record.provenance.get("units") or 1))
    except InvalidArgument as problem:
        return str(problem)
    return accepts(ConvSpec.from_key(record.spec), device, record)


def explain(spec: ConvSpec, device: Device, mode: str | None = None) -> list[Explained]:
    """Returns how each angle group of a spec would be built on a device, and why, in order; compiles nothing.

    Where no template serves one of them, all are given to the generic kernel, which runs the whole layer.

    Args:
        mode: "strict", "nearest" or "default"; None reads TVM_ORIENT_LOOKUP.

    Raises:
        InvalidArgument: another mode.
        Unsupported: the mode forbids untuned kernels, and no record answers.
    """
    answers = []
    parts = [part for _, _, part in spec.parts()]
    for place, part in enumerate(parts):
        found = lookup(part.plain, device, lambda record, part=part: accepts(part, device, record), mode=mode)  # type: ignore[misc]
        if found.step == "none":
            raise Unsupported(
                f"no record may answer for {part} on {device.slug} (TVM_ORIENT_LOOKUP forbids the default): "
                + "; ".join(f"{step}: {why}" for step, why in found.tried)
            )
        if found.record is None:
            try:
                choice = Choice.of(*registry.together(parts, device)[place])
            except Unsupported as reason:
                return _all_generic(spec, device, found.tried, str(reason))
        else:
            choice = Choice.named(found.record.template, found.record.template_version, found.record.decisions, found.step)
        answers.append(Explained(part, choice, found.record, found.source, found.tried))
    return answers


def _all_generic(spec: ConvSpec, device: Device, tried: tuple[tuple[str, str], ...], reason: str) -> list[Explained]:
    choices = generic_choices(spec, device)
    return [Explained(part, choice, None, None, (*tried, ("default", reason))) for (_, _, part), choice in zip(spec.parts(), choices, strict=True)]
