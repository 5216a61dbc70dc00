"""The hash of the sources: any edit of what generates kernels changes it, and all that does is hashed."""

import subprocess
import sys

import pytest

from tests.support.sources import NAMES, ROOT, file_graph, module_of
from tvm_orient.errors import EnvironmentProblem
from tvm_orient.kernels import source_hash as hashing
from tvm_orient.kernels.source_hash import GENERATORS, source_hash

FILES = ("codegen/te/conv.py", "schedules/__init__.py", "schedules/cuda/patch.py")
# what generators import and what decides no byte of a kernel: exceptions, warnings, folders, locks
DECIDES_NOTHING = {"tvm_orient.errors", "tvm_orient.notices", "tvm_orient.env", "tvm_orient.forks"}


def sources(root):
    for name in FILES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"# {name}")
    return lambda: hashing.hash_sources({name: [root / name] for name in ("codegen", "schedules")})


def test_any_source_changes_the_hash(tmp_path):
    digest = sources(tmp_path)
    seen = [digest()]
    for name in FILES:
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
    monkeypatch.setattr(hashing, "__file__", str(tmp_path / "kernels" / "source_hash.py"))
    with pytest.raises(EnvironmentProblem, match=r"no sources of problem: reinstall"):
        source_hash.__wrapped__()


def test_every_module_that_generates_code_is_hashed():
    """Whatever the compiler and the schedules import, by way of others too, lies in a package that is hashed, or decides no byte."""
    edges = file_graph((name, (ROOT / name).read_text()) for name in NAMES)
    left = [".".join(module_of(name)) for name in NAMES if module_of(name)[1] in ("compiler", "schedules") and not name.endswith("__init__.py")]
    reached = set(left)
    while left:
        new = edges[left.pop()] - reached
        reached |= new
        left += new
    hashed = {module for module in reached if module.split(".")[1] in GENERATORS}
    assert reached - hashed <= DECIDES_NOTHING
    assert {module.split(".")[1] for module in hashed} == set(GENERATORS), "each of them is there for a reason"


def test_source_hash_imports_neither_tvm_nor_torch():
    code = (
        "import sys; from tvm_orient.kernels.source_hash import source_hash; print(source_hash());"
        " print({'tvm', 'torch', 'tvm_orient.schedules'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\n")
    assert said == [source_hash(), "set()", ""]
    assert len(source_hash()) == 64
