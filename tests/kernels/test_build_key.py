"""Keys of kernels: whatever decides a kernel's bytes changes the digest, and nothing else does."""

import dataclasses
from pathlib import Path

import pytest

from tests.support.entries import KEY, maker
from tvm_orient.errors import InvalidArgument
from tvm_orient.kernels import build_key, manifest
from tvm_orient.kernels.build_key import BuildKey

OTHER_VALUES = {
    "spec": "conv_dx-c96h56w56-s1-zeros-float32-nchw-k31a0_90",
    "choices": (("patch", 2, (("patch_h", 4), ("stage", "shared"))), ("patch", 2, (("patch_h", 8), ("stage", "async")))),
    "device": "nvidia-h100",
    "arch": "sm_90",
    "toolchain": (*KEY.toolchain[:-1], ("mode", "nvcc")),
    "source": "1" * 64,
    "flags": (),
    "model": "GenuineIntel family 6 model 143",
    "features": "avx avx2",
}


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(BuildKey)])
def test_every_field_changes_the_digest(field):
    other = dataclasses.replace(KEY, **{field: OTHER_VALUES[field]})
    assert other.digest != KEY.digest
    assert other.name != KEY.name


def test_the_format_changes_the_digest(monkeypatch):
    before = KEY.digest
    monkeypatch.setattr(build_key, "FORMAT", manifest.FORMAT + 1)
    assert dataclasses.replace(KEY).digest != before


def test_every_part_of_a_choice_changes_the_digest():
    base = ("patch", 2, (("patch_h", 4),))
    others = [
        ("rows", 2, (("patch_h", 4),)),
        ("patch", 3, (("patch_h", 4),)),
        ("patch", 2, (("patch_h", 5),)),
        ("patch", 2, (("patch_w", 4),)),
        ("patch", 2, (("patch_h", "4"),)),
        ("patch", 2, ()),
    ]
    digests = {dataclasses.replace(KEY, choices=(one,)).digest for one in [base, *others]}
    assert len(digests) == 1 + len(others)


def test_the_order_of_groups_counts():
    assert dataclasses.replace(KEY, choices=KEY.choices[::-1]).digest != KEY.digest


def test_a_digest_is_the_same_in_every_process():
    """Golden: a change here makes every cache cold, so raise FORMAT with it."""
    assert KEY.name == "conv-7d358dfd823ac658d8d5"


def test_an_entry_has_a_short_name_however_long_the_spec():
    key = dataclasses.replace(KEY, spec="conv_dw-c96h56w56-s1-zeros-float32-nchw-t" + "_".join(["0.1.2.3"] * 2000))
    op, _, digest = key.name.partition("-")
    assert op == "conv_dw"
    assert len(digest) == 20
    assert set(digest) <= set("0123456789abcdef")


@pytest.mark.parametrize("value", [1.5, b"bytes", ["list"], {"a": 1}, {"set"}, Path("path"), (("deep", (1.5,)),)], ids=str)
def test_a_value_with_no_stable_encoding_is_refused(value):
    with pytest.raises(TypeError, match="flags of a build key"):
        _ = dataclasses.replace(KEY, flags=value).digest


@pytest.mark.parametrize("spec", ["", "../../conv-x", "conv2d-c96", "/etc"])
def test_a_spec_that_is_no_key_names_no_folder(store, spec):
    with pytest.raises(InvalidArgument) as caught:
        store.publish(dataclasses.replace(KEY, spec=spec), maker())
    assert repr(spec) in str(caught.value)
