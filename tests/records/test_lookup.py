"""Which record answers: every step of the lookup, and what it says of the steps before."""

import logging
import math
import random

import pytest

from tests.support.records import SPEC, put, record
from tvm_orient import env
from tvm_orient.errors import InvalidArgument
from tvm_orient.problem.device import Device
from tvm_orient.problem.line_offsets import angles_between
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.records.lookup import lookup
from tvm_orient.records.store import append, log_path

H200 = Device("cuda", "NVIDIA H200", "nvidia-h200", "sm_90a", 132, 232448, 16)


def key_of(**changes):
    fields = {"op": "conv", "channels": 96, "height": 56, "width": 56, "taps": SPEC.taps, **changes}
    return ConvSpec(**fields).key


def h100(**changes):
    return record(**{"device": "nvidia-h100-80gb-hbm3", "provenance": {"cc": "sm_90a", "units": 132}, **changes})


MIRROR = key_of(taps=Taps.oriented(math.radians(157.5), 31))
STEP_RECORDS = {
    "user": ("user", record()),
    "shipped": ("shipped", record()),
    "alias": ("shipped", h100()),
    "mirror": ("shipped", record(spec=MIRROR)),
    "nearest": ("shipped", record(spec=key_of(height=28))),
}
EARLIER = ("user", "shipped", "alias", "mirror", "nearest", "default")


class Logs:
    """A user folder and a shipped folder."""

    def __init__(self, root):
        self.folders = {"user": root / "user", "shipped": root / "shipped"}

    def put(self, where, *rows):
        for row in rows:
            append(row, self.folders[where])

    def lookup(self, spec=SPEC, device=H200, accepts=lambda r: None, mode="default"):
        return lookup(spec, device, accepts, directories=[self.folders["user"], self.folders["shipped"]], mode=mode)


@pytest.fixture
def store(tmp_path):
    return Logs(tmp_path)


@pytest.mark.parametrize("step", STEP_RECORDS)
def test_each_step_answers_and_says_why_the_earlier_ones_did_not(store, step):
    where, row = STEP_RECORDS[step]
    store.put(where, row)
    found = store.lookup()
    assert (found.step, found.record) == (step, row)
    assert found.source == log_path(store.folders[where], row.device, "conv")
    assert [name for name, _ in found.tried] == list(EARLIER[: EARLIER.index(step)])
    assert all(why for _, why in found.tried)


def test_steps_are_tried_in_order(store):
    for step in reversed(STEP_RECORDS):
        store.put(*STEP_RECORDS[step])
        assert store.lookup().step == step


def test_nothing_found_is_the_default(store):
    found = store.lookup()
    assert (found.record, found.step, found.source) == (None, "default", None)
    assert [step for step, _ in found.tried] == list(EARLIER[:-1])
    said = dict(found.tried)
    assert f"{log_path(store.folders['user'], 'nvidia-h200', 'conv')} does not exist" in said["user"]
    assert "sm_90a with 132 units" in said["alias"]
    assert MIRROR in said["mirror"]


@pytest.mark.parametrize("step", STEP_RECORDS)
def test_mode_strict_lets_only_exact_records_answer(store, step):
    store.put(*STEP_RECORDS[step])
    found = store.lookup(mode="strict")
    if step in ("user", "shipped"):
        assert found.step == step
    else:
        assert (found.record, found.step) == (None, "none")
        assert [name for name, _ in found.tried] == list(EARLIER)
        assert "strict" in dict(found.tried)[step]
        assert "strict" in dict(found.tried)["default"]


def test_mode_nearest_explains_instead_of_the_default(store):
    found = store.lookup(mode="nearest")
    assert (found.record, found.step) == (None, "none")
    assert [name for name, _ in found.tried] == list(EARLIER)
    store.put(*STEP_RECORDS["nearest"])
    assert store.lookup(mode="nearest").step == "nearest"


def test_mode_comes_from_the_environment(store, monkeypatch):
    store.put(*STEP_RECORDS["alias"])
    monkeypatch.setenv("TVM_ORIENT_LOOKUP", "strict")
    assert store.lookup(mode=None).step == "none"
    monkeypatch.delenv("TVM_ORIENT_LOOKUP")
    assert store.lookup(mode=None).step == "alias"
    monkeypatch.setenv("TVM_ORIENT_LOOKUP", "closest")
    with pytest.raises(InvalidArgument, match="'closest'"):
        store.lookup(mode=None)


