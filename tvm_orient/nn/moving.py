"""The state of a training run, moved from the published modules to those of this package."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import InvalidArgument


def optimizer_state(state: Mapping[str, Any], theirs: Sequence[str], ours: Sequence[str]) -> dict[str, Any]:
    """Returns an optimizer's state dict for a network of this package, made from that of the same network with published modules.

    An optimizer numbers its parameters. In a published module theta is one of them, here it is a buffer, so the numbers differ. This leaves
    out what ours lacks and numbers the rest anew, by name.

    Args:
        state: state_dict() of the optimizer of the published network; it stays as it is.
        theirs: names of the parameters of the published network in the order in which its optimizer got them: those of named_parameters(),
            where the optimizer got parameters().
        ours: the same for the network of this package.

    Returns:
        What load_state_dict of the optimizer of our network takes. It has as many groups of parameters, each with the options of the published one.

    Raises:
        InvalidArgument: state and theirs differ in the number of parameters, or ours has a parameter that theirs lacks.
    """
    numbers = list(itertools.chain.from_iterable(group["params"] for group in state["param_groups"]))
    if len(numbers) != len(theirs):
        raise InvalidArgument(
            f"theirs must name every parameter of the optimizer, in its order: it has {len(numbers)}, got {len(theirs)} names; "
            "take them from named_parameters() of the published network"
        )
    new = [name for name in ours if name not in theirs]
    if new:
        raise InvalidArgument(f"every parameter of ours must be one of theirs, got {new[0]!r}, which is not: give both networks the same names")
    name_of, place_of = dict(zip(numbers, theirs, strict=True)), {name: place for place, name in enumerate(ours)}
    groups = []
    for group in state["param_groups"]:
        kept = sorted((number for number in group["params"] if name_of[number] in place_of), key=lambda number: place_of[name_of[number]])
        groups.append({**group, "params": [place_of[name_of[number]] for number in kept]})
    states = {place_of[name_of[number]]: one for number, one in state["state"].items() if name_of[number] in place_of}
    return {**state, "state": states, "param_groups": groups}
