"""The default of a template that compares its candidates by estimate."""

from __future__ import annotations

import functools
from typing import Any

from tvm_orient.perf_model.block_cost import soft_maximum
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec

CLOSE = 1.035  # estimates that differ by less than this are equal: a second resource at 0.87 of the first makes that much


@functools.lru_cache(maxsize=2048)
def least_estimate(template: Any, spec: ConvSpec, device: Device, close: float = 1.0) -> tuple[tuple[str, int], ...]:
    """Of what a template's `_candidates` gives, the first valid decisions of at most `close` times the least estimate; its `_least` where none is."""
    valid = template.worth_estimating(spec, device)
    if not valid:
        return tuple(template._least(spec, device).items())
    scores = [soft_maximum(template.estimate(spec, device, trial)) for trial in valid]
    most = close * min(scores)
    return tuple(next(trial for trial, score in zip(valid, scores, strict=True) if score <= most).items())
