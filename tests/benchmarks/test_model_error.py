"""The comparison of the static model with measured times: which rows it takes, and its arithmetic."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.static import model_error
from tests.benchmarks.test_targets import cell, row
from tests.support.helpers import EIGHT, line, nvrtc_missing, spec_of
from tvm_orient.bench.rows import DEFAULT, TUNED, write_csv
from tvm_orient.perf_model.gpu_specs import gpu_spec
from tvm_orient.problem.taps import Taps

pytestmark = pytest.mark.skipif(nvrtc_missing() is not None, reason=f"NVRTC or nvdisasm: {nvrtc_missing()}")


def test_untuned_kernels_of_one_angle_with_cold_caches(tmp_path: Path) -> None:
    one, many = spec_of("conv", 512, 28, 28, line(0, k=7)), spec_of("conv", 512, 28, 28, Taps.oriented(EIGHT, 7))
    rows = [*cell(one), *cell(many), row(one, DEFAULT, 5.0, 1.0, cache="warm"), row(one, TUNED, 5.0, 1.0)]
    assert [(kept.spec, kept.method, kept.cache) for kept in model_error.wanted(rows)] == [(one.key, DEFAULT, "cold")]
    path = tmp_path / "gpu.csv"
    write_csv(rows, path)
    assert model_error.compare(str(path)) == 0
    with path.with_name("gpu-prediction.csv").open() as file:
        (found,) = csv.DictReader(file)
    assert (found["spec"], found["bound"], found["arch"]) == (one.key, "dram", "sm_90a")
    # bound by DRAM: the bytes that must move, at the bandwidth that a copy reaches
    h200 = gpu_spec("sm_90a")
    moved = 1e3 * one.bytes_moved(64) / (h200.dram * h200.sms * h200.clock)
    assert float(found["predicted_ms"]) == pytest.approx(moved, rel=0.02)
    assert float(found["share"]) == pytest.approx(float(found["predicted_ms"]) / float(found["measured_ms"]), rel=0.01)


def test_nothing_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_csv(cell(spec_of("conv", 512, 28, 28, Taps.oriented(EIGHT, 7))), tmp_path / "gpu.csv")
    assert model_error.compare(str(tmp_path / "gpu.csv")) == 1
    assert "nothing to compare" in capsys.readouterr().out
    assert model_error.compare(str(tmp_path / "absent.csv")) == 1
