"""tvm-orient doctor: what is there, what is broken or missing, and what works for it."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.support.command_line import orient, printed_json, record
from tvm_orient import env
from tvm_orient.problem.device import arch_device, archs, capability, cpu_device
from tvm_orient.records import store
from tvm_orient.toolchain import nvrtc
from tvm_orient.tools import doctor, doctor_files


def test_doctor_and_arch_know_the_same_gpus() -> None:
    """What this NVRTC compiles for is what --arch takes, and doctor prints just that."""
    numbers = {capability(arch) for arch in archs()}
    if nvrtc.version()[0] == 13:
        assert {capability(arch) for arch in nvrtc.archs()} <= numbers
    state, detail, _ = doctor._nvrtc()
    assert state == "ok"
    listed = detail.partition("--arch ")[2].split(", ")
    assert listed == [arch for arch in archs() if capability(arch) in set(map(capability, nvrtc.archs()))]
    for arch in listed:
        assert arch_device(arch).arch == arch
        assert capability(arch) >= (7, 5)


def test_doctor_json(user_logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    seen = printed_json("doctor")
    assert seen["healthy"] is True
    assert set(seen["works"]) == set(doctor.NEEDS)
    assert seen["works"]["run on the CPU"] == {"works": True, "lacks": []}
    names = [check["name"] for check in seen["checks"]]
    assert {"nvcc", "user logs", "kernel cache", *env.VARIABLES, *(need for needs in doctor.NEEDS.values() for need in needs)} <= set(names)
    assert {check["state"] for check in seen["checks"]} <= {"ok", "missing"}
    assert all(check["hint"] for check in seen["checks"] if check["state"] == "missing")


def test_doctor_finds_what_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir()
    folder.chmod(0o777)
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(folder))
    monkeypatch.setenv("TVM_ORIENT_LOG_DIR", str(tmp_path / "logs"))
    monkeypatch.setenv("TVM_ORIENT_LOOKUP", "guess")
    with open(store.append(record()), "a") as file:
        file.write("{\n")
    broken = {check["name"]: check for check in printed_json("doctor", code=1)["checks"] if check["state"] == "broken"}
    assert set(broken) == {"kernel cache", "user logs", "TVM_ORIENT_LOOKUP"}
    assert "0o777" in broken["kernel cache"]["detail"]
    assert "1 records in 1 file" in broken["user logs"]["detail"]
    assert "1 bad lines" in broken["user logs"]["detail"]
    assert "3 broken: user logs, kernel cache, TVM_ORIENT_LOOKUP" in orient("doctor", code=1).stdout


def test_doctor_guards_against_the_crashing_ffi(monkeypatch: pytest.MonkeyPatch) -> None:
    version = doctor.importlib.metadata.version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.1.15" if name == "apache-tvm-ffi" else version(name))
    checks = {check.name: check for check in doctor.examine()}
    assert checks["apache-tvm-ffi"].state == "broken"
    assert "0.1.15" in checks["apache-tvm-ffi"].detail


def test_doctor_tries_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor._nvrtc()[0] == "ok"
    monkeypatch.setattr("tvm_orient.toolchain.nvrtc._include_folders", lambda: ())
    state, detail, hint = doctor._nvrtc()
    assert (state, hint.split(" to ")[0]) == ("missing", "pip install 'tvm-orient[compile]'")
    assert "cuda_runtime.h" in detail


def test_doctor_survives_what_it_finds() -> None:
    def explode() -> doctor_files.Finding:
        raise RuntimeError("no such symbol\nand more")

    assert doctor._check("packages", "torch", explode) == doctor.Check("packages", "torch", "broken", "RuntimeError: no such symbol", "reinstall it")


def test_what_works_follows_from_the_checks() -> None:
    every = [doctor.Check("", need, "ok", "") for needs in doctor.NEEDS.values() for need in needs]
    assert not any(doctor.lacks(every).values())
    without = [check for check in every if check.name not in ("GPU", "xgboost")]
    lacking = doctor.lacks(without)
    assert lacking["generate for CUDA without a GPU"] == []
    assert lacking["run on a GPU"] == ["GPU"]
    assert lacking["tune for the CPU"] == ["xgboost"]
    assert {"NVRTC", "GPU kernel"} <= set(doctor.lacks([])["run on a GPU"])


def test_doctor_runs_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.kernels.resolve.explain", lambda *_: pytest.fail("the user's records are not asked"))
    assert doctor._kernel(cpu_device())[0] == "ok"


def test_doctor_sees_a_wrong_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_orient.runtime.serving.Kernel.__call__", lambda _, x, w: x.new_zeros(x.shape))
    state, detail, _ = doctor._kernel(cpu_device())
    assert state == "broken"
    assert re.search(r"built in .* and run, but its result is off by \d.*, where rounding allows ", detail)


def test_doctor_minds_no_broken_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled by it."""
    (tmp_path / "nvcc").write_text("#!/bin/sh\necho no toolkit here >&2\nexit 1\n")
    (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert doctor._nvcc() == ("missing", f"{tmp_path}/nvcc --version failed: no toolkit here", "kernels do without it")
