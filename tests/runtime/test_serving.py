"""Compiling while calls are served: what nobody asked for stays short, other calls go on, and what ends a compiler, or spoils a kernel, ends no program."""

from __future__ import annotations

import _thread
import dataclasses
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_orient as to
from tests.support.helpers import EIGHT, OPS, assert_close, line, operands, spec_of
from tvm_orient import env
from tvm_orient.kernels import build, cache, compile_cost, compile_process, manifest, resolve
from tvm_orient.problem.device import arch_device, cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import kernel, serving
from tvm_orient.schedules import choices
from tvm_orient.toolchain import worker

CPU = cpu_device()
MANY = Taps.oriented([math.pi * (c + 0.5) / 128 for c in range(128)], 31)  # an angle for each of 128 channels


def spec_at(width: int) -> ConvSpec:
    return spec_of("conv", 3, 5, width, line(45, k=5))


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Kernels of their own from the second call on; the generic one is in the session's cache."""
    monkeypatch.setenv("TVM_ORIENT_BUILD", "2")
    serving.forget()
    serving.load(spec_at(1), CPU, choices.generic_choices(spec_at(1), CPU))
    yield
    serving.forget()


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("it was compiled")


# ---- what compiling costs -----------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, arch_device("sm_90a")], ids=["cpu", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_eight_directions_are_compiled_unasked_and_an_angle_a_channel_is_not(op: str, device: Any) -> None:
    published = spec_of(op, 128, 28, 28, Taps.oriented(EIGHT, 31))
    assert 0 < compile_cost.seconds(published, device) <= serving._UNASKED_S
    assert compile_cost.seconds(spec_of(op, 128, 28, 28, MANY), device) > 2 * serving._UNASKED_S


def test_the_cost_grows_with_angles_and_taps_and_not_with_channels() -> None:
    lines = [spec_of("conv", c, 28, 28, Taps.oriented(EIGHT[:g], k)) for c, g, k in ((8, 2, 7), (800, 2, 7), (8, 4, 7), (8, 4, 15))]
    seconds = [compile_cost.seconds(spec, CPU) for spec in lines]
    assert seconds[0] == seconds[1] < seconds[2] < seconds[3]


