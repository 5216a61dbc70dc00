"""Layers whose parts are compiled by others and put together: what is compiled, what is taken from the cache, and what fails."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.compilers import stand_in
from tests.support.helpers import assert_close, line, operands, spec_of
from tests.support.parts import COMPILED
from tvm_orient import notices
from tvm_orient.compiler.parts import Part, placed_parts
from tvm_orient.errors import BuildFailed, EnvironmentProblem
from tvm_orient.kernels import build, compile_process, layer_build
from tvm_orient.kernels.part_cache import FOLDER, parts_of
from tvm_orient.problem.device import cpu_device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime.kernel import Kernel
from tvm_orient.schedules.choices import default_choices, generic_choices

CPU = cpu_device()


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of its own, and no shared ones."""
    monkeypatch.setenv("TVM_ORIENT_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("TVM_ORIENT_SHARED_CACHE", "")
    notices.log_once.cache_clear()
    yield tmp_path / "kernels"
    notices.log_once.cache_clear()


def layer(*angles: float, channels: int = 64, width: int = 4) -> ConvSpec:
    """A layer of even groups: 16 channels each of 4 x 4 float64 are whole vectors."""
    return spec_of("conv", channels, 4, width, line(*angles, k=7), dtype="float64")


class Asked:
    """What compilers are asked for, by a stand-in in this process: parts come to COMPILED, kernels to an empty file.

    Attributes:
        parts: the parts, in the order in which they were begun.
        kernels: for each kernel, the parts that it is made of.
        fails: of the part of this number comes this error.
    """

    def __init__(self) -> None:
        self.parts: list[Part] = []
        self.kernels: list[list[Part]] = []
        self.fails: dict[int, BaseException] = {}
        self._lock = threading.Lock()

    def requested(self, spec: ConvSpec, device: Any, request: dict[str, Any], folder: Path, deadline: Any, *, urgent: bool) -> dict[str, Any]:
        request = json.loads(json.dumps(request))
        if "part" in request:
            with self._lock:
                number = len(self.parts)
                self.parts.append(Part.of_plain(request["part"]))
            if number in self.fails:
                raise self.fails[number]
            Path(request["path"]).write_bytes(COMPILED.payload)
            return {}
        assert all(Path(path).read_bytes() == COMPILED.payload for _, path in request["parts"])
        self.kernels.append([Part.of_plain(plain) for plain, _ in request["parts"]])
        (folder / "kernel.so").touch()
        return {"steps": ["default"]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(layer_build, "requested", found.requested)
    return found


def made(spec: ConvSpec, folder: Path, **rest: Any) -> dict[str, Any]:
    folder.mkdir()
    return layer_build.compiled(spec, CPU, default_choices(spec, CPU), folder, **rest)


def parts(spec: ConvSpec) -> list[Part]:
    return [one.part for one in placed_parts(spec, default_choices(spec, CPU), CPU)]


# ---- what is compiled ---------------------------------------------------------------------------


def test_each_part_is_compiled_once_and_the_folder_holds_the_kernel_alone(asked: Asked, tmp_path: Path, own: Path) -> None:
    spec = layer(0, 90, 0, 45)
    facts = made(spec, tmp_path / "folder")
    assert sorted(map(hash, asked.parts)) == sorted(map(hash, set(parts(spec))))
    assert len(asked.parts) == 3
    assert [set(one) for one in asked.kernels] == [set(parts(spec))]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["kernel.so"]
    assert len(parts_of(own)) == 3
    assert set(facts["seconds"]) == {"parts", "layer"}


def test_an_angle_that_was_compiled_for_one_layer_serves_another(asked: Asked, tmp_path: Path) -> None:
    made(layer(0, 90, 0, 45), tmp_path / "first")
    made(layer(45, 0, 90, 90), tmp_path / "turned")
    assert len(asked.parts) == 3
    made(layer(90, 135, 45, 135), tmp_path / "one more")
    assert len(asked.parts) == 4
    assert [len(one) for one in asked.kernels] == [3, 3, 3]


def test_a_damaged_part_is_compiled_again(asked: Asked, tmp_path: Path, own: Path, caplog: pytest.LogCaptureFixture) -> None:
    made(layer(0, 90), tmp_path / "first")
    path = parts_of(own)[0].path
    path.write_bytes(path.read_bytes()[:-1])
    made(layer(0, 90), tmp_path / "second")
    assert len(asked.parts) == 3
    assert "will be compiled again" in caplog.text
    made(layer(0, 90), tmp_path / "third")
    assert len(asked.parts) == 3


def test_parts_that_go_while_a_layer_is_put_together_are_not_missed(asked: Asked, tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cache clear` at the worst moment: a layer uses copies of its own."""
    made(layer(0, 90), tmp_path / "first")

    def cleared(*given: Any, **rest: Any) -> dict[str, Any]:
        for one in parts_of(own):
            one.path.unlink()
        return asked.requested(*given, **rest)

    monkeypatch.setattr(layer_build, "requested", cleared)
    made(layer(90, 0), tmp_path / "second")
    assert len(asked.kernels) == 2


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_cache_that_others_can_write_serves_nothing(asked: Asked, mode: int, tmp_path: Path, own: Path) -> None:
    own.mkdir()
    (own / FOLDER).mkdir()
    (own / FOLDER).chmod(mode)
    for name in ("first", "second"):
        made(layer(0, 90), tmp_path / name)
    assert len(asked.parts) == 4
    assert parts_of(own) == []


def test_the_generic_kernel_has_no_parts(tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    monkeypatch.setattr(layer_build, "requested", lambda spec, device, request, *rest, **named: requests.append(request) or {})
    layer_build.compiled(layer(0), CPU, generic_choices(layer(0), CPU), tmp_path)
    assert ["parts" in request or "part" in request for request in requests] == [False]
    assert not own.exists()


def test_a_layer_of_parts_of_other_layers_computes_its_own(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the compilers themselves: two layers make all parts of a third, which is then only put together."""
    begun = []
    real = layer_build.requested
    monkeypatch.setattr(
        layer_build, "requested", lambda spec, device, request, *rest, **named: begun.append("part" in request) or real(spec, device, request, *rest, **named)
    )
    for angles in ((0, 45), (90, 135), (135, 0)):
        spec = layer(*angles, channels=32)
        kernel, given = Kernel(spec, CPU, build.build(spec, CPU)), operands(spec, 2)
        assert_close(kernel(*given), spec, given)
    assert begun.count(True) == 4
    assert begun.count(False) == 3


# ---- what fails ---------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [BuildFailed("ptxas said no"), EnvironmentProblem("no compiler"), KeyboardInterrupt()])
def test_the_error_of_a_part_is_the_layers_and_no_other_is_begun(asked: Asked, problem: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_build, "cores", lambda: 1)
    asked.fails[1] = problem
    with pytest.raises(type(problem)) as caught:
        made(layer(0, 45, 90, 135), tmp_path / "folder")
    assert caught.value is problem
    assert len(asked.parts) == 2
    assert asked.kernels == []
    assert list((tmp_path / "folder").iterdir()) == []


def test_what_was_compiled_before_a_part_failed_is_kept(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_build, "cores", lambda: 1)
    asked.fails[2] = BuildFailed("ptxas said no")
    with pytest.raises(BuildFailed):
        made(layer(0, 45, 90, 135), tmp_path / "first")
    made(layer(0, 45, 90, 135), tmp_path / "second")
    assert len(asked.parts) == 3 + 2


def test_parts_that_are_under_way_end_before_the_error_comes(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the folder of a kernel after it has been given up."""
    monkeypatch.setattr(layer_build, "cores", lambda: 2)
    begun, ended = threading.Barrier(2), []
    fail = BuildFailed("ptxas said no")

    def slow(spec: ConvSpec, *given: Any, **rest: Any) -> dict[str, Any]:
        begun.wait(60)
        if spec.taps == line(0, k=7):
            raise fail
        time.sleep(0.2)
        found = asked.requested(spec, *given, **rest)
        ended.append(spec)
        return found

    monkeypatch.setattr(layer_build, "requested", slow)
    with pytest.raises(BuildFailed) as caught:
        made(layer(0, 45, 90), tmp_path / "folder")
    assert caught.value is fail
    assert len(ended) == 1
    assert list((tmp_path / "folder").iterdir()) == []


def test_who_is_interrupted_begins_no_other(asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is pressed comes up where the parts are waited for."""
    monkeypatch.setattr(layer_build, "cores", lambda: 1)
    joined, go_on = threading.Event(), threading.Event()

    def slow(*given: Any, **rest: Any) -> dict[str, Any]:
        joined.wait(60)
        go_on.wait(60)
        return asked.requested(*given, **rest)

    class Interrupted(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            joined.set()
            raise KeyboardInterrupt

    monkeypatch.setattr(layer_build, "requested", slow)
    monkeypatch.setattr(layer_build.threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(layer(0, 45, 90, 135), tmp_path / "folder")
    working = [thread for thread in threading.enumerate() if isinstance(thread, Interrupted)]
    go_on.set()
    for thread in working:
        super(Interrupted, thread).join(60)
    assert len(asked.parts) == 1


def test_a_limit_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the layer, however many compilers it takes."""
    stand_in(monkeypatch, "sys.stdin.readline(); time.sleep(600)")
    start = time.monotonic()
    with pytest.raises(BuildFailed, match=r"did not compile within 2 s: call tvm_orient\.warmup"):
        made(layer(0, 45, 90, 135), tmp_path / "folder", limit=2.0)
    assert time.monotonic() - start < 30
    assert list((tmp_path / "folder").iterdir()) == []
    compile_process.close()


def test_a_limit_is_one_for_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """And begins with the first of them."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    deadline, none = compile_process.Deadline(10.0), compile_process.Deadline(None)
    now[0] = 500.0
    found = [deadline.left()]
    for later in (504.0, 509.0, 600.0):
        now[0] = later
        found.append(deadline.left())
    assert found == [10.0, 6.0, 1.0, 0.0]
    assert none.left() is None


def test_a_compiler_that_dies_is_the_error_of_its_part(tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "print('LLVM ERROR: no', file=sys.stderr, flush=True); sys.stdin.readline(); os._exit(1)")
    spec = layer(0, 45)
    with pytest.raises(BuildFailed, match=r"the compiler of conv-.*k7a(0|45) ended without an answer .* LLVM ERROR: no"):
        build.build(spec, CPU)
    assert [path.name for path in own.iterdir() if not path.name.endswith(".lock")] == []
    compile_process.close()


# ---- several processes --------------------------------------------------------------------------


def test_two_layers_at_once_make_their_own_parts_or_take_the_others(asked: Asked, tmp_path: Path, own: Path) -> None:
    results: list[Any] = []

    def one(name: str) -> None:
        results.append(made(layer(0, 45, 90, 135), tmp_path / name))

    threads = [threading.Thread(target=functools.partial(one, f"folder{i}")) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(asked.kernels) == 4
    assert len(parts_of(own)) == 4
    assert 4 <= len(asked.parts) <= 16
