"""The GPU session without a GPU: stages in turns and within limits, going on after a cut, what it leaves, and where that is put."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

import gpu_session
import pack_gpu
from gpu_session import Session, Stage
from test_verdict import TABLE, cell

from tvm_orient import logs
from tvm_orient.speeds import read_csv, write_csv

BENCHMARKS = Path(gpu_session.__file__).parent


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setattr(gpu_session, "_LEAST_S", 0.5)
    monkeypatch.setattr(gpu_session, "_GRACE_S", 1.0)
    return Session("cpu", tmp_path / "state", tmp_path / "out", time.monotonic() + 60, quick=True)


def facts(session: Session) -> dict[str, Any]:
    return dict(json.loads((session.state / "state.json").read_text()))


def test_stages_take_turns_until_each_is_done(session: Session) -> None:
    once = f"import pathlib, sys; p = pathlib.Path({str(session.state / 'seen')!r}); old = p.exists(); p.touch(); sys.exit(0 if old else 3)"
    session.run(
        [Stage("halves", python(once), 20), Stage("whole", python("print('fine')"), 20), Stage("broken", python("print('no'); raise SystemExit(5)"), 20)]
    )
    found = facts(session)
    assert {name: (stage["status"], stage["tries"]) for name, stage in found.items()} == {"halves": ("done", 2), "whole": ("done", 1), "broken": ("failed", 2)}
    assert list(found) == ["halves", "whole", "broken"]  # the second turn of the first came after the others
    assert "| whole | done |" in (session.out / "report.md").read_text()
    with tarfile.open(session.out / "results.tar.gz") as archive:
        assert {"state.json", "halves.log", "whole.log"} <= set(archive.getnames())


def test_a_limit_interrupts_and_a_later_call_goes_on(session: Session) -> None:
    slow = "import time\ntry:\n    time.sleep(30)\nexcept KeyboardInterrupt:\n    print('wrote what it has')"
    begin = time.monotonic()
    session.deadline = begin + 5.5
    session.run([Stage("slow", python(slow), 2.0), Stage("deaf", python("import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(30)"), 1.0)])
    assert time.monotonic() - begin < 9
    assert facts(session)["slow"]["status"] == "unfinished"
    assert facts(session)["deaf"]["status"] == "unfinished"
    assert "wrote what it has" in (session.state / "slow.log").read_text()
    again = Session("cpu", session.state, session.out, time.monotonic() + 20, quick=True)
    again.run([Stage("slow", python("print('went on')"), 5.0)])
    assert facts(session)["slow"]["status"] == "done"
    assert "went on" in (session.out / "report.md").read_text()


def test_what_a_stage_starts_ends_with_it(session: Session) -> None:
    code = f"import subprocess; p = subprocess.Popen(['sleep', '60']); open({str(session.state / 'pid')!r}, 'w').write(str(p.pid))"
    session.run([Stage("parent", python(code), 10)])
    child = int((session.state / "pid").read_text())
    for _ in range(50):
        state = Path(f"/proc/{child}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child of a stage outlived it")


def test_killed_at_any_moment_it_leaves_a_whole_archive(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "gpu_session.py"), "--target", "cpu", "--quick", "--only", "facts,sanitize", "--state", str(tmp_path / "state")]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        for _ in range(600):
            if (tmp_path / "state" / "sanitize.log").exists():
                break
            time.sleep(0.1)
        time.sleep(0.5)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    with tarfile.open(tmp_path / "out" / "results.tar.gz") as archive:
        assert "state.json" in archive.getnames()
    assert json.loads((tmp_path / "state" / "state.json").read_text())["facts"]["status"] == "done"


@pytest.mark.slow
def test_the_quick_form_on_the_cpu(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [sys.executable, str(BENCHMARKS / "gpu_session.py"), "--target", "cpu", "--quick", "--minutes", "4.5", "--state", str(state)]
    stages = "facts,check-fast,untuned,tune"
    done = subprocess.run([*command, "--only", stages, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((state / "state.json").read_text())
    assert {name: stage["status"] for name, stage in found.items()} == dict.fromkeys(stages.split(","), "done"), done.stdout
    rows = read_csv(state / "untuned.csv")
    assert any(row.checked and row.median_ms for row in rows)
    assert list(state.glob("tuning_logs/*/conv.jsonl"))
    assert "| conv | float32 | 31 | copy / ours |" in (tmp_path / "out" / "report.md").read_text()
    assert (state / "check-fast.xml").exists()
    said = gpu_session.collect(tmp_path / "out" / "results.tar.gz", tmp_path / "unpacked", tmp_path / "results", tmp_path / "shipped")
    assert {path.name.partition("-untuned")[2] for path in (tmp_path / "results").glob("*-untuned.*")} == {".csv", ".png"}
    assert any("conv.jsonl: 5 records" in line for line in said), said


def test_every_stage_names_a_script_that_is_there(tmp_path: Path) -> None:
    for quick in (False, True):
        stages = gpu_session.stages("cuda", tmp_path, quick)
        assert len({stage.name for stage in stages}) == len(stages)
        for stage in stages:
            assert stage.command[1] == "-m" or Path(stage.command[1]).exists()
    assert [stage.name for stage in stages][:5] == ["facts", "check-fast", "untuned", "tune", "tuned"]
    assert sum(stage.seconds for stage in stages[:4]) < 9.3 * 60 + 120


def test_tables_are_collected_by_device(tmp_path: Path) -> None:
    state, packed = tmp_path / "state", tmp_path / "results.tar.gz"
    state.mkdir()
    write_csv(cell(TABLE.specs[0]), state / "tuned.csv")
    write_csv([], state / "networks.csv")
    with tarfile.open(packed, "w:gz") as archive:
        archive.add(state / "tuned.csv", "tuned.csv")
        archive.add(state / "networks.csv", "networks.csv")
    gpu_session.collect(packed, tmp_path / "fresh", tmp_path / "results", tmp_path / "logs")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["text.csv"]  # the device of these rows; an empty table is none
    assert logs.log_path(tmp_path / "logs", "text", "conv").exists() is False


# ---- what travels -------------------------------------------------------------------------------


def test_nothing_that_is_needed_stays_behind() -> None:
    assert pack_gpu.missing() == set()
    assert {"pydantic-core", "apache-tvm", "nvidia-cuda-cccl"} <= pack_gpu.needed()
    assert set(pack_gpu.PACKED + pack_gpu.HAS) <= pack_gpu.needed() | {"packaging"}  # no name that nothing asks for
    assert "apache-tvm==0.27.0.post1" in pack_gpu.pinned(pack_gpu.PACKED)


def test_a_kit_comes_out_as_it_went_in(tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "nvidia" / "cu13").mkdir(parents=True)
    (site / "nvidia" / "cu13" / "a.so").write_bytes(os.urandom(5000))
    (site / "b.py").write_text("x = 1\n")
    parts = pack_gpu.pack(site, tmp_path / "kit", part=2000, preset=0)
    assert len(parts) > 2
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(BENCHMARKS / "unpack_gpu.sh"), str(tmp_path / "kit"), str(tmp_path / "there")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr
    assert "tvm 0.27.0" in done.stdout
    for name in ("nvidia/cu13/a.so", "b.py"):
        assert (tmp_path / "there" / name).read_bytes() == (site / name).read_bytes()
