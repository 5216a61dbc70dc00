"""Records: one canonical line each, and every wrong field refused by its name."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.support.records import KEY, record
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.records.record import Record
from tvm_orient.records.store import append, read


def test_a_record_is_one_canonical_line():
    line = record().line
    assert line == (
        '{"decisions":{"patch_h":4,"patch_w":4,"stage":"shared"},"default_us":25.0,"device":"nvidia-h200","error":1e-07,"floor_us":16.0,"median_us":18.25,'
        '"provenance":{"cc":"9.0","date":"2026-11-21T10:00:00+00:00","gpu":"NVIDIA H200","seed":0,"trials":64,"units":132},"schema":1,'
        f'"spec":"{KEY}","spread_us":0.5,"template":"patch","template_version":2}}'
    )
    assert Record.model_validate(json.loads(line)) == record()


def test_line_does_not_depend_on_the_order_of_fields():
    one = record(decisions={"a": 1, "b": 2}, median_us=18)
    other = record(decisions={"b": 2, "a": 1}, median_us=18.0)
    assert one.line == other.line


def test_a_record_keeps_what_it_does_not_know(tmp_path):
    odd = record(clocks={"sm": 1980}, note="täglich\u2028\n")
    assert "\n" not in odd.line
    path = append(odd, tmp_path)
    (again,) = read(path).records
    assert again == odd
    assert again.model_extra == {"clocks": {"sm": 1980}, "note": "täglich\u2028\n"}
    assert again.line == odd.line


def test_identity_leaves_out_measurements_and_provenance():
    assert record().identity == (KEY, "patch", 2, "nvidia-h200")
    assert record(median_us=1.0, provenance={}, decisions={}).identity == record().identity


WRONG_FIELDS = [
    ({"spec": "conv-c96"}, "'conv-c96'"),
    ({"spec": ConvSpec("conv", 96, 56, 56, Taps.oriented(angles_between(8), 31)).key}, "got 8"),
    ({"spec": KEY.replace("a22.5", "a22.50")}, "a22.50"),
    ({"template": ""}, "template"),
    ({"template_version": "2"}, "template_version"),
    ({"template_version": True}, "template_version"),
    ({"decisions": {"patch_h": 1.5}}, "patch_h"),
    ({"decisions": {"patch_h": True}}, "patch_h"),
    ({"device": "../nvidia-h200"}, "../nvidia-h200"),
    ({"device": ".."}, "device"),
    ({"device": ""}, "device"),
    ({"median_us": 0.0}, "median_us"),
    ({"median_us": -1.0}, "median_us"),
    ({"median_us": math.nan}, "median_us"),
    ({"median_us": "18"}, "median_us"),
    ({"spread_us": -0.1}, "spread_us"),
    ({"default_us": math.inf}, "default_us"),
    ({"floor_us": 0.0}, "floor_us"),
    ({"error": -1e-9}, "error"),
    ({"provenance": None}, "provenance"),
    ({"provenance": {"power": math.nan}}, "JSON"),
    ({"provenance": {"path": Path("log")}}, "plain JSON"),
    ({"schema": 2}, "schema"),
]


@pytest.mark.parametrize(("change", "said"), WRONG_FIELDS, ids=[str(*change) for change, _ in WRONG_FIELDS])
def test_wrong_field_is_refused_by_name(change, said):
    with pytest.raises(ValidationError) as caught:
        record(**change)
    assert said in str(caught.value)
