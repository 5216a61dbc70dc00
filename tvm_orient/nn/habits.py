"""Arguments that torch.nn.Conv2d takes and our modules do not: each is refused with the spelling that is right here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from ..errors import InvalidArgument

_Init = TypeVar("_Init", bound=Callable[..., None])

_INSTEAD = {
    "padding": "there is none: the result has ceil(H/stride) x ceil(W/stride) pixels; padding_mode says what lies beyond the edges",
    "groups": "a depthwise convolution has as many groups as channels: leave it out",
    "in_channels": "a depthwise convolution has as many channels out as in: give channels",
    "out_channels": "a depthwise convolution has as many channels out as in: give channels once",
    "angle": "theta=, in radians; the published module, DepthwiseOrientedConv1d, takes angle",
    "resid": "residual=; the published module, DepthwiseOrientedConv1d, takes resid",
}


def refused(init: _Init) -> _Init:
    """Returns an __init__(self, channels, kernel_size, *, ...) that refuses the arguments of a Conv2d, and says what to write in their place.

    Raises:
        InvalidArgument: a third argument without a name, or a name that Conv2d or the published module has and this one has not.
    """

    @functools.wraps(init)
    def checked(self: Any, *given: Any, **named: Any) -> None:
        if len(given) > 2:
            written = f"{type(self).__name__}({', '.join(map(repr, given))})"
            raise InvalidArgument(
                f"a depthwise convolution takes its channels once, then kernel_size, and the rest by name, got {written}: write (channels, kernel_size), "
                "and directions=8 for a number of directions, or theta= for angles in radians"
            )
        for name in named:
            if name in _INSTEAD:
                raise InvalidArgument(f"{type(self).__name__} has no argument {name!r}, got {named[name]!r}: {_INSTEAD[name]}")
        init(self, *given, **named)

    return checked  # type: ignore[return-value]
