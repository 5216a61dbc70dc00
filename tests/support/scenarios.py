"""What the processes of test_driver.py do on the machine with GPUs.

`python -m tests.support.scenarios NAME` prints what came of it as JSON, on its last line.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import gpu_tensors  # noqa: F401  # isort: skip  (before torch, which it gives GPUs)
import torch
from torch import Tensor

import tvm_orient as to
from tvm_orient import ops
from tvm_orient.problem.device import cuda_devices
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.runtime import serving
from tvm_orient.schedules import choices
from tvm_orient.toolchain import nvrtc

ANGLES = [0.0, math.radians(45)]
TAPS = to.Taps.oriented(ANGLES, 5)
SPECS = {
    "conv": ConvSpec("conv", 4, 9, 10, TAPS),
    "conv_dx": ConvSpec("conv_dx", 4, 9, 10, TAPS),
    "conv_dw": ConvSpec("conv_dw", 4, 9, 10, TAPS),
    "channels_last": ConvSpec("conv", 4, 9, 10, TAPS, layout="nhwc", bias=True, activation="relu"),
    "channels_last conv_dw": ConvSpec("conv_dw", 4, 9, 10, TAPS, layout="nhwc"),
}
UNSEEN = ConvSpec("conv", 3, 7, 8, TAPS)  # nobody has built its own kernel


def _operands(batch: int = 2, where: str = "cuda") -> tuple[Tensor, Tensor]:
    return torch.ones(batch, 4, 9, 10, device=where), torch.ones(4, 5, device=where)


def _events() -> list[dict[str, Any]]:
    log = Path(os.environ["STAND_IN_LOG"])
    return [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []


def _seen(call: Callable[[], Tensor], **operands: Tensor) -> dict[str, Any]:
    """What a call gave, and which launches the driver saw meanwhile."""
    before = len(_events())
    out = call()
    launches = [event for event in _events()[before:] if event["what"] == "launch"]
    places = {name: tensor.data_ptr() for name, tensor in {**operands, "y": out}.items()}
    return {"places": places, "launches": launches, "shape": list(out.shape), "device": str(out.device), "strides": list(out.stride())}


def _problem(call: Callable[[], Any], **environment: str) -> dict[str, Any] | None:
    """What a user sees of a call in this environment; None where nothing is wrong."""
    os.environ.update(environment)
    try:
        call()
    except Exception as problem:
        return {"type": type(problem).__name__, "ours": isinstance(problem, to.OrientError), "says": str(problem), "cause": str(problem.__cause__)}
    return None


def make() -> Any:
    """First a call where there is no compiler, then every kernel that the others call, into the cache."""
    (gpu, *_), path = cuda_devices(), os.environ["PATH"]
    x, w = _operands()
    alone = _problem(lambda: to.oriented_conv2d(x, w, ANGLES), PATH="")
    os.environ["PATH"] = path
    to.warmup(list(SPECS.values()), device="cuda")
    serving.load(UNSEEN, gpu, choices.generic_choices(UNSEEN, gpu))
    return {"gpu": [gpu.name, gpu.slug, gpu.arch, gpu.units, gpu.shared_memory], "without a compiler": alone}


def _streams() -> Any:
    """Forward and backward on a stream of the user's, then on the default one."""
    x, w = _operands()
    x.requires_grad_()
    w.requires_grad_()
    stream, before = torch.Stream(device="cuda"), len(_events())
    with stream:
        y = to.oriented_conv2d(x, w, ANGLES)
    y.backward(torch.ones_like(y))
    to.oriented_conv2d(x, w, ANGLES)
    launches = [event for event in _events()[before:] if event["what"] == "launch"]
    return {"stream": stream.stream_id, "launches": launches, "gradients": [str(x.grad.device), list(w.grad.shape)]}


