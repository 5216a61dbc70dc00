"""The base of the modules: it holds angles as exact numbers on the host, and their copy theta, which travels with the state dict.

The taps follow the numbers. theta may be cast, averaged or loaded rounded without moving one; where it comes with other angles, or somebody writes
to it, they rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

from ..errors import InvalidArgument
from ..notices import warn
from ..ops import checks
from ..problem.taps import Taps
from . import rounding


class Angled(torch.nn.Module):
    """Base of modules with lines of taps along angles. A subclass says which taps angles have (`_lines`), and what shape theta is kept in (`_shape`)."""

    theta: torch.Tensor
    taps: Taps
    channels: int

    def _lines(self, angles: Sequence[float]) -> Taps:
        raise NotImplementedError

    def _shape(self, count: int) -> tuple[int, ...]:
        return (count,)

    def _begin(self, angles: Sequence[float], device: torch.device | str | None) -> None:
        """Takes the angles, in radians, and registers theta."""
        self._take(angles)
        self.register_buffer("theta", self._exact(device))
        self._unchanged = 0  # writes to a theta on a GPU since the last that changed an angle
        self._watch()

    def _take(self, angles: Sequence[float]) -> None:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf, and is refused as such
            exact = tuple(np.asarray(angles, dtype=np.float64).astype(np.float32).tolist())
        self.taps = self._lines(exact)
        self._angles = exact

    def _exact(self, device: torch.device | str | None) -> torch.Tensor:
        return torch.tensor(self._angles, dtype=torch.float32, device=device).view(self._shape(len(self._angles)))

    # ---- theta as it is now -----------------------------------------------------------------------

    def _watch(self) -> None:
        theta = self._buffers["theta"]
        self._seen = (theta, _version(theta))

    def _now(self) -> Taps:
        """Returns the taps of theta as it is in this call; theta is read again where it is another tensor, or was written to, since the last call.

        Raises:
            InvalidArgument: theta was told to ask for a gradient, or holds numbers that are no angles.
        """
        theta, (seen, version) = self._buffers["theta"], self._seen
        try:
            if theta is seen and theta._version == version and not theta.requires_grad:  # type: ignore[union-attr]
                return self.taps
        except RuntimeError:  # an inference tensor keeps no version
            pass
        if theta is not None and theta.requires_grad:
            checks.angles(theta, self.channels)
        if theta is not seen or (_version(theta) != version and self._due(theta)):
            self._read(theta)
        return self.taps

    def _due(self, theta: torch.Tensor | None) -> bool:
        """Says whether a theta that was written to is to be looked at.

        Each look waits for a GPU, and data-parallel training writes the same angles in each step. So fewer and fewer of the writes that change
        nothing are looked at: the first, second, fourth, eighth...
        """
        if theta is None or not _waits(theta):
            return True
        self._unchanged += 1
        return not self._unchanged & (self._unchanged - 1)

    def _read(self, theta: torch.Tensor | None) -> None:
        if not _readable(theta):  # batched by a transform, traced, on the meta device: no numbers to read
            return
        if theta.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        if self._follow(_numbers(theta), theta.dtype, type(self).__name__):
            self._unchanged = 0
        self._watch()

    def _follow(self, came: Sequence[float], dtype: torch.dtype, name: str) -> bool:
        """Takes angles that came, unless they are the module's own, rounded on the way; says whether it took them."""
        if rounding.is_rounded(came, self._angles, dtype):
            return False
        before = self.taps
        try:
            self._take(checks.angles(came, self.channels))
        except InvalidArgument as problem:
            raise InvalidArgument(f"theta of {name}: {problem}") from problem
        if rounding.look_rounded(came, dtype) and self.taps != before:
            warn(
                f"theta of {name} came rounded ({dtype} or narrower), and not from the angles that this module was made with: the taps are those of "
                "the rounded angles, some a pixel beside those of the exact ones. Make the module with the exact angles before it is loaded, or set theta "
                "afterwards"
            )
        return True

    # ---- theta as it is set, moved, loaded and saved ----------------------------------------------

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "theta" and "theta" in self.__dict__.get("_buffers", {}) and (not isinstance(value, torch.Tensor) or _readable(value)):
            old = self._buffers["theta"]
            self._take(checks.angles(value, self.channels))
            self._buffers["theta"] = self._exact(value.device if isinstance(value, torch.Tensor) or old is None else old.device)
            self._watch()
        else:
            super().__setattr__(name, value)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        self._now()
        before = self._buffers["theta"]
        super()._apply(fn, recurse)
        theta = self._buffers["theta"]
        if theta is not before and theta is not None and (theta.is_meta or _readable(theta)):
            self._buffers["theta"] = self._exact(theta.device)  # neither a cast nor to_empty changes an angle
        self._watch()
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        theta, (seen, version) = self._buffers["theta"], self._seen
        if _readable(theta) and (not _waits(theta) or theta is not seen or _version(theta) != version):
            self._read(theta)
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if _readable(theta) and (theta.dtype != torch.float32 or (not _waits(theta) and tuple(_numbers(theta)) != self._angles)):
            destination[f"{prefix}theta"] = self._exact(theta.device)  # something rounded it in place

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *rest: Any) -> None:
        key = f"{prefix}theta"
        came, weight = state_dict.get(key), state_dict.get(f"{prefix}weight")
        own = self._parameters["weight"]
        if isinstance(weight, torch.Tensor) and own is not None and _matrix(weight) == _matrix(own):
            state_dict[f"{prefix}weight"] = weight.reshape(own.shape)
            if key not in state_dict and weight.dim() == 4 and not any(self._angles):
                state_dict[key] = self._exact(weight.device)  # a Conv2d of kernel (1, K) is a line at 0 degrees
        kept = self._buffers["theta"]
        empty = kept is None or (kept.is_meta and not local_metadata.get("assign_to_params_buffers", False))
        if _readable(came) and not empty:
            angles = self._fitting(_numbers(came), came.dtype)
            if angles is not None:
                self._follow(angles, came.dtype, repr(prefix.rstrip(".")) if prefix else type(self).__name__)
                state_dict[key] = self._exact(came.device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        self._watch()

    def _fitting(self, came: Sequence[float], dtype: torch.dtype) -> Sequence[float] | None:
        """Returns the angles that came, as many as the module has: a file may hold one for each channel or for each group. None where they do not fit."""
        if len(came) == len(self._angles):
            return came
        wide, own = self._each_channel(came), self._each_channel(self._angles)
        if rounding.is_rounded(wide, own, dtype):
            return self._angles
        return wide if len(self._angles) == self.channels else None

    def _each_channel(self, angles: Sequence[float]) -> list[float]:
        return [angles[(len(angles) * (c + 1) - 1) // self.channels] for c in range(self.channels)] if angles else []


def _version(theta: torch.Tensor | None) -> int:
    return -1 if theta is None or theta.is_inference() else theta._version


def _waits(theta: torch.Tensor) -> bool:
    """Says whether reading theta waits for what a device has yet to do."""
    return theta.is_cuda


def _readable(theta: Any) -> TypeGuard[torch.Tensor]:
    """Says whether theta is a tensor with numbers that the host may read."""
    if type(theta) not in (torch.Tensor, torch.nn.Parameter) or theta.is_meta:
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(theta) and _get_current_dispatch_mode() is None


def _numbers(theta: torch.Tensor) -> list[float]:
    found: list[float] = theta.detach().flatten().to("cpu", torch.float64).tolist()
    return found


def _matrix(weight: torch.Tensor) -> tuple[int, ...] | None:
    """Returns (C, K) for a weight (C, K) or (C, 1, 1, K); None for any other shape."""
    shape = tuple(weight.shape)
    return (shape[0], shape[-1]) if len(shape) == 2 or (len(shape) == 4 and shape[1:3] == (1, 1)) else None
