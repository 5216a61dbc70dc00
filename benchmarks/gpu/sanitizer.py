"""Find compute-sanitizer, run a command under one of its tools, and say what that came to. Needs nothing but Python."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# what each tool says at the end
TOOLS = {"memcheck": r"ERROR SUMMARY: (\d+) error", "racecheck": r"RACECHECK SUMMARY: (\d+) hazard"}
_FOUND = 9  # the exit status that it is told to give
_HELP_S = 60.0  # seconds that it may take to say its options


def find(named: Path | None) -> str | None:
    """Returns the sanitizer: the one that is named, or on PATH, or in a folder of CUDA; None where there is none."""
    return str(named) if named is not None else program("compute-sanitizer", ("bin", "compute-sanitizer"))


def program(name: str, inside: Sequence[str] = ("bin",)) -> str | None:
    """Returns a program of CUDA: on PATH, or in these folders of an installation; None where there is none."""
    folders = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda", *map(str, sorted(Path("/usr/local").glob("cuda-*"), reverse=True))]
    places = [f"{folder}/{place}" for folder in folders if folder for place in inside]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(places))


def only_ours(sanitizer: str) -> list[str]:
    """Options that leave torch's kernels alone; the name of the option differs by version."""
    try:
        said = subprocess.run([sanitizer, "--help"], capture_output=True, text=True, check=False, timeout=_HELP_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    text = said.stdout + said.stderr
    return next(([option, "kns=main"] for option in ("--kernel-name", "--filter") if option in text), [])


def limited(
    command: Sequence[str], log: Path, seconds: float, environment: Mapping[str, str] | None = None, prepare: Callable[[], None] | None = None
) -> int | None:
    """Returns the exit status of a command whose output goes to log; None where it did not end in time, and was killed with all that it started.

    Raises:
        OSError: it does not start.
    """
    with log.open("w") as file:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True, preexec_fn=prepare
        )
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def under(
    sanitizer: str,
    tool: str,
    command: Sequence[str],
    log: Path,
    seconds: float,
    given: Mapping[str, str] | None = None,
    prepare: Callable[[], None] | None = None,
) -> tuple[bool | None, str]:
    """Returns (clean, what the tool came to) of a command that says "cases: ..." at its end; None where that could not be told.

    Args:
        log: takes the output.
        given: the environment; None is this process's.
        prepare: runs in the new process first.
    """
    # without torch's pool each tensor is an allocation of its own, so that an access past its end is seen
    environment = {**(os.environ if given is None else given), "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
    reason = "it did not run"
    for options in dict.fromkeys((tuple(only_ours(sanitizer)), ())):
        try:
            status = limited([sanitizer, "--tool", tool, "--error-exitcode", str(_FOUND), *options, *command], log, seconds, environment, prepare)
        except OSError as problem:
            return None, str(problem)
        if status is None:
            return None, f"no end within {seconds:.0f} s: {log}"
        text = log.read_text(errors="replace")
        summary = re.search(TOOLS[tool], text)
        if summary and "cases:" in text:
            clean = int(summary[1]) == 0 and status == 0
            return clean, f"{summary[0]}s, {re.findall(r'cases: .*', text)[-1]}" + ("" if clean else f": {log}")
        reason = ([line for line in text.splitlines() if "rror" in line] or text.splitlines() or ["no output"])[-1].strip()
    return None, f"could not run: {reason}"
