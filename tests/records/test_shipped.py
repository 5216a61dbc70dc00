"""Records that ship: each answers for its own problem on its own device, by a template of today, and makes a kernel."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tvm_orient import env
from tvm_orient.compiler import lower
from tvm_orient.kernels import resolve
from tvm_orient.problem.device import Device, recorded_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.records import lookup, store
from tvm_orient.records.record import Record
from tvm_orient.schedules.choices import Choice
from tvm_orient.tools import doctor_files

FILES = sorted(env.shipped_log_dir().glob("*/*.jsonl"))
RECORDS = [record for path in FILES for record in store.read(path).records]


def device_of(record: Record) -> Device:
    return recorded_device(record.device, record.provenance["cc"], record.provenance["units"])


@pytest.mark.parametrize("path", FILES, ids=[f"{path.parent.name}-{path.stem}" for path in FILES])
def test_every_shipped_record_answers(path: Path, tmp_path: Path) -> None:
    log = store.read(path)
    assert (log.bad, log.blank, log.foreign) == (0, 0, 0)
    for record in log.records:
        assert (path.parent.name, path.stem) == (record.device, ConvSpec.op_of_key(record.spec)), "lookup reads it nowhere else"
        assert resolve.outdated(record) is None, record.line
        spec, device = ConvSpec.from_key(record.spec), device_of(record)
        folders = [tmp_path, env.shipped_log_dir()]
        found = lookup.lookup(spec, device, lambda other, spec=spec, device=device: resolve.accepts(spec, device, other), directories=folders)
        assert (found.step, found.record) == ("shipped", record), "lookup answers with another"
        assert record.median_us <= record.default_us


def test_shipped_records_lower() -> None:
    """One of each op, length and form of the code."""
    forms = ("vector", "tap_outer", "taps")
    kinds = {}
    for record in RECORDS:
        spec = ConvSpec.from_key(record.spec)
        kinds[spec.op, spec.kernel_size, *(record.decisions.get(name) for name in forms)] = (spec, record)
    for whole, record in kinds.values():
        spec = dataclasses.replace(whole, channels=4)
        choice = Choice(record.template, record.template_version, tuple(sorted(record.decisions.items())))
        assert lower.scheduled(spec, device_of(record), [choice])["main"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"template_version": RECORDS[0].template_version + 1}, "is version"),
        ({"template": "spoon"}, "does not exist"),
        ({"decisions": {**RECORDS[0].decisions, "vector": 5}}, "vector must be one of"),
        ({"device": "a-card", "provenance": {"cc": "sm_9", "units": 8}}, "unknown arch"),
        ({"device": "a-card", "provenance": {"cc": "sm_90a", "units": 8}}, "for cpu only"),
    ],
)
def test_doctor_sees_records_that_no_longer_answer(change: dict[str, object], why: str, tmp_path: Path) -> None:
    path = store.append(RECORDS[0].model_copy(update=change), tmp_path)
    store.append(RECORDS[0], tmp_path)
    reason = resolve.outdated(RECORDS[0].model_copy(update=change))
    assert reason is not None
    assert why in reason
    state, detail, hint = doctor_files.log_folder(tmp_path, "none", shipped=True)
    assert (state, hint) == ("broken", f"`tvm-orient logs check {tmp_path}` says which")
    assert f"1 records no longer answer ({reason})" in detail
    state, detail, _ = doctor_files.log_folder(tmp_path, "none")
    assert state == "ok", "a user's own records may be older than the package"
    assert "1 records no longer answer" in detail
    path.unlink()


def test_what_ships_is_in_order() -> None:
    assert doctor_files.log_folder(env.shipped_log_dir(), "none", shipped=True)[0] == "ok"