def test_folders_come_from_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path))
    monkeypatch.setattr(env, "shipped_log_dir", lambda: tmp_path / "shipped")
    append(record(), tmp_path / "shipped")
    assert lookup(SPEC, H200, lambda r: None).step == "shipped"
    append(record())
    assert lookup(SPEC, H200, lambda r: None).step == "user"


def test_the_shipped_folder_is_there():
    assert env.shipped_log_dir().is_dir()


def test_the_fastest_record_answers_then_the_newest(store):
    rows = [record(median_us=18.0, decisions={"n": 0}), record(median_us=17.0, decisions={"n": 1}, provenance={"date": "2026-01-01"})]
    rows += [record(median_us=17.0, decisions={"n": 2}, provenance={"date": "2026-02-01"}), record(template="rows", median_us=17.5, decisions={"n": 3})]
    store.put("user", *rows)
    answers = []
    for _ in rows:
        found = store.lookup(accepts=lambda r: "seen" if r.decisions["n"] in answers else None)
        answers.append(found.record.decisions["n"])
    assert answers == [2, 1, 3, 0]


def test_a_refused_record_is_explained_and_the_next_step_answers(store):
    store.put("user", record(template_version=1))
    store.put("shipped", record(median_us=30.0))
    found = store.lookup(accepts=lambda r: "version 1 is gone" if r.template_version == 1 else None)
    assert (found.step, found.record.median_us) == ("shipped", 30.0)
    ((step, why),) = found.tried
    assert step == "user"
    assert "patch v1" in why
    assert "version 1 is gone" in why


OTHER_DEVICES = [
    ({"cc": "9.0", "units": 132}, "alias"),
    ({"cc": "9.0", "units": 114}, "nearest"),  # at distance 0
    ({"cc": "9.0"}, "nearest"),
    ({"cc": "8.0", "units": 132}, "default"),
    ({"cc": "10.0", "units": 132}, "default"),
    ({"cc": None, "units": 132}, "default"),
    ({"units": 132}, "default"),
    ({}, "default"),
]


@pytest.mark.parametrize(("provenance", "step"), OTHER_DEVICES)
def test_an_alias_needs_the_same_capability_and_units(store, provenance, step):
    store.put("shipped", h100(provenance=provenance))
    assert store.lookup().step == step


def test_records_of_a_cpu_answer_at_another_number_of_cores(store):
    """Before those of another CPU with as many cores; and they are no other model's."""
    cpu = Device("cpu", "AMD EPYC 9654", "cpu-amd-epyc-9654-avx512f-4c", "avx512f", 4, 0, 64)
    kin, other, far = (
        record(device=slug, median_us=time, provenance={"cc": "avx512f", "units": units})
        for slug, time, units in (("cpu-amd-epyc-9654-avx512f-96c", 9.0, 96), ("cpu-intel-xeon-avx512f-4c", 1.0, 4), ("cpu-intel-xeon-avx512f-96c", 1.0, 96))
    )
    store.put("shipped", kin, other, far)
    found = store.lookup(device=cpu)
    assert (found.step, found.record) == ("alias", kin)
    assert store.lookup(device=cpu, accepts=lambda r: "refused" if r == kin else None).record == other
    found = store.lookup(device=cpu, accepts=lambda r: None if r == far else "refused")
    assert (found.step, found.record) == ("nearest", far)
    assert "another number of cores" in dict(Logs(store.folders["user"] / "empty").lookup(device=cpu).tried)["alias"]
    store.put("shipped", record(device=kin.device, spec=MIRROR, provenance=kin.provenance))
    found = store.lookup(device=cpu, accepts=lambda r: None if r.spec == MIRROR else "refused")
    assert found.step == "mirror"


@pytest.mark.parametrize("cc", ["9.0", "90", "sm_90", "sm_90a", 9.0])
def test_capabilities_are_compared_by_value(store, cc):
    store.put("user", h100(provenance={"cc": cc, "units": 132}))
    assert store.lookup().step == "alias"


@pytest.mark.parametrize(("arch", "cc"), [("sm_120", "12.0"), ("sm_103a", "10.3"), ("avx2", "avx2"), ("aarch64", "aarch64")])
def test_capabilities_of_other_devices(store, arch, cc):
    device = Device("cuda", "other", "other", arch, 8, 0, 16)
    store.put("user", h100(provenance={"cc": cc, "units": 8}))
    assert store.lookup(device=device).step == "alias"
    assert store.lookup(device=H200).step == "default"


