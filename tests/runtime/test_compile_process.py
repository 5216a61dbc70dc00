"""A compiler that dies, has no room or nothing to do: what waits for it gets an answer, and what is served goes on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tvm_orient as to
from tests.support.compilers import BLOCKED, alive, pids, stand_in, until
from tests.support.helpers import assert_close, operands
from tests.support.serving import CPU, spec_at
from tvm_orient.kernels import build, cache, compile_process, manifest
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import kernel, serving
from tvm_orient.toolchain import worker


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Compilers that say something and end, as LLVM does where it cannot write."""
    return lambda said: stand_in(monkeypatch, f"sys.stdin.readline(); os.write(2, {said!r}.encode()); os._exit(1)")


def test_a_full_disk_is_named_by_its_folder(dying: Callable[[str], None], tmp_path: Path) -> None:
    dying("LLVM ERROR: IO failure on output stream: No space left on device")
    store = cache.KernelCache(tmp_path / "kernels")
    with pytest.raises(to.EnvironmentProblem, match=rf"the disk of {store.directory} is full: free some, or set TVM_ORIENT_CACHE_DIR"):
        build.build(spec_at(15), CPU, store=store)
    assert [path for path in store.directory.iterdir() if not path.name.endswith(".lock")] == []


def stays_generic(spec: ConvSpec, caplog: pytest.LogCaptureFixture) -> str:
    """What the log says, once, of a problem whose kernel cannot be made; its calls are right all the same."""
    given = operands(spec, 2)
    for _ in range(5):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
        assert to.compiling().wait(60)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "stays on the generic kernel" in said
    return said


@pytest.mark.usefixtures("second")
def test_a_compiler_that_dies_leaves_the_generic_kernel(dying: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    dying("LLVM ERROR: out of registers")
    spec = spec_at(16)
    assert "LLVM ERROR: out of registers" in stays_generic(spec, caplog)
    with pytest.raises(to.BuildFailed, match=r"ended with status 1.*out of registers"):
        serving.kernel(spec, CPU)


@pytest.mark.usefixtures("second")
def test_a_compiler_that_hangs_is_ended_after_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stand_in(monkeypatch, BLOCKED.format(folder=str(tmp_path)))
    monkeypatch.setattr(serving, "_UNASKED_LIMIT_S", 0.5)
    stays_generic(spec_at(37), caplog)
    assert not any(alive(pid) for pid in pids(tmp_path))


@pytest.mark.usefixtures("second")
def test_what_keeps_every_problem_on_the_generic_kernel_is_told_once(dying: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    dying("LLVM ERROR: IO failure on output stream: No space left on device")
    with caplog.at_level("INFO", logger="tvm_orient"):
        for spec in (spec_at(38), spec_at(39), spec_at(40)):
            given = operands(spec, 2)
            for _ in range(3):
                assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
            assert to.compiling().wait(60)
    levels = [record.levelname for record in caplog.records if "stays on the generic kernel" in record.message]
    assert levels == ["WARNING", "INFO", "INFO"]


# ---- who goes first -----------------------------------------------------------------------------


def test_what_nobody_asked_for_gives_way_to_every_other_process(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "[print(json.dumps({'facts': {'nice': os.nice(0)}}), flush=True) for _ in sys.stdin]")
    shop, found = compile_process._shop, []
    for urgent in (False, True, False, True):
        with shop.compiler("cpu", urgent) as compiler:
            found.append((compiler.ask({})["facts"]["nice"], compiler))
    usual = os.nice(0)
    assert [nice for nice, _ in found] == [compile_process._LOWEST, usual] * 2
    assert found[0][1] is found[2][1], "one that waits is taken again"
    assert found[1][1] is found[3][1]
    shop.close()


def test_no_more_processes_stay_than_may_work_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "[print(json.dumps({}), flush=True) for _ in sys.stdin]")
    shop = compile_process._shop
    monkeypatch.setattr(shop._room, "asked", 2)
    for kind, urgent in (("cpu", True), ("cpu", False), ("cuda", True), ("cuda", False)):
        with shop.compiler(kind, urgent) as compiler:
            compiler.ask({})
    assert [(one.kind, one.urgent) for one in shop._waiting] == [("cuda", True), ("cuda", False)]
    shop.close()


def test_a_shop_that_is_closed_ends_what_is_at_work_and_starts_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, BLOCKED.format(folder=str(tmp_path)))
    store, problems = cache.KernelCache(tmp_path / "kernels"), list[BaseException]()

    def work() -> None:
        try:
            build.build(spec_at(41), CPU, store=store)
        except to.BuildFailed as problem:
            problems.append(problem)

    thread = threading.Thread(target=work)
    thread.start()
    until(lambda: bool(pids(tmp_path)))
    compile_process.close()
    thread.join(60)
    assert len(problems) == 1
    assert not any(alive(pid) for pid in pids(tmp_path))
    with pytest.raises(to.BuildFailed, match="is ending"):
        build.build(spec_at(41), CPU, store=store)
    assert [path for path in store.directory.iterdir() if not path.name.endswith(".lock")] == []


