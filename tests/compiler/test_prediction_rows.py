"""Rows of predictions: their columns, and that a layer's are means over its angles."""

from __future__ import annotations

import pytest

from tests.support.helpers import line, nvrtc_missing, spec_of
from tvm_orient.compiler.prediction_rows import COLUMNS, LAYER_COLUMNS, RESOURCES, layer_row, prediction_rows
from tvm_orient.problem.device import arch_device
from tvm_orient.schedules.choices import default_choices

pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")
DEVICE = arch_device("sm_90a")


def test_a_row_for_each_problem() -> None:
    specs = [spec_of(op, 64, 14, 14, line(22.5, k=7)) for op in ("conv", "conv_dw")]
    rows = prediction_rows(specs, DEVICE)
    assert [(row["op"], row["angle"], row["template"]) for row in rows] == [(spec.op, "22.5", default_choices(spec, DEVICE)[0].template) for spec in specs]
    for row in rows:
        assert tuple(row) == COLUMNS
        assert row[f"clocks_{row['bound']}"] == max((row[f"clocks_{name}"] for name in RESOURCES), key=float)
    assert float(rows[0]["clocks_second"]) == 0
    assert float(rows[1]["clocks_second"]) > 0


def test_a_layer_is_the_mean_of_its_angles() -> None:
    row = layer_row(spec_of("conv", 64, 14, 14, line(0, 90, k=7)), DEVICE)
    assert tuple(row) == LAYER_COLUMNS
    assert row["bound"] in RESOURCES
    alone = prediction_rows([spec_of("conv", 64, 14, 14, line(degrees, k=7)) for degrees in (0, 90)], DEVICE)
    assert float(row["clocks_dram"]) == pytest.approx(sum(float(one["clocks_dram"]) for one in alone) / 2, rel=0.02)
