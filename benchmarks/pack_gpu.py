"""Pack what a GPU machine without a network lacks, for x86-64 Linux: TVM, the cost model, CUDA's C++ headers and a few small packages.

    python benchmarks/pack_gpu.py                (about five minutes on one core) writes .gpu_kit/part-a and part-b

There, benchmarks/unpack_gpu.sh puts them into a folder for PYTHONPATH. torch, numpy, scipy, matplotlib, pytest, hypothesis, NVRTC, nvcc and a C++
compiler are expected on it; HAS lists the packages that are counted on. docs/gpu.md has the steps.
"""

from __future__ import annotations

import importlib.metadata
import lzma
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from terminal import say

ROOT = Path(__file__).resolve().parent.parent
# packed, in the versions of constraints.txt where it names them
PACKED = (
    "apache-tvm", "apache-tvm-ffi", "xgboost-cpu", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
    "platformdirs", "expecttest", "nvidia-cuda-cccl",
)  # fmt: skip
# there already
HAS = (
    "cloudpickle", "cuda-bindings", "filelock", "hypothesis", "matplotlib", "ml-dtypes", "numpy", "nvidia-cuda-nvrtc", "nvidia-cuda-runtime", "packaging",
    "psutil", "pytest", "pytest-timeout", "rich", "scipy", "torch", "typer",
)  # fmt: skip
# what the session there runs: the package, its compiler, its tuner, its pictures, and the tests marked gpu
WANTED = ("tvm-orient[torch,compile,tune,plot]", "pytest", "pytest-timeout", "hypothesis", "expecttest")
_UNUSED = {"nvidia-cuda-nvdisasm"}  # reads SASS in tests that need no GPU
_LEFT_OUT = (
    *(f"tvm/{name}" for name in ("include", "3rdparty", "web", "lib64", "src")), *(f"tvm_ffi/{name}" for name in ("3rdparty", "include", "src")),
    *(f"nvidia/cu13/include/cccl/{name}" for name in ("thrust", "cub")),
)  # fmt: skip
_TAGS = ("_2_28", "_2_27", "_2_24", "_2_17", "_2_12", "2014", "2010", "1")
_PART = 56 * 2**20  # most bytes of one part: a transfer carries 64 MiB, the working tree included


def needed(roots: tuple[str, ...] = WANTED) -> set[str]:
    """Names of every distribution that these need, as this environment's metadata says, but not what those in HAS need in turn."""
    found: set[str] = set()
    waiting = [Requirement(root) for root in roots]
    seen = set()
    while waiting:
        one = waiting.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found.add(name)
        if name in HAS:
            continue
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
                waiting.append(requirement)
    return found - {"tvm-orient"} - _UNUSED


def missing() -> set[str]:
    """What is needed there and neither packed nor counted on; must be empty."""
    return needed() - {canonicalize_name(name) for name in PACKED + HAS}


def pinned(names: tuple[str, ...]) -> list[str]:
    """Requirements with the versions of constraints.txt, or else those of this environment: some need each other exactly."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    versions = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}
    return [f"{name}=={versions.get(canonicalize_name(name)) or importlib.metadata.version(name)}" for name in names]


def download(folder: Path, python: str) -> list[Path]:
    """The wheels, by pip."""
    tags = [word for tag in _TAGS for word in ("--platform", f"manylinux{tag}_x86_64")]
    how = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *tags, "-d", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *how, *pinned(PACKED)], check=True)
    return sorted(folder.glob("*.whl"))


def unpack(wheels: list[Path], site: Path) -> None:
    """The wheels' files in one folder, without what no kernel needs."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for name in _LEFT_OUT:
        shutil.rmtree(site / name, ignore_errors=True)
    # some build scripts mark libraries as not executable; the loader does not mind, but a folder that cannot be entered would
    for path in site.rglob("*"):
        path.chmod(0o755)


def pack(site: Path, out: Path, part: int = _PART, preset: int = 9 | lzma.PRESET_EXTREME) -> list[Path]:
    """site as one xz archive in parts of at most so many bytes: out/part-a, part-b and so on."""
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": 2**27}]
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("part-?"):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=out) as folder:
        whole = Path(folder) / "kit.tar.xz"
        with lzma.open(whole, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
            # machine code beside machine code: by suffix, the largest first
            for path in sorted(
                (path for path in site.rglob("*") if path.is_file()), key=lambda path: (path.suffix != ".so", path.suffix, -path.stat().st_size)
            ):
                archive.add(path, path.relative_to(site).as_posix())
        parts: list[Path] = []
        share = -(-whole.stat().st_size // -(-whole.stat().st_size // part))  # parts of one size
        with whole.open("rb") as source:
            while chunk := source.read(share):
                parts.append(out / f"part-{chr(ord('a') + len(parts))}")
                parts[-1].write_bytes(chunk)
    return parts


def main(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the parts go; git ignores the default.")] = ROOT / ".gpu_kit",
    python: Annotated[str, typer.Option(help="Version of Python there.")] = "3.12",
) -> None:
    """Download, unpack, leave out, pack."""
    if lacking := missing():
        say(f"error: neither packed nor known to be there: {', '.join(sorted(lacking))}: put each into PACKED or HAS")
        raise typer.Exit(1)
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder) / "site"
        wheels = download(Path(folder) / "wheels", python)
        unpack(wheels, site)
        say(f"unpacked {', '.join(re.match(r'[^-]+-[^-]+', wheel.name)[0] for wheel in wheels)}")  # type: ignore[index]
        parts = pack(site, out)
    for path in parts:
        say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    typer.run(main)