def test_the_mirror_of_a_free_table(store):
    cross, mirrored = (Taps.from_offsets([[[0, sign], [1, 0], [-1, sign * 2]]]) for sign in (1, -1))
    store.put("user", h100(spec=key_of(taps=mirrored)))
    found = store.lookup(ConvSpec("conv", 96, 56, 56, cross))
    assert (found.step, found.record.spec) == ("mirror", key_of(taps=mirrored))


def test_a_vertical_line_is_its_own_mirror(store):
    found = store.lookup(ConvSpec("conv", 96, 56, 56, Taps.oriented(math.pi / 2, 31)))
    assert dict(found.tried)["mirror"] == "the taps are their own mirror"


NEAR = [
    # (height, width, channels) from near to far of (56, 56, 96): log ratios, channels count a quarter
    (56, 56, 128),
    (56, 48, 96),
    (48, 56, 192),
    (56, 28, 96),
    (28, 28, 96),
    (28, 28, 192),
    (7, 7, 768),
]


def test_nearest_goes_by_logarithms(store):
    rows = [record(spec=key_of(height=h, width=w, channels=c), decisions={"n": n}, median_us=100.0 - n) for n, (h, w, c) in enumerate(NEAR)]
    store.put("user", *random.Random(1).sample(rows, len(rows)))
    answers = []
    for _ in rows:
        answers.append(store.lookup(accepts=lambda r: "seen" if r.decisions["n"] in answers else None).record.decisions["n"])
    assert answers == list(range(len(NEAR)))


def test_nearest_prefers_this_device_at_equal_distance(store):
    near = key_of(height=28)
    store.put("user", h100(spec=near, median_us=1.0))
    store.put("shipped", record(spec=near))
    assert store.lookup().record.device == "nvidia-h200"


UNLIKE = [
    {"op": "conv_dx"},
    {"taps": Taps.oriented(math.radians(23.5), 31)},
    {"taps": Taps.oriented(math.radians(22.5), 29)},
    {"stride": 2},
    {"padding_mode": "circular"},
    {"dtype": "float64"},
]


@pytest.mark.parametrize("change", UNLIKE, ids=[str(*change.items()) for change in UNLIKE])
def test_nearest_never_crosses_what_makes_another_kernel(store, change):
    store.put("user", record(spec=key_of(**change)))
    assert store.lookup().step == "default"


def test_nearest_stays_on_the_architecture(store):
    store.put("user", record(spec=key_of(height=28), device="nvidia-a100", provenance={"cc": "8.0", "units": 132}))
    assert store.lookup().step == "default"
    store.put("user", record(spec=key_of(height=28), device="nvidia-h100-pcie", provenance={"cc": "9.0", "units": 114}))
    assert store.lookup().record.device == "nvidia-h100-pcie"


def test_bad_lines_are_told_and_do_not_hide_records(store):
    put(log_path(store.folders["user"], "nvidia-h200", "conv"), "{", "{")
    store.put("shipped", record())
    found = store.lookup()
    assert found.step == "shipped"
    assert "2 bad lines skipped" in found.tried[0][1]


def test_an_unreadable_file_is_passed_over_with_one_warning(store, caplog):
    broken = log_path(store.folders["user"], "nvidia-h200", "conv")
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"\xff\0\xff")
    store.put("shipped", record())
    with caplog.at_level(logging.WARNING):
        found = [store.lookup() for _ in range(3)]
    assert {f.step for f in found} == {"shipped"}
    assert str(broken) in found[0].tried[0][1]
    assert [str(broken) in message for message in caplog.messages] == [True]


def test_a_new_record_answers_at_once(store):
    store.put("user", record())
    assert store.lookup().record.median_us == 18.25
    store.put("user", record(median_us=17.0))
    assert store.lookup().record.median_us == 17.0


def test_lookup_takes_one_group(store):
    layer = ConvSpec("conv", 96, 56, 56, Taps.oriented(angles_between(8), 31))
    with pytest.raises(InvalidArgument, match=r"8 groups.*parts\(\)"):
        store.lookup(layer)
    with pytest.raises(InvalidArgument, match="got 'fuzzy'"):
        store.lookup(mode="fuzzy")


def test_lookup_without_folders():
    found = lookup(SPEC, H200, lambda r: None, directories=[])
    assert found.step == "default"
    assert all(why for _, why in found.tried)
