"""Compiling while calls are served: what nobody asked for stays short, and other calls go on."""

from __future__ import annotations

import _thread
import dataclasses
import errno
import math
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tvm_orient as to
from tests.support.compilers import until
from tests.support.helpers import EIGHT, OPS, assert_close, line, operands, spec_of
from tests.support.serving import CPU, Gate, never, spec_at
from tvm_orient.kernels import build, cache, compile_cost, resolve
from tvm_orient.problem.device import arch_device
from tvm_orient.problem.taps import Taps
from tvm_orient.runtime import kernel, makings, payback, provisional, serving

MANY = Taps.oriented([math.pi * (c + 0.5) / 128 for c in range(128)], 31)  # an angle for each of 128 channels


# ---- what compiling costs -----------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, arch_device("sm_90a")], ids=["cpu", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_eight_directions_are_compiled_unasked_and_an_angle_a_channel_is_not(op: str, device: Any) -> None:
    published = spec_of(op, 128, 28, 28, Taps.oriented(EIGHT, 31))
    assert 0 < compile_cost.seconds(published, device) <= payback.MAX_SECONDS
    assert compile_cost.seconds(spec_of(op, 128, 28, 28, MANY), device) > payback.MAX_SECONDS


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
            assert to.compiling().wait(60)
    (said,) = [record for record in caplog.records if "stays on the generic kernel" in record.message]
    assert said.levelname == "INFO"
    assert "in 128 groups" in said.message
    assert all(way in said.message for way in ("tvm_orient.warmup", "TVM_ORIENT_BUILD=1", "tvm-orient build", "tvm-orient tune"))


@pytest.mark.usefixtures("second")
def test_what_is_asked_for_is_compiled_however_long_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_at(11)
    monkeypatch.setattr(payback, "MAX_SECONDS", 0.0)
    given = operands(spec, 2)
    for _ in range(4):
        to.tap_conv2d(*given, spec.taps)
    assert isinstance(serving.kernel_for_call(spec, CPU), provisional.ProvisionalKernel)
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
    assert isinstance(serving.kernel_for_call(spec, CPU), provisional.ProvisionalKernel)


@pytest.mark.usefixtures("second")
def test_the_logs_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the first call; what they said is handed on to the kernel that takes the generic one's place, and to one that is compiled at once."""
    asked, explain = [], resolve.explain
    monkeypatch.setattr(serving, "explain", lambda spec, device: (asked.append(spec), explain(spec, device))[1])
    provisional, at_once = spec_at(25), spec_at(26)
    for spec, calls in ((provisional, 4), (at_once, 1)):
        given = operands(spec, 2)
        for _ in range(calls):
            assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
        monkeypatch.setenv("TVM_ORIENT_BUILD", "1")
    assert asked == [provisional, at_once]
    assert to.compiling().wait(60)
    found = serving.kernel_for_call(provisional, CPU)
    assert isinstance(found, kernel.Kernel)
    assert not found.generic


@pytest.mark.usefixtures("second")
def test_a_tuned_problem_is_begun_at_its_first_call_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch, gate: Gate) -> None:
    spec = spec_at(33)
    monkeypatch.delenv("TVM_ORIENT_BUILD")
    (found,) = resolve.explain(spec, CPU)
    monkeypatch.setattr(serving, "explain", lambda *_: [dataclasses.replace(found, choice=dataclasses.replace(found.choice, step="user"))])
    given = operands(spec, 2)
    assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert gate.begun.wait(60)
    assert gate.wanted == [spec]
    gate.open()
    assert to.compiling().wait(60)
    assert isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel)


# ---- other calls meanwhile ----------------------------------------------------------------------


@pytest.mark.usefixtures("second")
def test_no_call_waits_for_a_compiler(gate: Gate) -> None:
    """Neither the call that is due nor any other, of the same problem or of another; and the kernel comes when it is made."""
    spec, other = spec_at(12), spec_at(13)
    given, others = operands(spec, 2), operands(other, 2)
    for _ in range(2):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)  # the second is due
    assert gate.begun.wait(60)
    served = serving.kernel_for_call(spec, CPU)
    assert isinstance(served, provisional.ProvisionalKernel)
    for _ in range(3):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
        assert_close(to.tap_conv2d(*others, other.taps), other, others)
    assert serving.kernel_for_call(spec, CPU) is served
    assert not to.compiling().wait(0)
    gate.open()
    assert to.compiling().wait(60)
    assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel)
    assert serving.kernel(spec, CPU) is serving.kernel_for_call(spec, CPU)
    assert gate.wanted.count(spec) == 1