def test_a_compiler_that_is_being_started_while_its_shop_closes_ends_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, BLOCKED.format(folder=str(tmp_path)))
    with compile_process._shop.compiler("cpu") as compiler:
        start = worker.ChildProcess._start

        def closing(self: worker.ChildProcess) -> Any:
            compile_process.close()
            return start(self)

        monkeypatch.setattr(worker.ChildProcess, "_start", closing)
        with pytest.raises(worker.Died):
            compiler.ask({}, 60)


def test_many_threads_share_compilers_and_never_one_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "[print(json.dumps({'facts': asked}), flush=True) for asked in map(json.loads, sys.stdin)]")
    shop, wrong = compile_process._shop, list[Any]()
    monkeypatch.setattr(shop._room, "asked", 4)
    monkeypatch.setattr(shop._room, "unasked", 3)

    def work(number: int) -> None:
        for turn in range(10):
            with shop.compiler(("cpu", "cuda")[turn % 2], number % 2 == 0) as compiler:
                if compiler.ask([number, turn], 60)["facts"] != [number, turn]:
                    wrong.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    assert not shop._working
    assert len(shop._waiting) <= 4
    shop.close()


def test_a_linker_that_finds_the_disk_full(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What it said is in the error's cause; its last line says only that it failed."""
    cause = RuntimeError("ld: final link failed: No space left on device\ncollect2: error: ld returned 1 exit status")
    problem = to.BuildFailed("refused the kernel: collect2: error: ld returned 1 exit status")
    problem.__cause__ = cause
    monkeypatch.setattr(compile_process, "make", lambda *_, **__: (_ for _ in ()).throw(problem))
    monkeypatch.setattr(compile_process.tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    answer = compile_process._answer(request_of(spec_at(17), tmp_path))
    assert compile_process.full(tmp_path, answer["trail"])
    assert not compile_process.full(tmp_path, answer["text"])
    assert list(tmp_path.iterdir()) == []


def request_of(spec: ConvSpec, folder: Path) -> dict[str, Any]:
    device = {name: getattr(CPU, name) for name in ("kind", "name", "slug", "arch", "units", "shared_memory", "vector_bytes", "index")}
    return {"spec": spec.key, "device": device, "folder": str(folder), "choices": [], "sources": False}


def test_a_kernel_is_compiled_where_there_is_no_room_for_temporary_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What compilers write lies beside the kernel: nothing is put into the folder for temporary files, however full it is."""
    (tmp_path / "temporary").mkdir()
    changed = (tmp_path / "temporary").stat().st_mtime_ns
    for name in ("TMPDIR", "TMP", "TEMP"):
        monkeypatch.setenv(name, str(tmp_path / "temporary"))
    monkeypatch.setattr(compile_process, "_shop", compile_process._Shop())
    store = cache.KernelCache(tmp_path / "kernels")
    path = build.build(spec_at(18), CPU, store=store)
    assert (tmp_path / "temporary").stat().st_mtime_ns == changed
    assert sorted(os.listdir(path.parent)) == [manifest.HOW, manifest.KERNEL]
    given = operands(spec_at(18), 2)
    assert_close(kernel.Kernel(spec_at(18), CPU, path)(*given), spec_at(18), given)
    (compile_process._shop._waiting.pop()).end()


def test_a_compiler_with_nothing_to_do_ends_and_the_next_request_starts_another() -> None:
    served = worker.ChildProcess([sys.executable, "-c", "from tvm_orient.toolchain.worker import serve; serve(lambda asked: {'got': asked}, 0.2)"], 60.0)
    assert served.ask(1) == {"got": 1}
    assert served._process is not None
    assert served._process.wait(60) == 0
    served.close()
    assert served.ask(2) == {"got": 2}
    served.close()
