"""Choice: how one angle group is scheduled, and the choices that need no tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tvm_orient.errors import Unsupported
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec

from . import registry
from .base import Config, Template


@dataclass(frozen=True)
class Choice:
    """How one angle group is scheduled: a template, its version and its named decisions; step says where they came from."""

    template: str
    version: int
    decisions: tuple[tuple[str, int], ...]
    step: str = "default"

    @classmethod
    def of(cls, template: Template[Any], config: Config, step: str = "default") -> Choice:
        """Returns a choice from a template and a config of its decisions."""
        return cls.named(template.name, template.version, config.decisions(), step)

    @property
    def config(self) -> Config:
        """Returns the decisions as the template's own dataclass.

        Raises:
            InvalidArgument: there is no such template, or the decisions do not name its knobs.
        """
        config: Config = registry.find(self.template).config(self.by_name)
        return config

    @classmethod
    def named(cls, template: str, version: int, decisions: Mapping[str, Any], step: str = "default") -> Choice:
        """Returns a choice from what a record or a journal holds: decisions by name, of which words are left out, since no template decides on any."""
        return cls(template, version, tuple(sorted((name, value) for name, value in decisions.items() if isinstance(value, int))), step)

    @property
    def by_name(self) -> dict[str, int]:
        """Returns the decisions by name, as records and journals hold them; `named` makes the choice again."""
        return dict(self.decisions)

    @property
    def plain(self) -> list[Any]:
        """Returns the choice as JSON can hold it; `of_plain` makes it again."""
        return [self.template, self.version, [list(pair) for pair in self.decisions], self.step]

    @classmethod
    def of_plain(cls, plain: Sequence[Any]) -> Choice:
        """Returns the choice that `plain` was made of."""
        name, version, decisions, step = plain
        return cls(name, version, tuple((knob, value) for knob, value in decisions), step)


def default_choices(spec: ConvSpec, device: Device) -> tuple[Choice, ...]:
    """Returns the analytic choice for each part of a spec; the generic kernel for all where one part has no template."""
    try:
        return tuple(Choice.of(*chosen) for chosen in registry.together([part for _, _, part in spec.parts()], device))
    except Unsupported:
        return generic_choices(spec, device)


def generic_choices(spec: ConvSpec, device: Device) -> tuple[Choice, ...]:
    """Returns the generic kernel, for every part of a spec: one kernel runs a whole layer."""
    generic = registry.GENERIC[device.kind]
    return tuple(Choice(generic.name, generic.version, ()) for _ in spec.parts())


def is_generic(choices: Sequence[Choice]) -> bool:
    """Returns whether choices ask for the generic kernel."""
    return any(choice.template == generic.name for choice in choices for generic in registry.GENERIC.values())