def call() -> Any:
    """The ways from the ops to the driver; nothing is compiled."""
    found = {}
    for batch in (0, 2, 5):
        x, w = _operands(batch)
        found[f"N={batch}"] = _seen(lambda x=x, w=w: to.oriented_conv2d(x, w, ANGLES), x=x, w=w)
    x, w = _operands()
    y = torch.ones(2, 4, 9, 10, device="cuda")
    found["conv_dx"] = _seen(lambda: ops.conv_dx(y, w, TAPS.key, 9, 10, [1, 1], "zeros"), x=y, w=w)
    found["conv_dw"] = _seen(lambda: ops.conv_dw(x, y, TAPS.key, [1, 1], "zeros"), x=x, dy=y)
    found["conv_dw N=0"] = _seen(lambda: ops.conv_dw(x[:0], y[:0], TAPS.key, [1, 1], "zeros"))
    moved = torch.ones(2 * 4 * 9 * 10 + 1, device="cuda")[1:].view(2, 4, 9, 10)  # 4 bytes off
    found["not aligned"] = _seen(lambda: to.oriented_conv2d(moved, w, ANGLES), x=moved, w=w)
    last, bias = x.contiguous(memory_format=torch.channels_last), torch.ones(4, device="cuda")
    found["channels_last"] = _seen(lambda: to.oriented_conv2d(last, w, ANGLES, bias, activation="relu"), x=last, w=w, bias=bias)
    grad = y.contiguous(memory_format=torch.channels_last)
    found["channels_last conv_dw"] = _seen(lambda: ops.conv_dw(last, grad, TAPS.key, [1, 1], "zeros"), x=last, dy=grad)
    far, weight = _operands(where="cuda:1")
    found["another GPU"] = _seen(lambda: to.oriented_conv2d(far, weight, ANGLES), x=far, w=weight)
    found["another GPU"]["current"] = torch.cuda.current_device()
    found["streams"] = _streams()
    os.environ["TVM_ORIENT_BUILD"] = "8"
    few, small = torch.ones(2, 3, 7, 8, device="cuda"), torch.ones(3, 5, device="cuda")
    found["generic"] = _seen(lambda: to.oriented_conv2d(few, small, ANGLES), x=few, w=small)
    try:
        import tvm

        found["tvm"] = tvm.__version__
    except ImportError as problem:
        found["tvm"] = str(problem)
    return found


_SOURCE = 'extern "C" __global__ void __launch_bounds__(64) probe(int* x, short n) { __shared__ int s[16]; s[threadIdx.x % 16] = n; *x = s[0]; }'
_Launch = ctypes.c_uint32 * 14  # CUlaunchConfig: grid, block, dynamic shared bytes, a gap, then stream, attributes and their number


def _answers() -> Any:
    """What the stand-in itself answers to loads and launches that a driver refuses."""
    driver, function = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()

    def load(image: bytes) -> tuple[int, ctypes.c_void_p]:
        module = ctypes.c_void_p()
        return driver.cuModuleLoadData(ctypes.byref(module), image), module

    def launched(grid: tuple[int, ...] = (1, 1, 1), block: tuple[int, ...] = (32, 1, 1), dynamic: int = 0, stream: int = 0) -> int:
        given = ctypes.c_uint64(7), ctypes.c_int16(-3)
        numbers = (ctypes.c_void_p * 2)(*map(ctypes.addressof, given))
        return driver.cuLaunchKernelEx(_Launch(*grid, *block, dynamic, 0, stream), function, numbers, None)

    code, module = load(nvrtc.compile_cubin(_SOURCE, "sm_90a"))
    found = {"loaded": code, "text": load(_SOURCE.encode())[0], "another arch": load(nvrtc.compile_cubin(_SOURCE, "sm_80"))[0]}
    found["no such kernel"] = driver.cuModuleGetFunction(ctypes.byref(function), module, b"prob")
    driver.cuModuleGetFunction(ctypes.byref(function), module, b"probe")
    found |= {"launched": launched(), "no blocks": launched(grid=(0, 1, 1)), "too many rows of blocks": launched(grid=(1, 65536, 1))}
    found |= {"more threads than its bounds": launched(block=(65, 1, 1)), "more threads than a block has": launched(block=(32, 33, 1))}
    found |= {"more shared bytes": launched(dynamic=49152 - 63), "as many as there are": launched(dynamic=49152 - 64), "an unknown stream": launched(stream=64)}
    found["more shared bytes than may be"] = driver.cuFuncSetAttribute(function, 8, 232448 - 63)
    found["as many as may be"] = driver.cuFuncSetAttribute(function, 8, 232448 - 64), launched(dynamic=232448 - 64)
    return found


