"""A machine with GPUs for the tests: a stand-in for its driver (driver.c), what lets torch's tensors lie on it (torch_gpu.cpp), and processes there."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock
import torch

_HERE = Path(__file__).resolve().parent
_SECONDS = 200  # after which a process counts as hanging
_KEPT = ("HOME", "LANG", "TMPDIR", "TVM_ORIENT_LOG_DIR")  # what a process takes from ours: nothing that says where CUDA is
_TOOLS = ("cc", "gcc", "c++", "g++", "as", "ld")  # what linking a kernel takes


def why_not() -> str:
    """Why there can be no such machine here; "" where there can."""
    if shutil.which("cc") is None or shutil.which("c++") is None:
        return "no C and C++ compilers to build the stand-in for the driver with"
    return "torch is a CUDA build, which wants a real driver: the tests marked gpu run on one" if torch.version.cuda else ""


@dataclass(frozen=True)
class Ran:
    """What a process did: the JSON that it printed last, and what the driver saw."""

    answer: Any
    events: list[dict[str, Any]]

    def seen(self, what: str) -> list[dict[str, Any]]:
        """The events of one kind, in order: "load" or "launch"."""
        return [event for event in self.events if event["what"] == what]


class Machine:
    """A machine with two GPUs; it lives in a folder, which the workers of a session of tests share.

    Its processes see none of CUDA but what they are told of: the environment of ours is not handed on.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def did(self, scenario: str, environment: Callable[[], dict[str, str]]) -> Ran:
        """What came of a scenario (scenarios.py); it is run once a session."""
        path = self.folder / f"{scenario}.json"
        with filelock.FileLock(f"{path}.lock"):
            if not path.is_file():
                path.write_text(json.dumps(asdict(self._run(scenario, environment()))))
        return Ran(**json.loads(path.read_text()))

    def _run(self, scenario: str, environment: dict[str, str]) -> Ran:
        log = self.folder / f"{scenario}.jsonl"
        given = {name: os.environ[name] for name in _KEPT if name in os.environ} | {
            "LD_LIBRARY_PATH": str(self.stand_in),
            "PATH": os.environ["PATH"],
            "STAND_IN_GPUS": "2",
            "STAND_IN_LOG": str(log),
            "TVM_ORIENT_BUILD": "1",
            "TVM_ORIENT_CACHE_DIR": str(self.cache),
        }
        given |= environment | {"PYTHONPATH": os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), str(_HERE.parents[1])]))}
        command = [sys.executable, "-m", "tests.support.scenarios", scenario]
        done = subprocess.run(command, capture_output=True, text=True, env=given, check=False, timeout=_SECONDS)
        assert done.returncode == 0, f"{scenario} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-5000:]}"
        events = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
        return Ran(json.loads(done.stdout.strip().splitlines()[-1]), events)

    @property
    def cache(self) -> Path:
        """The folder of its compiled kernels."""
        return self.folder / "kernels"

    @functools.cached_property
    def stand_in(self) -> Path:
        """The folder of libcuda.so.1, libcudart.so.13 and libtorch_gpu.so, built where it is missing; for LD_LIBRARY_PATH."""
        folder, root = self.folder / "driver", Path(torch.__file__).parent
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                made = self.folder / "making"
                made.mkdir(exist_ok=True)
                driver, versions = made / "libcuda.so.1", made / "versions"
                versions.write_text("libcudart.so.13 { cuda*; };\n")  # TVM's runtime asks for that version of the symbols
                _compile("cc", "-O1", "-Wall", "-Werror", "-Wl,-soname,libcuda.so.1", f"-Wl,--version-script={versions}", _HERE / "driver.c", "-o", driver)
                (made / "libcudart.so.13").unlink(missing_ok=True)
                os.link(driver, made / "libcudart.so.13")  # one file, so that it is loaded once
                abi = f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"
                told = [abi, f"-I{root / 'include'}", f"-L{root / 'lib'}", f"-Wl,-rpath,{root / 'lib'}"]
                _compile("c++", "-std=c++20", *told, _HERE / "torch_gpu.cpp", "-lc10", "-ltorch_cpu", driver, "-o", made / "libtorch_gpu.so")
                made.rename(folder)
        return folder

    @property
    def nvcc_was_run(self) -> Path:
        """The file that the script of wrapped_nvcc writes when it is run."""
        return self.folder / "nvcc was run"

    def wrapped_nvcc(self) -> str:
        """A PATH whose first nvcc is a script, as one finds them in images of machines, for a toolkit that is not there."""
        folder = self.folder / "wrapper"
        folder.mkdir(exist_ok=True)
        (folder / "nvcc").write_text(f'#!/bin/sh\necho "$@" >> "{self.nvcc_was_run}"\nexec /nowhere/cuda/bin/nvcc "$@"\n')
        (folder / "nvcc").chmod(0o755)
        return f"{folder}{os.pathsep}{os.environ['PATH']}"

    def tools(self, *, compilers: bool) -> str:
        """A PATH with the compilers that link a kernel alone, or with nothing."""
        folder = self.folder / ("tools" if compilers else "nothing")
        folder.mkdir(exist_ok=True)
        for name in filter(shutil.which, _TOOLS if compilers else ()):
            _link(folder / name, str(shutil.which(name)))
        return str(folder)

    def runtime_only(self) -> str:
        """A PYTHONPATH on which TVM is there as far as running goes: its runtime's libraries are found, and importing it fails."""
        spec, folder = importlib.util.find_spec("tvm"), self.folder / "runtime" / "tvm"
        assert spec is not None, "TVM is not installed"
        (folder / "lib").mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text("raise ImportError('TVM is not to be imported here')\n")
        for path in (Path(spec.origin).parent / "lib").glob("libtvm_runtime*.so"):
            _link(folder / "lib" / path.name, path)
        return str(folder.parent)


def _link(place: Path, to: str | Path) -> None:
    place.unlink(missing_ok=True)
    place.symlink_to(to)


def _compile(compiler: str, *arguments: Any) -> None:
    done = subprocess.run([compiler, "-shared", "-fPIC", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{compiler} refused the stand-in: {done.stderr[-2000:]}"