@pytest.mark.usefixtures("second")
def test_what_takes_long_is_not_compiled_unasked(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_of("conv", 128, 9, 10, MANY)
    monkeypatch.setattr(build, "compiled", never)
    given = operands(spec, 1)
    with caplog.at_level("INFO", logger="tvm_orient"):
        for _ in range(6):
            assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    (said,) = [record for record in caplog.records if "stays on the generic kernel" in record.message]
    assert said.levelname == "INFO"
    assert "in 128 groups" in said.message
    assert all(way in said.message for way in ("tvm_orient.warmup", "TVM_ORIENT_BUILD=1", "tvm-orient build", "tvm-orient tune"))


@pytest.mark.usefixtures("second")
def test_what_is_asked_for_is_compiled_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(11)
    monkeypatch.setattr(serving, "_UNASKED_S", 0.0)
    given = operands(spec, 2)
    for _ in range(4):
        to.tap_conv2d(*given, spec.taps)
    assert isinstance(serving.kernel_for_call(spec, CPU), serving.ProvisionalKernel)
    to.warmup(spec)
    own = serving.kernel_for_call(spec, CPU)
    assert isinstance(own, kernel.Kernel)
    assert not own.generic
    assert_close(to.tap_conv2d(*given, spec.taps), spec, given)


@pytest.mark.usefixtures("second")
def test_a_layer_of_which_one_angle_is_tuned_is_not_compiled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of("conv", 128, 9, 11, MANY)
    first, *others = resolve.explain(spec, CPU)
    tuned = dataclasses.replace(first, choice=dataclasses.replace(first.choice, step="user"))
    monkeypatch.setattr(serving, "explain", lambda *_: [tuned, *others])
    monkeypatch.setattr(build, "compiled", never)
    assert isinstance(serving.kernel_for_call(spec, CPU), serving.ProvisionalKernel)


# ---- other calls meanwhile ----------------------------------------------------------------------


def until(fact: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.usefixtures("second")
def test_nobody_waits_long_for_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call that is due goes on after a while, every other call at once, and the kernel comes when it is made."""
    spec, other, gate, begun = spec_at(12), spec_at(13), threading.Event(), threading.Event()
    real = serving.acquire

    def made(wanted: ConvSpec, *rest: Any) -> Any:
        if wanted == spec:
            begun.set()
            assert gate.wait(60)
        return real(wanted, *rest)

    monkeypatch.setattr(serving, "acquire", made)
    monkeypatch.setattr(serving, "_WAIT_S", 0.2)
    given, others = operands(spec, 2), operands(other, 2)
    to.tap_conv2d(*given, spec.taps)
    due = threading.Thread(target=to.tap_conv2d, args=(*given, spec.taps))
    due.start()
    assert begun.wait(60)
    provisional = serving.kernel_for_call(spec, CPU)
    assert isinstance(provisional, serving.ProvisionalKernel)
    for _ in range(3):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)  # the same problem
    assert_close(to.tap_conv2d(*others, other.taps), other, others)  # a new one
    due.join(60)
    assert not due.is_alive()
    assert serving.kernel_for_call(spec, CPU) is provisional
    gate.set()
    until(lambda: not isinstance(serving.kernel_for_call(spec, CPU), serving.ProvisionalKernel))
    assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert serving.kernel(spec, CPU) is serving.kernel_for_call(spec, CPU)


@pytest.mark.usefixtures("second")
def test_calls_do_not_wait_for_a_warmup_of_their_own_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, gate, begun = spec_at(24), threading.Event(), threading.Event()
    real = serving.acquire

    def made(*given: Any) -> Any:
        begun.set()
        assert gate.wait(60)
        return real(*given)

    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)
    monkeypatch.setattr(serving, "acquire", made)
    monkeypatch.setattr(serving, "_WAIT_S", 40.0)
    warm = threading.Thread(target=to.warmup, args=(spec,))
    warm.start()
    assert begun.wait(60)
    start = time.monotonic()
    for _ in range(4):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert time.monotonic() - start < 30
    gate.set()
    warm.join(60)
    assert isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel)


@pytest.mark.usefixtures("second")
def test_what_another_process_compiles_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, asked = spec_at(14), []

    def busy(*_: Any, limit: float | None = None, compiling: bool = True, **__: Any) -> Path:
        if not compiling:
            raise to.EnvironmentProblem("not in the cache")
        asked.append(limit)
        raise cache.Busy

    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)
    monkeypatch.setattr(serving, "build", busy)
    for _ in range(5):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert asked == [serving._UNASKED_LIMIT_S] * 3, "every second call"


def test_a_warmup_asks_for_its_own_thread_and_for_those_of_autograd() -> None:
    found: dict[str, bool] = {}
    with serving.compiling_at_once():
        found["its own"] = serving._asked()
        python = threading.Thread(target=lambda: found.update(python=serving._asked()))
        python.start()
        python.join()
        _thread.start_new_thread(lambda: found.update(native=serving._asked()), ())  # as one of autograd's, it is none of threading's
        until(lambda: "native" in found)
    assert found == {"its own": True, "python": False, "native": True}
    assert not serving._asked()


# ---- a compiler that dies -----------------------------------------------------------------------


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Compilers that say something and end, as LLVM does where it cannot write."""

    def use(said: str) -> None:
        code = f"import os, sys; sys.stdin.readline(); os.write(2, {said!r}.encode()); os._exit(1)"
        start = compile_process._Compiler.__init__

        def made(self: compile_process._Compiler) -> None:
            start(self)
            self.command = [sys.executable, "-c", code]

        monkeypatch.setattr(compile_process._Compiler, "__init__", made)
        monkeypatch.setattr(compile_process, "_shop", compile_process._Shop())

    return use


def test_a_full_disk_is_named_by_its_folder(dying: Callable[[str], None], tmp_path: Path) -> None:
    dying("LLVM ERROR: IO failure on output stream: No space left on device")
    store = cache.KernelCache(tmp_path / "kernels")
    with pytest.raises(to.EnvironmentProblem, match=rf"the disk of {store.directory} is full: free some, or set TVM_ORIENT_CACHE_DIR"):
        build.build(spec_at(15), CPU, store=store)
    assert [path for path in store.directory.iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.usefixtures("second")
def test_a_compiler_that_dies_leaves_the_generic_kernel(dying: Callable[[str], None], caplog: pytest.LogCaptureFixture) -> None:
    dying("LLVM ERROR: out of registers")
    spec = spec_at(16)
    given = operands(spec, 2)
    for _ in range(5):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "stays on the generic kernel" in said
    assert "LLVM ERROR: out of registers" in said
    with pytest.raises(to.BuildFailed, match=r"ended with status 1.*out of registers"):
        serving.kernel(spec, CPU)


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


# ---- a kernel that does not load ----------------------------------------------------------------


def junk(*given: Any) -> dict[str, Any]:
    """A compiler that leaves a library of another machine."""
    (given[3] / manifest.KERNEL).write_bytes(b"\x7fELF of another machine")
    return {}


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    serving.forget()
    yield tmp_path / "kernels"
    serving.forget()


def counted(monkeypatch: pytest.MonkeyPatch, *makers: Any) -> list[str]:
    """What was compiled, by one maker after the other; the last one stays."""
    made: list[str] = []

    def compiled(spec: ConvSpec, *rest: Any) -> Any:
        made.append(spec.key)
        return makers[min(len(made), len(makers)) - 1](spec, *rest)

    monkeypatch.setattr(build, "compiled", compiled)
    return made


def test_a_kernel_of_another_machine_is_built_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_at(19)
    made = counted(monkeypatch, junk, compile_process.compiled)
    build.build(spec, CPU)
    given = operands(spec, 2)
    assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert made == [spec.key] * 2
    assert sum("built again" in record.message for record in caplog.records if record.levelname == "WARNING") == 1
    serving.forget()
    to.tap_conv2d(*given, spec.taps)
    assert len(made) == 2, "the new one is in the cache"
    assert [path.name for path in own_cache.iterdir() if path.is_dir()] == [serving.kernel(spec, CPU).path.parent.name]


def test_one_that_does_not_load_built_again_either_is_an_error_with_a_remedy(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(20)
    made = counted(monkeypatch, junk)
    for _ in range(3):
        with pytest.raises(to.EnvironmentProblem, match=r"must be a library that this machine can load, and .*kernel.so is not .*set TVM_ORIENT_CACHE_DIR"):
            serving.kernel(spec, CPU)
    assert len(made) == 2, "once a process, not at every call"


def test_one_whose_rebuilding_fails_is_not_lost(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(21)

    def refuse(*_: Any) -> Any:
        raise to.BuildFailed("no compiler today")

    counted(monkeypatch, junk, refuse)
    path = build.build(spec, CPU)
    with pytest.raises(to.BuildFailed, match="today"):
        serving.kernel(spec, CPU)
    assert path.read_bytes() == b"\x7fELF of another machine"
    assert json.loads((path.parent / manifest.HOW).read_text())["size"] == path.stat().st_size


def test_on_a_file_system_that_runs_no_programs_nothing_is_built_again(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(22)
    made = counted(monkeypatch, junk)
    monkeypatch.setattr(env, "runs_no_programs", lambda _: True)
    with pytest.raises(to.EnvironmentProblem, match=r"its file system is mounted noexec\): set TVM_ORIENT_CACHE_DIR"):
        serving.kernel(spec, CPU)
    assert len(made) == 1


@pytest.mark.usefixtures("second")
def test_an_own_kernel_that_does_not_load_leaves_the_generic_one(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_at(23)
    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)
    made = counted(monkeypatch, junk)
    for _ in range(5):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert len(made) == 2
    assert sum("stays on the generic kernel" in record.message for record in caplog.records) == 1


# ---- images of nearly 2^31 elements -------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_plane_too_large_for_a_kernel_of_its_own_says_so(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compiled", never)
    spec = spec_of("conv", 1, 46340, 46340, line(22.5, k=7), layout=layout)
    with pytest.raises(to.Unsupported, match=r"images of at most \d+ elements, C \* H \* W, .*got 2147395600 in conv-.*leave it to the generic kernel"):
        build.build(spec, CPU)
    monkeypatch.setattr(build, "compiled", lambda *_: (_ for _ in ()).throw(to.BuildFailed("tried")))
    with pytest.raises(to.BuildFailed, match="tried"):
        build.build(spec_of("conv", 1, 45000, 45000, line(22.5, k=7), layout=layout), CPU)


@pytest.mark.parametrize("shape", [(2**29, 4, 1, 1), (1, 4, 2**15, 2**14 + 1)])
def test_an_expanded_tensor_is_refused_before_it_is_copied(shape: tuple[int, ...]) -> None:
    start = time.process_time()
    x = torch.zeros(1).expand(shape)
    with pytest.raises(to.Unsupported, match=rf"at most {2**31 - 1} elements.*got {x.numel()}"):
        to.oriented_conv2d(x, torch.zeros(4, 3), 0.0)
    assert time.process_time() - start < 1, "eight gigabytes were written"
