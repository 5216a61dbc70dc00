"""What is in the wheel, and that an installed wheel, far from the checkout, finds its schedules and its tuning logs."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from tests.support.once import once

ROOT = Path(__file__).resolve().parents[2]
NEEDED_AT_IMPORT = ("numpy", "pydantic", "filelock", "platformdirs", "tvm_ffi", "typer", "rich", "torch")
SHIPPED = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tuning_logs").glob("*/*.jsonl"))

# run by the installed package's interpreter: where each part was found, and how the shipped logs read
LOOK = """
import importlib.util, json
import tvm_orient
from tvm_orient import env
from tvm_orient.records import store
found = {name: importlib.util.find_spec(name) for name in ("tvm_orient", "tvm_orient.schedules", "tvm_orient.tuning_logs", "schedules", "tuning_logs")}
read = {path.relative_to(env.shipped_log_dir()).as_posix(): store.read(path) for path in sorted(env.shipped_log_dir().glob("*/*.jsonl"))}
print(json.dumps({
    "origins": {name: spec and spec.origin for name, spec in found.items()},
    "logs": {name: [len(log.records), log.bad] for name, log in read.items()},
}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(shared: Path) -> Path:
    """The wheel, built from this checkout without a network."""

    def make(out: Path) -> None:
        run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, ROOT, cwd=out)

    made = once(shared / "wheel", make)
    (built,) = made.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel: Path) -> list[PurePosixPath]:
    """Every file in the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return [PurePosixPath(name) for name in archive.namelist()]


@pytest.fixture(scope="module")
def installed(wheel: Path, shared: Path) -> Path:
    """The bin folder of a fresh environment with the wheel in it; what the wheel needs is borrowed from this one by a .pth file.

    The folders that a .pth names come last and their own .pth files are not read, so the checkout is not on the path.
    """

    def make(home: Path) -> None:
        run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
        specs = {name: importlib.util.find_spec(name) for name in NEEDED_AT_IMPORT}
        lent = {str(Path(spec.origin).parent.parent) for spec in specs.values() if spec and spec.origin}
        (site,) = home.glob("lib/python*/site-packages")
        (site / "borrowed.pth").write_text("\n".join(sorted(lent)) + "\n")
        run(sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=home)

    return once(shared / "installed", make) / "bin"


@pytest.fixture(scope="module")
def seen(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What LOOK prints in the fresh environment, in an empty folder."""
    printed = run(installed / "python", "-I", "-c", LOOK, cwd=tmp_path_factory.mktemp("elsewhere"))
    answer: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return answer


def test_there_are_shipped_logs() -> None:
    assert SHIPPED, "tuning_logs/ holds no <slug>/<op>.jsonl: tune a device and commit its records (tuning_logs/README.md says how)"


def test_wheel_holds_code_and_logs_only(names: list[PurePosixPath]) -> None:
    code = [name for name in names if name.parts[0] == "tvm_orient"]
    others = {name.parts[0] for name in names} - {"tvm_orient"}
    assert len(others) == 1, f"top-level names beside tvm_orient: {sorted(others)}"
    assert others.pop().endswith(".dist-info")
    assert {name.suffix for name in code} == {".py", ".md", ".jsonl", ".typed"}, "\n".join(map(str, code))


def test_wheel_is_the_checkout(names: list[PurePosixPath]) -> None:
    """Every source file and every record is there once, under tvm_orient/, and nothing else."""
    here = [path.relative_to(ROOT) for folder in ("tvm_orient", "schedules", "tuning_logs") for path in (ROOT / folder).rglob("*")]
    wanted = {("tvm_orient" / path if path.parts[0] != "tvm_orient" else path).as_posix() for path in here if path.suffix in (".py", ".md", ".jsonl", ".typed")}
    assert sorted(map(str, (name for name in names if name.parts[0] == "tvm_orient"))) == sorted(wanted)


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        fields = message_from_string(archive.read(name).decode())
    assert (fields["Name"], fields["License-Expression"], fields["Requires-Python"]) == ("tvm-orient", "Apache-2.0", ">=3.11")
    assert set(fields.get_all("Provides-Extra", [])) == {"torch", "compile", "tune", "plot", "demo", "example", "docs", "test", "all"}
    core = [need for need in fields.get_all("Requires-Dist", []) if "extra ==" not in need]
    assert not [need for need in core if need.startswith(("torch", "apache-tvm=", "xgboost"))], core


def test_installed_wheel_imports_from_itself(installed: Path, seen: dict[str, Any]) -> None:
    origins = seen["origins"]
    for name in ("tvm_orient", "tvm_orient.schedules", "tvm_orient.tuning_logs"):
        assert origins[name], f"{name} was not found"
        assert Path(origins[name]).is_relative_to(installed.parent), origins[name]
    assert origins["schedules"] is None
    assert origins["tuning_logs"] is None


def test_installed_wheel_reads_every_shipped_record(seen: dict[str, Any]) -> None:
    assert sorted(f"tuning_logs/{name}" for name in seen["logs"]) == SHIPPED
    assert SHIPPED, "no shipped record to read: tuning_logs/ holds no <slug>/<op>.jsonl"
    empty = {name: counts for name, counts in seen["logs"].items() if counts[0] == 0 or counts[1]}
    assert not empty, f"logs without a record, or with bad lines (records, bad): {empty}"


def test_command_line_is_installed(installed: Path) -> None:
    assert "tune" in run(installed / "tvm-orient", "--help", cwd=installed)
