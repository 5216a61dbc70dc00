"""The default of a template that compares its candidates by estimate."""

from __future__ import annotations

import functools
from typing import Any

from tvm_orient.perf_model.block_cost import soft_maximum
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec

from .base import C, Template

CLOSE = 1.035  # ratio of two estimates that count as equal: a second resource at 0.87 of the first makes that much


def least_estimate(template: Template[C], spec: ConvSpec, device: Device, close: float = 1.0) -> C:
    """Returns the first valid one of a template's `_candidates` whose estimate is at most `close` times the least; its `_least` where none is valid."""
    config: C = _least_estimate(template, spec, device, close)
    return config


@functools.lru_cache(maxsize=2048)
def _least_estimate(template: Template[Any], spec: ConvSpec, device: Device, close: float) -> Any:
    valid = template.worth_estimating(spec, device)
    if not valid:
        return template._least(spec, device)
    scores = [soft_maximum(template.estimate(spec, device, trial)) for trial in valid]
    most = close * min(scores)
    return next(trial for trial, score in zip(valid, scores, strict=True) if score <= most)
