"""Compile here what a GPU machine is to run, and pack it with the little that running needs: no compiler, no TVM but its runtime.

    python -m benchmarks.gpu.kit                              (make gpu-kit) every part, most telling first, into .gpu_kit/kit.tar.xz
    python -m benchmarks.gpu.kit smoke alone-float32          these parts
    python -m benchmarks.gpu.kit --pack-only                  what is compiled already, without compiling

What is compiled already is not compiled again, also after Ctrl-C. The kit is packed anew after each part that compiled something, so that
whatever is made can be taken along. docs/gpu.md says what to do with it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import lzma
import os
import queue
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer

from tvm_orient.errors import OrientError
from tvm_orient.kernels import cache, source_hash
from tvm_orient.kernels.build import build
from tvm_orient.kernels.build_key import build_key
from tvm_orient.kernels.manifest import HOW, KERNEL
from tvm_orient.problem.device import Device, device_for
from tvm_orient.toolchain.versions import provenance, version

from ..report.terminal import say
from .jobs import FULL, PARTS, QUICK, Choices, Job, job_of
from .results import write

ROOT = Path(__file__).resolve().parents[2]
KIT = "kit.tar.xz"  # the archive
START = "run.py"  # the file in it that starts the run
_MAX_MIB = 60  # MiB of the archive, so that it fits a transfer of 64 with the checkout
_MARGIN = 2 << 20  # bytes that the compressor may still hold when it is asked how much it wrote
_COMPILE_S = 900.0  # most for one kernel; the slowest known takes two minutes
_EVERY = 20  # kernels between two lines
# what running a kernel needs beside torch, numpy and typer: TVM's runtime and its binding, the logs' format, and where caches lie
_RUNTIME = (
    "apache-tvm", "apache-tvm-ffi", "platformdirs", "filelock", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "typing-extensions",
)  # fmt: skip
_TAKEN = (
    "tvm/lib/libtvm_runtime.so", "tvm/lib/libtvm_runtime_cuda.so", "tvm_ffi/", "platformdirs", "filelock", "apache_tvm", "pydantic", "annotated_types",
    "typing_inspection", "typing_extensions",
)  # fmt: skip
_LEFT_OUT = ("tvm_ffi/3rdparty/", "tvm_ffi/include/", "tvm_ffi/src/")
_PLATFORMS = ("_2_28", "_2_27", "_2_17", "2014", "1")  # manylinux tags of x86-64, newest first


@dataclass
class Part:
    """Hold what became of a part: its jobs, seconds spent on it in all calls, and what did not compile."""

    jobs: list[Job]
    seconds: float = 0.0
    failed: dict[str, str] = field(default_factory=dict)  # job: reason


class Kit:
    """A folder in which kernels are compiled and packed."""

    def __init__(self, folder: Path, device: Device, quick: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.device, self.size, self.quick = folder, device, QUICK if quick else FULL, quick
        self.store = cache.KernelCache(folder / "kernels")
        self.parts: dict[str, Part] = {}

    def add(self, name: str) -> None:
        """Takes a part in, with what earlier calls said of it."""
        part = Part(self._planned(name))
        known = self.folder / "parts.json"
        if known.exists():
            part.seconds = json.loads(known.read_text()).get(name, {}).get("seconds", 0.0)
        self.parts[name] = part

    def _planned(self, name: str) -> list[Job]:
        """Return the jobs of a part. Choosing them by estimate takes minutes in all, so they are kept until what they follow from changes."""
        place = self.folder / f"plan-{name}.jsonl"
        if place.exists():
            head, *lines = place.read_text().splitlines()
            if head == self.follows_from:
                return [job_of(json.loads(line)) for line in lines]
        jobs = list(PARTS[name](self.device, self.size))
        write(place, "\n".join([self.follows_from, *(job.line(lambda _: "") for job in jobs)]))
        return jobs

    @functools.cached_property
    def follows_from(self) -> str:
        """Return a checksum of what decides on jobs and choices: the schedules, the lists of problems, the shipped records, the device."""
        total = hashlib.sha256(f"{source_hash.source_hash()} {self.device} {self.size}".encode())
        lists = ("benchmarks/gpu/jobs.py", "benchmarks/gpu/sanitize.py", "tvm_orient/bench/grids.py")
        for path in (*(ROOT / name for name in lists), *sorted((ROOT / "tuning_logs").rglob("[!.]*.jsonl"))):
            total.update(path.read_bytes())
        return total.hexdigest()

    def entry(self, job: Job, choices: Choices) -> Path | None:
        """Return the folder of a job's kernel; None where it is not compiled."""
        found = self.store.find(build_key(job.spec, self.device, choices))
        return found.parent if found else None

    def ready(self, job: Job) -> bool:
        """Return whether all its kernels are compiled."""
        return all(self.entry(job, choices) for choices in job.kernels)

    def compile(self, name: str, processes: int) -> int:
        """Compiles what a part still lacks; returns how many kernels that was."""
        part, begin = self.parts[name], time.monotonic()
        wanted = {
            build_key(job.spec, self.device, choices).name: (job, choices) for job in part.jobs for choices in job.kernels if not self.entry(job, choices)
        }
        waiting: queue.SimpleQueue[tuple[Job, Choices]] = queue.SimpleQueue()
        for pair in wanted.values():
            waiting.put(pair)
        work = functools.partial(self._work, part, waiting, len(wanted), begin)
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(processes, len(wanted)))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():  # a join without end would not hear Ctrl-C
                    thread.join(0.5)
        finally:
            part.seconds += time.monotonic() - begin
            self._keep()
        return len(wanted)

    def _work(self, part: Part, waiting: queue.SimpleQueue[tuple[Job, Choices]], total: int, begin: float) -> None:
        while True:
            try:
                job, choices = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                build(job.spec, self.device, choices, self.store, limit=_COMPILE_S)  # in a process of its own
            except (OrientError, OSError, cache.Busy) as problem:
                part.failed[f"{job.name}: {[c.template for c in choices[:1]]}"] = str(problem) or type(problem).__name__
                say(f"  FAILED {job.name}: {problem}")
            done = total - waiting.qsize()
            if done % _EVERY == 0:
                say(f"  {done} of {total} after {time.monotonic() - begin:.0f} s")

    def _keep(self) -> None:
        path = self.folder / "parts.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        known |= {name: {"seconds": round(part.seconds, 1), "failed": part.failed} for name, part in self.parts.items()}
        write(path, json.dumps(known, indent=1))

    def pack(self, most: float) -> list[str]:
        """Writes the archive of the code, the runtime and as many jobs' kernels as fit, in order; says what is in it."""
        lines, entries, counts = [], set(), dict.fromkeys(self.parts, 0)
        temporary = self.folder / f".{KIT}"
        with temporary.open("wb") as file:
            counted = _Counted(file)
            filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 2**26}]
            with lzma.open(counted, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w|") as archive:  # type: ignore[call-overload]
                for path, name in _code():
                    archive.add(path, name)
                if (self.folder / "site").is_dir():
                    archive.add(self.folder / "site", "site")
                for name, part in self.parts.items():
                    for job in (job for job in part.jobs if self.ready(job)):
                        if counted.size > most * 2**20 - _MARGIN:
                            break
                        found = {choices: entry for choices in job.kernels if (entry := self.entry(job, choices))}
                        for entry in set(found.values()) - entries:
                            for file_name in (KERNEL, HOW):
                                archive.add(entry / file_name, f"kernels/{entry.name}/{file_name}")
                        entries |= set(found.values())
                        lines.append(job.line(lambda choices, found=found: found[choices].name))  # type: ignore[misc]
                        counts[name] += 1
                for name, text in (("jobs.jsonl", "\n".join(lines) + "\n"), ("kit.json", json.dumps(self.facts(counts), indent=1))):
                    write(self.folder / name, text)
                    archive.add(self.folder / name, name)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.folder / KIT)
        return self._said(counts, len(entries), (self.folder / KIT).stat().st_size)

    def facts(self, counts: dict[str, int]) -> dict[str, Any]:
        """Return what a run and its records say of the kernels."""
        made = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "made": made,
            "target": self.device.kind,
            "arch": self.device.arch,
            "source": source_hash.source_hash(),
            "versions": provenance(),
            "jobs": counts,
        }

    def _said(self, counts: dict[str, int], kernels: int, size: int) -> list[str]:
        lines = [f"{self.folder / KIT}: {size / 2**20:.1f} MiB, {kernels} kernels, {sum(counts.values())} jobs"]
        for name, part in self.parts.items():
            ready = sum(map(self.ready, part.jobs))
            lacks = "".join(
                (f", {len(part.jobs) - ready} not compiled" * (ready < len(part.jobs)), f", {ready - counts[name]} did not fit" * (counts[name] < ready))
            )
            lines.append(f"  {name:20} {counts[name]:4} of {len(part.jobs):4} jobs, compiled in {part.seconds:6.0f} s{lacks}")
        return lines