def refuse() -> Any:
    """What a user sees where the driver refuses; the last fault ends the process's GPU."""
    answers = _answers()
    x, w = _operands()
    run = lambda: to.oriented_conv2d(x, w, ANGLES)  # noqa: E731
    gradient = lambda: ops.conv_dw(x, x, TAPS.key, [1, 1], "zeros")  # noqa: E731
    found = {"answers": answers, "load": _problem(run, STAND_IN_LOAD_FAILS="209"), "image": _problem(run, STAND_IN_LOAD_FAILS="200")}
    found["launch"] = _problem(run, STAND_IN_LOAD_FAILS="", STAND_IN_LAUNCH_FAILS="1 701")
    found["after it"] = _problem(run)
    found["second launch"] = _problem(gradient, STAND_IN_LAUNCH_FAILS="2 2")
    y = to.oriented_conv2d(x.requires_grad_(), w, ANGLES)
    found["backward"] = _problem(lambda: y.backward(torch.ones_like(y)), STAND_IN_LAUNCH_FAILS="1 1")
    found["no name"] = _problem(run, STAND_IN_LAUNCH_FAILS="1 998")
    kernel, weights = serving.kernel(SPECS["conv"], cuda_devices()[0]), torch.ones(7, 5, device="cuda")
    found["not the driver"] = _problem(lambda: kernel(x.detach(), weights), STAND_IN_LAUNCH_FAILS="")
    found["capture"] = _capturing()
    found["fault"] = _problem(run, STAND_IN_LAUNCH_FAILS="1 700")
    found["after the fault"] = _problem(run, STAND_IN_LAUNCH_FAILS="")
    return found


def _capturing() -> Any:
    """A problem without a kernel, while a graph is captured."""
    torch.cuda.is_current_stream_capturing = lambda: True
    try:
        return _problem(lambda: to.oriented_conv2d(torch.ones(1, 2, 3, 4, device="cuda"), torch.ones(2, 5, device="cuda"), ANGLES))
    finally:
        torch.cuda.is_current_stream_capturing = lambda: False


def examine() -> Any:
    """The doctor, and where what compiles CUDA comes from."""
    from tvm_orient.tools import doctor

    checks = doctor.examine()
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libnvrtc" in line}
    return {
        "checks": {check.name: [check.state, check.detail, check.hint] for check in checks},
        "lacks": doctor.lacks(checks),
        "compilers": sorted(mapped),
        "headers": [str(folder) for folder in nvrtc._include_folders()],
    }


def kit() -> Any:
    """The kernels of a kit that was compiled for no card in particular: what a GPU run does with them, and then the torch ops."""
    folder = Path(os.environ["KIT"])
    from benchmarks.gpu import work
    from tvm_orient.bench.methods import public_op

    work.KIT = folder  # whose kernels are looked for beside the code
    found = {}
    for request in map(json.loads, (folder / "jobs.jsonl").read_text().splitlines()):
        spec = ConvSpec.from_key(request["spec"])
        work._adopt(spec, request)
        image, weight = (2, spec.channels, spec.height, spec.width), (spec.channels, spec.kernel_size)
        shapes = {"x": image, "dy": image} if spec.op == "conv_dw" else {"x": image, "w": weight}  # a kernel calls the image that it reads x
        given = {name: torch.ones(shape, device="cuda") for name, shape in shapes.items()}
        run = public_op(spec)
        found[request["spec"]] = _seen(lambda run=run, given=given: run(*given.values()), **given)
    return {"device": work.device().slug, "calls": found}


if __name__ == "__main__":
    print(json.dumps({f.__name__: f for f in (make, call, refuse, examine, kit)}[sys.argv[1]]()))
