"""A user without a home: what is only read counts as empty, what must be written is asked for by its variable. And an installation without sources."""

from __future__ import annotations

import compileall
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tvm_orient as to
from tests.support.helpers import line, spec_of
from tvm_orient import env
from tvm_orient.cli.application import app
from tvm_orient.kernels import build, resolve, source_hash
from tvm_orient.problem.device import cpu_device
from tvm_orient.records import lookup
from tvm_orient.tools import doctor_files

ROOT = Path(__file__).resolve().parents[2]
SPEC = spec_of("conv", 3, 6, 7, line(45, k=5))


@pytest.fixture(params=["unknown", "left as it is"])
def homeless(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither HOME nor an entry in the system's table, as in a container that was given a user id; and a platformdirs that then answers with a ~."""

    def nobody(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "TVM_ORIENT_LOG_DIR", "TVM_ORIENT_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    if request.param == "left as it is":
        for name in ("user_cache_dir", "user_data_dir"):
            monkeypatch.setattr(env.platformdirs, name, lambda application: f"~/.somewhere/{application}")


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(("folder", "folders", "variable"), [("user_log_dir", "user_log_dirs", "LOG"), ("cache_dir", "cache_dirs", "CACHE")])
def test_a_folder_to_write_to_is_asked_for_and_one_to_read_is_not(folder: str, folders: str, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(to.EnvironmentProblem, match=f"has no home: set TVM_ORIENT_{variable}_DIR to a folder of yours, or HOME"):
        getattr(env, folder)()
    assert getattr(env, folders)() == []
    monkeypatch.setenv(f"TVM_ORIENT_{variable}_DIR", "~/mine")
    with pytest.raises(to.EnvironmentProblem, match=f"set TVM_ORIENT_{variable}_DIR"):
        getattr(env, folder)()
    monkeypatch.setenv(f"TVM_ORIENT_{variable}_DIR", "/mine")
    assert getattr(env, folders)() == [Path("/mine")]


@pytest.mark.usefixtures("homeless")
def test_lookup_reads_what_ships() -> None:
    found = lookup.lookup(SPEC, cpu_device(), lambda record: None)
    assert dict(found.tried).get("user") == "no folder to look in"
    assert resolve.explain(SPEC, cpu_device())


@pytest.mark.usefixtures("homeless")
def test_what_must_be_written_names_its_variable(tmp_path: Path) -> None:
    with pytest.raises(to.EnvironmentProblem, match="TVM_ORIENT_CACHE_DIR"):
        build.build(SPEC, cpu_device())


@pytest.mark.usefixtures("homeless")
@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["logs", "where"], 0, "user     none: no home, and TVM_ORIENT_LOG_DIR is not set"),
        (["logs", "list"], 0, "shipped"),
        (["cache", "list"], 0, "no cache of this user's own: no home, and TVM_ORIENT_CACHE_DIR is not set"),
        (["cache", "list", "--json"], 0, '"directory": null'),
        (["cache", "clear"], 1, "set TVM_ORIENT_CACHE_DIR"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands(command: list[str], code: int, says: str) -> None:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == code, done.output
    assert says in done.output


@pytest.mark.usefixtures("homeless")
def test_the_doctor_says_what_to_set() -> None:
    for look, variable in ((doctor_files.user_logs, "TVM_ORIENT_LOG_DIR"), (doctor_files.kernel_cache, "TVM_ORIENT_CACHE_DIR")):
        state, detail, hint = look()
        assert state == "missing"
        assert "has no home" in detail
        assert hint.startswith(f"set {variable}")


def test_the_doctor_sees_a_cache_that_runs_no_programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(env, "runs_no_programs", lambda _: True)
    state, detail, _ = doctor_files.kernel_cache()
    assert state == "broken"
    assert "mounted noexec" in detail


_IMPORT = """
import os, pwd
os.environ.pop("HOME", None), os.environ.pop("XDG_CACHE_HOME", None)
def nobody(uid):
    raise KeyError(uid)
pwd.getpwuid = nobody
from tvm_orient.toolchain.tvm import load_tvm
load_tvm()
print("HOME" in os.environ)
"""


def test_tvm_is_imported_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"


# ---- no sources ---------------------------------------------------------------------------------


def hashed(tree: Path) -> str:
    """What a fresh process that imports the package from a folder takes for the hash of its sources."""
    code = "import tvm_orient.kernels.source_hash as c; print(c.source_hash(), c.__file__)"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(tree)}, cwd=tree)
    digest, place = done.stdout.split()
    assert Path(place).is_relative_to(tree), "another installation was imported"
    return digest


def test_an_installation_without_sources_has_a_key(tmp_path: Path) -> None:
    """As python -m compileall -b leaves it where the sources are removed; laid out as a wheel is."""
    tree = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", ".*")
    shutil.copytree(ROOT / "tvm_orient", tree / "tvm_orient", ignore=ignored)
    shutil.copytree(ROOT / "schedules", tree / "tvm_orient" / "schedules", ignore=ignored)
    assert hashed(tree) == source_hash.source_hash(), "sources are hashed wherever they lie"

    def compiled(*names: str) -> str:
        """The hash once these files are compiled anew and no source is there."""
        for name in names:
            assert compileall.compile_file(tree / "tvm_orient" / name, quiet=1, legacy=True, force=True)
        sources = {path: path.read_text() for path in tree.rglob("*.py")}
        for path in sources:
            path.unlink()
        try:
            return hashed(tree)
        finally:
            for path, text in sources.items():
                path.write_text(text)

    assert compileall.compile_dir(tree, quiet=1, legacy=True, workers=2)
    digest = compiled()
    assert digest != source_hash.source_hash()
    assert compiled("codegen/te/expr.py") == digest, "when it was compiled does not count"
    for name in ("codegen/te/expr.py", "schedules/cpu/rows.py"):
        with (tree / "tvm_orient" / name).open("a") as file:
            file.write("\nNEWS = 1\n")
        assert compiled(name) != digest, name
        digest = compiled()
