"""Compile here what a GPU machine is to run, and pack it with the little that running needs: no compiler, no TVM but its runtime.

    python benchmarks/gpu_kit.py                              every part, most telling first, into .gpu_kit/
    python benchmarks/gpu_kit.py smoke alone-float32          these parts

What is compiled already is not compiled again. The kit is packed anew after each part, so that whatever is made can be taken along.
"""

from __future__ import annotations

import json
import lzma
import os
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Annotated, Any

import typer
from gpu_jobs import PARTS, Job, choices_of
from pack_gpu import pinned
from terminal import say

from tvm_orient.build import build, build_key
from tvm_orient.cache import HOW, KERNEL, KernelCache
from tvm_orient.device import Device, device_for
from tvm_orient.driverless import pretend_driver
from tvm_orient.spec import ConvSpec

ROOT = Path(__file__).resolve().parent.parent
ARCH = "sm_90a"
_TARGET = "TVM_ORIENT_KIT_TARGET"
# what running a kernel needs beside torch: TVM's runtime and its binding, and where caches lie
_RUNTIME = (
    "apache-tvm", "apache-tvm-ffi", "platformdirs", "filelock", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
)  # fmt: skip
_TAKEN = (
    "tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_cuda.so", "tvm_ffi/", "platformdirs", "filelock", "apache_tvm", "pydantic", "annotated_types",
    "typing_inspection", "typing_extensions",
)  # fmt: skip
_LEFT_OUT = ("tvm_ffi/3rdparty/", "tvm_ffi/include/", "tvm_ffi/src/")


def runtime(site: Path, python: str) -> None:
    """The files that running needs, from the wheels, in one folder for PYTHONPATH."""
    with tempfile.TemporaryDirectory() as folder:
        tags = [word for tag in ("_2_28", "_2_27", "_2_17", "2014", "1") for word in ("--platform", f"manylinux{tag}_x86_64")]
        how = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *tags, "-d", folder]
        subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *how, *pinned(_RUNTIME)], check=True)
        for wheel in sorted(Path(folder).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                names = [n for n in archive.namelist() if n.startswith(_TAKEN) and not any(part in n for part in _LEFT_OUT)]
                archive.extractall(site, names)
    for path in site.rglob("*"):
        path.chmod(0o755)


def compile_all(jobs: list[Job], device: Device, folder: Path, processes: int) -> int:
    """Compiles the kernels of jobs that are not there yet, in several processes; returns how many failed."""
    store, failed, begin = KernelCache(folder / "kernels"), 0, time.monotonic()
    left = [job for job in jobs if store.find(build_key(job.spec, device, job.choices)) is None]
    workers = [
        subprocess.Popen([sys.executable, __file__, "--serve", str(folder / "kernels")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(min(processes, len(left)))
    ]
    import selectors

    waiting, selector = list(reversed(left)), selectors.DefaultSelector()

    def give(worker: Any) -> None:
        if waiting:
            worker.stdin.write(waiting.pop().line("") + "\n")
            worker.stdin.flush()
        else:
            worker.stdin.close()

    for worker in workers:
        selector.register(worker.stdout, selectors.EVENT_READ, worker)
        give(worker)
    done = 0
    while selector.get_map():
        for key, _ in selector.select():
            line = key.fileobj.readline()  # type: ignore[union-attr]
            if not line:
                selector.unregister(key.fileobj)
                key.data.wait()
                continue
            answer, done = json.loads(line), done + 1
            if "error" in answer:
                failed += 1
                say(f"  FAILED {answer['name']}: {answer['error']}")
            elif done % 20 == 0:
                say(f"  {done} of {len(left)} after {time.monotonic() - begin:.0f} s")
            give(key.data)
    return failed


def serve(folder: Path) -> None:
    """Compiles a kernel for each line on standard input."""
    pretend_driver()
    store, device = KernelCache(folder), device_for(os.environ.get(_TARGET, ARCH))
    for line in sys.stdin:
        request = json.loads(line)
        try:
            build(ConvSpec.from_key(request["spec"]), device, choices_of(request), store)
            answer = {"name": request["name"]}
        except Exception as problem:
            answer = {"name": request["name"], "error": f"{type(problem).__name__}: {str(problem)[:300]}"}
        print(json.dumps(answer), flush=True)
    os._exit(0)


def pack(jobs: list[Job], device: Device, folder: Path, extra: list[str]) -> Path:
    """kit.tar.xz: the runtime, the kernels that are there, and jobs.jsonl, which names them."""
    store, lines, entries = KernelCache(folder / "kernels"), [], {}
    for job in jobs:
        found = store.find(build_key(job.spec, device, job.choices))
        if found is not None:
            entries[found.parent.name] = found.parent
            lines.append(job.line(found.parent.name))
    (folder / "jobs.jsonl").write_text("\n".join([*lines, *extra]) + "\n")
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26}]
    whole = folder / ".kit.tar.xz"
    with lzma.open(whole, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:
        archive.add(folder / "jobs.jsonl", "jobs.jsonl")
        archive.add(folder / "site", "site")
        for name, entry in sorted(entries.items()):
            for file in (KERNEL, HOW):
                archive.add(entry / file, f"kernels/{name}/{file}")
        if (folder / "extra").is_dir():
            archive.add(folder / "extra", "extra")
    os.replace(whole, folder / "kit.tar.xz")
    return folder / "kit.tar.xz"


def main(
    parts: Annotated[list[str] | None, typer.Argument(metavar="[PART]...", help=f"{', '.join(PARTS)}; all where none is named.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the kit goes; git ignores the default.")] = ROOT / ".gpu_kit",
    jobs: Annotated[int, typer.Option(help="Processes that compile.")] = 2,
    python: Annotated[str, typer.Option(help="Version of Python there.")] = "3.12",
    serving: Annotated[Path | None, typer.Option("--serve", hidden=True)] = None,
) -> None:
    """Compile the parts and pack."""
    if serving is not None:
        serve(serving)
    if unknown := set(parts or ()) - set(PARTS):
        raise typer.BadParameter(f"parts must be among {', '.join(PARTS)}, got {min(unknown)!r}")
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "site" / "tvm").is_dir():
        runtime(out / "site", python)
    device, known = device_for(os.environ.get(_TARGET, ARCH)), []
    extra = (out / "extra.jsonl").read_text().splitlines() if (out / "extra.jsonl").exists() else []
    for name in parts or PARTS:
        begin = time.monotonic()
        known += (mine := list(PARTS[name](device)))
        failed = compile_all(mine, device, out, jobs)
        path = pack(known, device, out, extra)
        say(f"{name}: {len(mine)} kernels, {failed} failed, {time.monotonic() - begin:.0f} s; {path} has {path.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    typer.run(main)