@pytest.mark.usefixtures("second")
def test_a_swap_under_load_from_several_threads(gate: Gate) -> None:
    """Every result, before, while and after the kernel takes its place, is within the tolerance of the reference."""
    spec = spec_at(34)
    given, swapped, wrong = operands(spec, 2), threading.Event(), list[str]()

    def load() -> None:
        after = 0
        while after < 20:
            after += swapped.is_set()
            try:
                assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
            except AssertionError as problem:
                wrong.append(str(problem))
                return

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert gate.begun.wait(60)
    gate.open()
    until(lambda: isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel))
    swapped.set()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert gate.wanted == [spec]


@pytest.mark.usefixtures("second")
def test_the_first_call_does_not_wait_for_a_warmup_of_its_own_problem(gate: Gate) -> None:
    spec = spec_at(24)
    given = operands(spec, 2)
    warm = threading.Thread(target=to.warmup, args=(spec,))
    warm.start()
    assert gate.begun.wait(60)
    for _ in range(4):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert warm.is_alive()
    gate.open()
    warm.join(60)
    assert isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel)


@pytest.mark.usefixtures("second")
def test_a_call_that_a_graph_is_captured_with_takes_no_new_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that was never launched would be loaded by the driver in the middle of the capture."""
    spec, capturing = spec_at(35), True
    given = operands(spec, 2)
    to.tap_conv2d(*given, spec.taps)
    to.tap_conv2d(*given, spec.taps)
    assert to.compiling().wait(60)
    monkeypatch.setattr(provisional, "capturing", lambda *_: capturing)
    to.tap_conv2d(*given, spec.taps)
    assert isinstance(serving.kernel_for_call(spec, CPU), provisional.ProvisionalKernel)
    capturing = False
    to.tap_conv2d(*given, spec.taps)
    assert isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel)


@pytest.mark.usefixtures("second")
def test_what_another_process_compiles_is_looked_for_again_without_further_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, looks, real = spec_at(14), list[Any](), build.build
    monkeypatch.setattr(makings, "_LOOK_AGAIN_S", 0.01)

    def busy(*given: Any, limit: float | None = None, compiling: bool = True, **rest: Any) -> Path:
        if compiling and limit is not None:  # the generic kernel has none
            looks.append(limit)
            if len(looks) < 4:
                raise cache.Busy
        return real(*given, limit=limit, compiling=compiling, **rest)

    given = operands(spec, 2)
    monkeypatch.setattr(serving, "build", busy)
    for _ in range(2):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
    assert to.compiling().wait(60)
    assert looks == [serving._UNASKED_LIMIT_S] * 4
    assert isinstance(serving.kernel_for_call(spec, CPU), kernel.Kernel)


@pytest.mark.usefixtures("second")
def test_a_cache_that_cannot_be_written_leaves_the_generic_kernel_with_one_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_at(36)
    given = operands(spec, 2)

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    to.tap_conv2d(*given, spec.taps)
    monkeypatch.setattr(cache.filelock.FileLock, "acquire", full)
    for _ in range(40):
        assert_close(to.tap_conv2d(*given, spec.taps), spec, given)
        assert to.compiling().wait(60)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "stays on the generic kernel" in said
    assert "TVM_ORIENT_CACHE_DIR" in said


def test_a_warmup_asks_for_its_own_thread_and_for_those_of_autograd() -> None:
    found: dict[str, bool] = {}
    with provisional.asking():
        found["its own"] = provisional.asked_here()
        python = threading.Thread(target=lambda: found.update(python=provisional.asked_here()))
        python.start()
        python.join()
        _thread.start_new_thread(lambda: found.update(native=provisional.asked_here()), ())  # as one of autograd's, it is none of threading's
        until(lambda: "native" in found)
    assert found == {"its own": True, "python": False, "native": True}
    assert not provisional.asked_here()


# ---- images of nearly 2^31 elements -------------------------------------------------------------


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_plane_too_large_for_a_kernel_of_its_own_says_so(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "compiled", never)
    spec = spec_of("conv", 1, 46340, 46340, line(22.5, k=7), layout=layout)
    with pytest.raises(to.Unsupported, match=r"images of at most \d+ elements, C \* H \* W, .*got 2147395600 in conv-.*leave it to the generic kernel"):
        build.build(spec, CPU)
    monkeypatch.setattr(build, "compiled", lambda *_, **__: (_ for _ in ()).throw(to.BuildFailed("tried")))
    with pytest.raises(to.BuildFailed, match="tried"):
        build.build(spec_of("conv", 1, 45000, 45000, line(22.5, k=7), layout=layout), CPU)


@pytest.mark.parametrize("shape", [(2**29, 4, 1, 1), (1, 4, 2**15, 2**14 + 1)])
def test_an_expanded_tensor_is_refused_before_it_is_copied(shape: tuple[int, ...]) -> None:
    start = time.process_time()
    x = torch.zeros(1).expand(shape)
    with pytest.raises(to.Unsupported, match=rf"at most {2**31 - 1} elements.*got {x.numel()}"):
        to.oriented_conv2d(x, torch.zeros(4, 3), 0.0)
    assert time.process_time() - start < 1, "eight gigabytes were written"
