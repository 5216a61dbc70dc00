"""What is collected of a run: records of the candidates that won, reasons for those that did not, and a short summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from benchmarks.gpu.collect import collect
from benchmarks.gpu.results import Results
from benchmarks.gpu.summary import summary
from tests.support.kit import SLUG, Job, jobs_of
from tvm_orient.cli import application
from tvm_orient.errors import InvalidArgument
from tvm_orient.problem.device import cpu_device
from tvm_orient.records import store


def finished(kit: Path, gain: float, **changed: Any) -> tuple[Path, Job]:
    """The output of a run in which one candidate was faster than its default."""
    job = [one for one in jobs_of(kit, "candidates") if one["spec"].startswith("conv-")][1]
    out = kit.parent / "out"
    measured = {"median": 1e-5 / gain, "default": 1e-5, "spread": 1e-7, "floor": 4e-6, "error_of": 1e-7, "trials": 2, "device": SLUG}
    Results([out]).add("final/x", {**job, "do": "final", **measured, **changed})
    facts = {"device": vars(cpu_device()), "driver": "580.1", "kit": json.loads((kit / "kit.json").read_text())}
    (out / "facts.json").write_text(json.dumps(facts))
    return out, job


def test_a_candidate_that_wins_becomes_a_record(kit: Path, tmp_path: Path) -> None:
    out, job = finished(kit, 1.3)
    shipped = tmp_path / "tuning_logs"
    said = list(collect(out, tmp_path / "results", shipped))
    assert any("1 records of this run, 1 in all" in line for line in said), said
    (record,) = store.read(store.log_path(shipped, SLUG, "conv")).records
    assert (record.spec, record.template, record.decisions) == (job["spec"], job["choices"][0][0], dict(job["choices"][0][2]))
    assert (record.median_us, record.default_us) == (pytest.approx(1e-5 / 1.3 * 1e6), pytest.approx(10))
    assert {"gpu", "cc", "units", "driver", "date", "trials", "batch", "tvm", "tvm_ffi", "cuda", "version"} <= set(record.provenance)
    done = CliRunner().invoke(application.app, ["logs", "check", str(store.log_path(shipped, SLUG, "conv"))])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("gain", "changed", "said"),
    [
        (1.01, {}, "the default is within 2% of the best found"),
        (1.3, {"error": "wrong: off"}, "wrong: off"),
        (1.3, {"floor": 1.0}, "times that cannot be true"),
        (1.3, {"choices": [["cpu_rows", 1, [], "default"]]}, "the record is for 1"),
    ],
)
def test_no_record(kit: Path, tmp_path: Path, gain: float, changed: Job, said: str) -> None:
    out, _ = finished(kit, gain, **changed)
    assert any(said in line for line in collect(out, tmp_path / "results", tmp_path / "tuning_logs"))
    assert not (tmp_path / "tuning_logs").exists()


def test_kernels_of_other_code_make_records_on_request_alone(kit: Path, tmp_path: Path) -> None:
    made_by = json.loads((kit / "kit.json").read_text())
    (kit / "kit.json").write_text(json.dumps({**made_by, "source": "other"}))
    out, _ = finished(kit, 1.3)
    assert any("other code" in line for line in collect(out, tmp_path / "results", tmp_path / "tuning_logs"))
    assert not (tmp_path / "tuning_logs").exists()
    assert any("1 records" in line for line in collect(out, tmp_path / "results", tmp_path / "tuning_logs", any_source=True))


def test_a_folder_with_nothing_or_with_two_cards(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="got none"):
        list(collect(tmp_path, tmp_path, tmp_path))
    results = Results([tmp_path])
    for card in ("nvidia-h100", "nvidia-h200"):
        results.add(card, {"device": card})
    with pytest.raises(InvalidArgument, match="nvidia-h100, nvidia-h200"):
        list(collect(tmp_path, tmp_path, tmp_path))


def test_the_summary_is_short() -> None:
    found = {f"candidates/{number}/x": {"error": "e" * 500, "fault": "failed"} for number in range(900)}
    assert sum(len(line) + 1 for line in summary(found, {})) < 12_000
