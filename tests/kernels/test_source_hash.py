"""The hash of the sources: any edit of what generates kernels changes it, and all that does is hashed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tvm_orient.errors import EnvironmentProblem
from tvm_orient.kernels import cache
from tvm_orient.kernels import source_hash as hashing
from tvm_orient.kernels.source_hash import source_hash


def sources(root):
    (root / "schedules" / "cuda").mkdir(parents=True)
    for name in ("compute.py", "schedules/__init__.py", "schedules/cuda/patch.py"):
        (root / name).write_text(f"# {name}")
    return lambda: hashing.hash_sources([root / "compute.py"], [root / "schedules"])


def test_any_source_changes_the_hash(tmp_path):
    digest = sources(tmp_path)
    seen = [digest()]
    for name in ("compute.py", "schedules/__init__.py", "schedules/cuda/patch.py"):
        (tmp_path / name).write_text("pass")
        seen.append(digest())
    (tmp_path / "schedules/cuda/rows.py").write_text("")
    seen.append(digest())
    (tmp_path / "schedules/cuda/rows.py").rename(tmp_path / "schedules/rows.py")
    seen.append(digest())
    assert len(set(seen)) == len(seen)
    (tmp_path / "schedules/notes.txt").write_text("not code")
    assert digest() == seen[-1]


def test_the_place_of_the_sources_does_not_count(tmp_path):
    assert sources(tmp_path / "checkout")() == sources(tmp_path / "wheel")()


def test_missing_sources_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "__file__", str(tmp_path / "cache.py"))
    with pytest.raises(EnvironmentProblem, match=r"No such file.*reinstall"):
        source_hash.__wrapped__()


def imported(path):
    """Names of the package's own modules that a file imports anywhere."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("tvm_orient")):
            found |= set((node.module or "").split(".")) | {alias.name for alias in node.names}
    return found


def test_every_module_that_generates_code_is_hashed():
    """Whatever the code generators import is a generator, but for these, which only carry values that are in the key."""
    package = Path(cache.__file__).parent
    modules = {path.stem for path in package.glob("*.py")} - {"__init__"}
    reached = set().union(*(imported(path) for path in (Path(__file__).resolve().parents[2] / "schedules").rglob("*.py")), {"lower"}) & modules
    while more := set().union(*(imported(package / f"{name}.py") for name in reached)) & modules - reached:
        reached |= more
    assert reached - {"errors", "device", "forks", "paths", "notices"} == set(hashing.GENERATORS)  # these decide no byte of a kernel


def test_source_hash_imports_neither_tvm_nor_torch():
    code = (
        "import sys; from tvm_orient.kernels.cache import source_hash; print(source_hash()); print({'tvm', 'torch', 'tvm_orient.schedules'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[2]).stdout.split("\n")
    assert said == [source_hash(), "set()", ""]
    assert len(source_hash()) == 64