class _Counted:
    """A file that knows how many bytes were written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size = file, 0

    def write(self, data: bytes) -> int:
        """Writes on."""
        self.size += len(data)
        return self.file.write(data)


def _code() -> Iterator[tuple[Path, str]]:
    """Yield (file, its name in the kit) of the sources that the kernels were made by and are run by, and of the records; as a wheel lays them out."""
    for folder, place in (("tvm_orient", ""), ("schedules", "tvm_orient/"), ("tuning_logs", "tvm_orient/"), ("benchmarks", "")):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".jsonl") and not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
                yield path, place + path.relative_to(ROOT).as_posix()
    yield ROOT / "benchmarks" / "gpu" / "start.py", START


def runtime(site: Path, python: str) -> None:
    """Put the files that running needs, from the wheels, into one folder for PYTHONPATH; nothing is done where it is there."""
    if site.is_dir():
        return
    with tempfile.TemporaryDirectory(dir=site.parent) as name:
        folder, made = Path(name), Path(name) / "site"
        tags = [word for tag in _PLATFORMS for word in ("--platform", f"manylinux{tag}_x86_64")]
        how = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp", *tags, "-d", str(folder)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", *how, *_pinned(_RUNTIME)]
        if subprocess.run(command, check=False).returncode:
            raise typer.BadParameter(f"pip must find wheels of the runtime for Python {python}, and did not: see above, or give --bare to leave it out")
        for wheel in sorted(folder.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(made, [n for n in archive.namelist() if n.startswith(_TAKEN) and not n.startswith(_LEFT_OUT)])
        for path in made.rglob("*"):  # some build scripts mark libraries as not executable, and a folder so marked cannot be entered
            path.chmod(0o755)
        os.replace(made, site)


def _pinned(names: Sequence[str]) -> list[str]:
    """Return the requirements with the versions of constraints.txt, or else those of this environment: some need each other exactly."""
    lines = [line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    versions = {name.lower().replace("_", "-"): number for name, _, number in lines}
    return [f"{name}=={versions.get(name) or version(name)}" for name in names]


def main(
    parts: Annotated[list[str] | None, typer.Argument(metavar="[PART]...", help=f"{', '.join(PARTS)}; all where none is named.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the kit goes; git ignores the default.")] = ROOT / ".gpu_kit",
    pack_only: Annotated[bool, typer.Option("--pack-only", help="Pack what is compiled, and compile nothing.")] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Kernels compiled at once; at most as many as cores, and four.")] = 2,
    python: Annotated[str, typer.Option(help="Version of Python there.")] = "3.12",
    bare: Annotated[bool, typer.Option("--bare", help="Leave the runtime out: everything is installed there.")] = False,
    target: Annotated[str, typer.Option(help="An arch such as sm_90a, or cpu to rehearse.")] = "sm_90a",
    quick: Annotated[bool, typer.Option("--quick", help="A few small problems of each part, to rehearse.")] = False,
    mib: Annotated[float, typer.Option(help="Most MiB of the archive; what does not fit is left out from the end.")] = _MAX_MIB,
) -> None:
    """Compile what a GPU machine is to run, and pack it into one archive with the little that running needs."""
    try:
        if unknown := set(parts or ()) - set(PARTS):
            raise typer.BadParameter(f"parts must be among {', '.join(PARTS)}, got {min(unknown)!r}")
        kit = Kit(out, device_for(target), quick)
        if bare:
            shutil.rmtree(out / "site", ignore_errors=True)
        else:
            runtime(out / "site", python)
        for name in (name for name in PARTS if not parts or name in parts):
            kit.add(name)
            if not pack_only and kit.compile(name, jobs):
                say(kit.pack(mib)[-1])
        for line in kit.pack(mib):
            say(line)
    except OrientError as problem:
        say(f"error: {problem}")
        raise typer.Exit(1) from problem
    except KeyboardInterrupt:
        say("interrupted: the same command goes on, and --pack-only packs what is compiled")
        raise typer.Exit(130) from None


if __name__ == "__main__":
    typer.run(main)
