"""Records of a made up template, and files of them."""

import math

from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.records.record import Record

SPEC = ConvSpec("conv", 96, 56, 56, Taps.oriented(math.radians(22.5), 31))
KEY = "conv-c96h56w56-s1-zeros-float32-nchw-k31a22.5"


def record(**changes):
    fields = {
        "spec": KEY,
        "template": "patch",
        "template_version": 2,
        "decisions": {"patch_h": 4, "patch_w": 4, "stage": "shared"},
        "device": "nvidia-h200",
        "median_us": 18.25,
        "spread_us": 0.5,
        "default_us": 25.0,
        "floor_us": 16.0,
        "error": 1e-7,
        "provenance": {"gpu": "NVIDIA H200", "cc": "9.0", "units": 132, "date": "2026-11-21T10:00:00+00:00", "trials": 64, "seed": 0},
    }
    return Record(**{**fields, **changes})


def put(path, *lines):
    """A file of lines: records, or text as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line.line if isinstance(line, Record) else line}\n" for line in lines))
    return path
