"""The GPU run without a GPU: a kit of a few CPU kernels unpacked into an empty folder and run; faults of every kind, cuts, and tools."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.gpu import counters
from benchmarks.gpu.collect import collect
from benchmarks.gpu.results import RESULTS, Results, read
from tests.support.kit import INSTANT, SLUG, jobs_of, keep, run_kit
from tvm_orient.bench.rows import read_csv

# ---- a whole run --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.long
def test_from_the_kit_to_the_tables(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [*jobs_of(kit, "floors"), *jobs_of(kit, "alone")[:2], *jobs_of(kit, "candidates")[:4]]
    keep(kit, [*few, *jobs_of(kit, "counters"), *({**job, "part": "sanitizer", "do": "sanitizer"} for job in few[2:4])])
    out = tmp_path / "out"
    done = run_kit(kit, "--minutes", "4", "--out", str(out), path=os.path.dirname(sys.executable))
    assert done.returncode == 0, done.stdout + done.stderr
    for said in ("floors: 2 right, 0 bad", "table: 2 right, 0 bad", "candidates: 4 right, 0 bad", "counters: skipped: ncu", "sanitizer: skipped: compute-san"):
        assert said in done.stdout
    found = read(out)
    assert found == read(kit / "results")
    assert {result["device"] for result in found.values()} == {SLUG}
    assert not any("error" in result for result in found.values())
    again = run_kit(kit, "--minutes", "1", "--out", str(out))
    assert "--- table: 0 of 2 jobs" in again.stdout, "what was done is not done again"
    assert set(read(out)) - set(found) <= {name for name in read(out) if name.startswith("final/")}

    places = tmp_path / "results", tmp_path / "tuning_logs"
    said_of = list(collect(out, *places))
    assert any("verdict" in line for line in said_of)
    rows = read_csv(places[0] / f"{SLUG}.csv")
    assert {row.spec for row in rows} == {job["spec"] for job in few[2:4]}
    with (places[0] / f"{SLUG}-trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert len(trials) == 4
    for trial, job in zip(trials, few[4:], strict=True):
        assert (trial["spec"], trial["template"], int(trial["version"])) == (job["spec"], *job["choices"][0][:2])
        assert json.loads(trial["decisions"]) == dict(job["choices"][0][2])
        assert float(trial["median_us"]) > 0
    assert (places[0] / f"{SLUG}.png").stat().st_size > 1000
    before = {path: path.read_bytes() for path in places[0].iterdir()}
    list(collect(out, *places))
    assert {path: path.read_bytes() for path in places[0].iterdir()} == before, "collecting twice changes nothing"


# ---- faults -------------------------------------------------------------------------------------

POISON = '{ char path[999]; snprintf(path, 999, "%s.%d", getenv("POISON"), getpid()); fclose(fopen(path, "w")); return 0; }'
FAULTS = {
    "wrong": "{ return 0; }",
    "hung": "{ for (;;) pause(); }",
    "died": "{ abort(); }",
    "failed": POISON,  # and from then on the device answers every call with an error
}


def bad_kernel(folder: Path, body: str, like: Path) -> None:
    shutil.copytree(like, folder)
    source = folder / "kernel.c"
    head = "#include <stdint.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <unistd.h>\n"
    source.write_text(f"{head}int __tvm_ffi_main(void* self, const void* given, int32_t count, void* result) {body}\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(folder / "kernel.so"), str(source)], check=True)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler for the kernels that are at fault")
def test_a_fault_is_a_row_and_the_next_one_runs(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISON", str(tmp_path / "poisoned"))
    with (kit / "tvm_orient" / "evaluate" / "machine.py").open("a") as file:
        file.write(
            "\n\ndef finish(device):\n    import os\n    if os.path.exists(f\"{os.environ['POISON']}.{os.getpid()}\"):\n"
            "        raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        )
    good = next(job for job in jobs_of(kit, "candidates") if job["spec"].startswith("conv-"))
    jobs = [{**good, "name": "the first"}]
    for fault, body in FAULTS.items():
        bad_kernel(kit / "kernels" / f"bad-{fault}", body, kit / "kernels" / good["entry"])
        jobs += [{**good, "name": f"bad {fault}", "entry": f"bad-{fault}"}, {**good, "name": f"after {fault}"}]
    shutil.copytree(kit / "kernels" / good["entry"], kit / "kernels" / "no-library")
    (kit / "kernels" / "no-library" / "kernel.so").write_text("text")
    keep(kit, [*jobs, {**good, "name": "bad library", "entry": "no-library"}, {**good, "name": "the last"}])
    done = run_kit(kit, "--minutes", "3", "--patience", "4", "--steps", "candidates")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {name.split("/")[1]: result for name, result in read(kit / "results").items() if not name.startswith("final")}
    assert {name: result.get("fault") for name, result in found.items()} == {
        "the first": None, **{name: fault for fault in FAULTS for name, fault in ((f"bad {fault}", fault), (f"after {fault}", None))},
        "bad library": "failed", "the last": None,
    }  # fmt: skip
    assert "CUDA error" in found["bad failed"]["error"]
    assert "SIGABRT" in found["bad died"]["error"]
    assert found["bad hung"]["error"] == "no answer within 4 s"
    assert "6 right, 5 bad" in done.stdout
    assert done.stdout.count("BAD ") == 5


def test_what_the_machine_lacks_stops_it_at_once(kit: Path) -> None:
    work = kit / "benchmarks" / "gpu" / "work.py"
    work.write_text("import not_installed_anywhere\n")
    begin = time.monotonic()
    done = run_kit(kit, "--minutes", "3")
    assert done.returncode == 1
    assert "stopped: no kernel can run here" in done.stdout
    assert "No module named 'not_installed_anywhere'" in done.stdout
    assert time.monotonic() - begin < 90, "it went on until the minutes that it was given were over"
    assert read(kit / "results") == {}


def test_first_jobs_that_fail_alike_stop_it(kit: Path) -> None:
    fails = INSTANT.replace("    time.sleep(PAUSE)", "    raise ImportError('no libtvm_runtime.so')")
    (kit / "benchmarks" / "gpu" / "work.py").write_text(fails)
    done = run_kit(kit, "--minutes", "3")
    assert done.returncode == 1
    assert "failed alike, which is no kernel's fault: ImportError: no libtvm_runtime.so" in done.stdout
    assert "candidates" not in done.stdout.split("===")[0], "it went on"
    assert not [result for result in read(kit / "results").values() if result["part"] != "floors"], "none of it counts as done"


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.long)])
def test_pulling_the_plug(times: int, instant: Callable[[float], Path], tmp_path: Path) -> None:
    kit, out, chance = instant(0.05), tmp_path / "out", random.Random(0)
    whole = run_kit(kit, "--minutes", "2", "--steps", "candidates")
    assert whole.returncode == 0, whole.stdout + whole.stderr
    wanted = set(read(kit / "results"))
    assert len(wanted) >= 40
    shutil.rmtree(kit / "results")
    command = [sys.executable, str(kit / "run.py"), "--target", "cpu", "--steps", "candidates", "--out", str(out), "--minutes", "2"]
    counts = []
    for _ in range(times):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        time.sleep(chance.uniform(0.2, 1.1))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for folder in (kit / "results", out):
            path = folder / RESULTS
            lines = path.read_text().splitlines() if path.exists() else []
            assert all(json.loads(line)["id"] in wanted for line in lines)
            for path in folder.glob("*.json") if folder.exists() else ():
                json.loads(path.read_text())
        counts.append(len(lines))
    assert counts == sorted(counts)
    last = run_kit(kit, "--minutes", "2", "--steps", "candidates", "--out", str(out))
    assert last.returncode == 0, last.stdout + last.stderr
    assert set(read(kit / "results")) == set(read(out)) == wanted


def test_a_line_cut_short_is_no_result_and_spoils_none(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text('{"id": "a", "median": 1}\n{"id": "b", "med')
    results = Results([tmp_path, tmp_path / "copy"])
    assert set(results.found) == {"a"}
    results.add("c", {"median": 2})
    assert set(read(tmp_path)) == set(read(tmp_path / "copy")) == {"a", "c"}
    results.take_back(["a"])
    assert set(read(tmp_path)) == set(read(tmp_path / "copy")) == {"c"}


@pytest.mark.long
def test_the_time_given_ends_it(instant: Callable[[float], Path]) -> None:
    kit, begin = instant(1.0), time.monotonic()
    done = run_kit(kit, "--minutes", "0.15")
    assert time.monotonic() - begin < 14
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left: the time is over" in done.stdout
    assert "=== a card" in done.stdout, "the summary is the end"


def test_results_of_another_card_are_not_mixed(instant: Callable[[float], Path], tmp_path: Path) -> None:
    kit = instant(0.0)
    Results([tmp_path / "out"]).add("time/x/y", {"device": "another-card"})
    done = run_kit(kit, "--minutes", "1", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "results must be of one card, got another-card" in done.stdout.replace("\n", " ")


def test_unknown_steps_and_no_kit(kit: Path) -> None:
    assert "steps must be among smoke, floors" in " ".join(run_kit(kit, "--steps", "spoon").stderr.replace("│", " ").split())
    (kit / "jobs.jsonl").unlink()
    assert "runs from an unpacked kit" in " ".join(run_kit(kit).stderr.replace("│", " ").split())


# ---- tools --------------------------------------------------------------------------------------

NCU = """#!/bin/bash
while [ "$1" != "--log-file" ]; do shift; done
report=$2; shift 2
"$@" || exit
cat > "$report" <<END
==PROF== Connected
"ID","Kernel Name","device__attribute_display_name","gpu__time_duration.sum","dram__bytes_read.sum","launch__registers_per_thread"
"","","","ns","byte","register/thread"
"0","main_kernel","NVIDIA H200","2,000","3,000,000","40"
"1","main_kernel","NVIDIA H200","4,000","5,000,000","32"
"2","main_kernel_1","NVIDIA H200","500","n/a","16"
END
"""
SANITIZER = """#!/bin/bash
if [ "$1" = --help ]; then echo --kernel-name; exit; fi
while [[ "$1" != *python* ]]; do shift; done
"$@" || exit
echo "ERROR SUMMARY: 0 errors"; echo "RACECHECK SUMMARY: 2 hazards displayed"
"""


@pytest.mark.long
def test_tools(kit: Path, tmp_path: Path) -> None:
    counted = jobs_of(kit, "counters")
    keep(kit, [*counted, *({**job, "part": "sanitizer", "do": "sanitizer"} for job in counted)])
    for name, text in (("ncu", NCU), ("compute-sanitizer", SANITIZER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    done = run_kit(kit, "--minutes", "2", "--steps", "counters,sanitizer", "--out", str(tmp_path / "out"), path=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = read(tmp_path / "out")
    assert {name.partition("/")[0] for name in found} == {"ncu", "memcheck", "racecheck"}
    assert {result.get("found", "")[:20] for name, result in found.items() if name.startswith("racecheck")} == {"RACECHECK SUMMARY: 2"}
    assert not any("found" in result for name, result in found.items() if not name.startswith("racecheck"))
    rows = list(counters.rows(tmp_path / "out" / "ncu-0.csv", tmp_path / "out" / "ncu-0.jsonl"))
    assert [(row["problem"], row["pass"], row["time_us"], row["dram_read_mb"], row["registers"]) for row in rows] == [
        (counted[0]["name"], 1, "2", "3", "40"), (counted[1]["name"], 1, "4", "5", "32"), (counted[1]["name"], 2, "0.5", None, "16"),
    ]  # fmt: skip
    again = run_kit(kit, "--minutes", "1", "--steps", "counters", path=f"{tmp_path}:{os.environ['PATH']}")
    assert "--- counters: 0 of 2 jobs under ncu" in again.stdout
    shutil.rmtree(kit / "results")
    (tmp_path / "ncu").write_text("#!/bin/sh\necho no permission\nexit 7\n")
    broken = run_kit(kit, "--minutes", "2", "--steps", "counters", path=f"{tmp_path}:{os.environ['PATH']}")
    assert broken.returncode == 0
    assert "counters: left: nothing runs under ncu here: ncu ended with 7: no permission" in broken.stdout
    assert read(kit / "results") == {}
