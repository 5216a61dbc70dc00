"""What `import tvm_orient` does: it registers the operators wherever torch is, costs little, and works where torch is not."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tvm_orient as to
from tvm_orient import torch_hook

X = torch.linspace(-1, 1, 2 * 4 * 6 * 7).reshape(2, 4, 6, 7)


def fresh(code: str, *arguments: object, warnings: str = "ignore") -> str:
    """What a new process prints; fails with its error where it fails."""
    command = [sys.executable, "-W", f"{warnings}::UserWarning", "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


class Net(torch.nn.Module):
    """Both public functions beside a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = to.nn.OrientedConv2d(4, 5, directions=2, activation="gelu")

    def forward(self, x: Tensor) -> Tensor:
        return to.oriented_conv2d(self.layer(x), self.layer.weight, [0.3], residual=True)


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.setenv("TVM_ORIENT_BUILD", "100000")  # the generic kernel, which every size shares
    return Net().eval()


LOAD = """
import sys, tvm_orient, torch
x, want = torch.load(sys.argv[1])
for program in (torch.export.load(sys.argv[2]).module(), torch.jit.load(sys.argv[3])):
    print(torch.equal(program(x), want), "tvm" in sys.modules)
"""


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_saved_programs_load_after_import_tvm_orient(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process that imports tvm_orient, before torch, and nothing more of it; where nothing may compile, once the cache is filled."""
    program = torch.export.export(net, (X,))
    to.warmup(program.module(), X)
    monkeypatch.setenv("TVM_ORIENT_BUILD", "0")
    torch.save((X, net(X).detach()), tmp_path / "wanted.pt")
    torch.export.save(program, tmp_path / "exported.pt2")
    torch.jit.save(torch.jit.trace(net, X), tmp_path / "traced.pt")  # type: ignore[no-untyped-call]
    assert fresh(LOAD, *(tmp_path / name for name in ("wanted.pt", "exported.pt2", "traced.pt"))) == "True False\nTrue False"


AOT = """
import sys, torch, tvm_orient
x, want = torch.load(sys.argv[1])
print(torch.equal(torch._inductor.aoti_load_package(sys.argv[2])(x), want))
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_package_loads_after_import_tvm_orient(net: Net, tmp_path: Path) -> None:
    """AOTInductor: the batch is free in the package."""
    with torch.no_grad():
        torch.save((X[:1], net(X[:1])), tmp_path / "wanted.pt")
        program = torch.export.export(net, (X,), dynamic_shapes=({0: torch.export.Dim("n", min=1, max=64)},))
        options = {"aot_inductor.compile_wrapper_opt_level": "O0"}
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"), inductor_configs=options)
    assert fresh(AOT, tmp_path / "wanted.pt", tmp_path / "net.pt2") == "True"


COST = """
import sys, time
start = time.perf_counter()
import torch
between = time.perf_counter()
import tvm_orient
end = time.perf_counter()
print((end - between) / (between - start), "tvm" in sys.modules, "torch._dynamo" in sys.modules, hasattr(torch.ops.tvm_orient, "conv"))
"""


def test_what_it_costs() -> None:
    """Much less than torch itself; neither TVM nor Dynamo is loaded."""
    share, *rest = fresh(COST).split()
    assert rest == ["False", "False", "True"]
    assert float(share) < 0.5


WHEN = "print(torch.ops.tvm_orient.conv, 'tvm_orient.ops.flops' in sys.modules, any('orient' in str(one) for one in sys.meta_path))"


@pytest.mark.parametrize("first", ["tvm_orient.runtime.serving", pytest.param("tvm_orient.nn", marks=pytest.mark.long), "tvm_orient, torch"])
def test_whichever_module_brings_torch(first: str) -> None:
    """Where a module of ours is the first to import torch the operators wait until it is whole."""
    assert fresh(f"import sys, {first}, torch\n{WHEN}", warnings="error").split() == ["tvm_orient.conv", "True", "False"]


WITHOUT = """
import importlib.abc, sys
class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "tvm"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if sys.argv[1] == "missing":
    sys.meta_path.insert(0, Missing())
else:
    sys.modules["torch"] = None
import tvm_orient
print(tvm_orient.Taps.from_key("k3a45").key)
for _ in range(2):
    try:
        import torch
    except ModuleNotFoundError as problem:
        print(problem.name)
try:
    tvm_orient.oriented_conv2d
except ModuleNotFoundError as problem:
    print(problem.name)
from tvm_orient.cli import app
sys.argv = ["tvm-orient", "--help"]
app()
"""


@pytest.mark.parametrize("how", ["missing", "blocked"])
def test_without_torch(how: str) -> None:
    """Keys and the command line work; what needs torch says that it is missing."""
    said = fresh(WITHOUT, how)
    assert said.splitlines()[:4] == ["k3a45", "torch", "torch", "torch"]
    assert "explain" in said


def test_help_loads_no_torch() -> None:
    said = fresh('import sys, tvm_orient.cli as c\ntry:\n    c.app(["--help"])\nexcept SystemExit:\n    print("torch" in sys.modules)')
    assert said.endswith("False")


def test_a_failure_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is torch that somebody imports: that must not fail for our sake."""

    def refuse(*_: Any) -> types.ModuleType:
        raise AttributeError("this torch has no library")

    monkeypatch.setattr(torch_hook.importlib, "import_module", refuse)
    with pytest.warns(UserWarning, match="has not registered its operators: AttributeError: this torch has no library"):
        torch_hook.register()


def test_dir_shows_the_interface() -> None:
    shown = dir(to)
    assert set(to.__all__) <= set(shown)
    assert {"nn", "oriented_conv2d", "tap_conv2d", "warmup", "ops", "__version__"} <= set(shown)
    assert not {"Any", "Path", "TYPE_CHECKING", "annotations", "version", "PackageNotFoundError"} & set(shown)
    assert all(hasattr(to, name) for name in shown)
