"""CUDA from the ops down to the driver, on a machine with a stand-in for it: what is built, loaded and launched, with what, and what a user sees of a refusal.

Each process is a fresh one (scenarios.py) and is run once; the tests read what came of it. The stand-in (driver.c) reads the cubins and
refuses what a driver would. It computes nothing.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.driver import Machine, Ran, why_not
from tvm_orient.compiler import lower
from tvm_orient.compiler.assemble import layer_source
from tvm_orient.compiler.layer_plan import planned
from tvm_orient.compiler.library import cuda_source
from tvm_orient.kernels.cache import KernelCache
from tvm_orient.problem.device import Device
from tvm_orient.problem.spec import ConvSpec
from tvm_orient.problem.taps import Taps
from tvm_orient.schedules.choices import Choice, default_choices, generic_choices
from tvm_orient.toolchain import nvrtc

ROOT = Path(__file__).resolve().parents[2]
TAPS = Taps.oriented([0.0, math.radians(45)], 5)
H200 = Device("cuda", "NVIDIA H200", "nvidia-h200", "sm_90a", 132, 232448, 16)  # as the stand-in gives it
# calls of scenarios.py, and the problem that each is
CALLS = {
    "N=2": ConvSpec("conv", 4, 9, 10, TAPS),
    "N=5": ConvSpec("conv", 4, 9, 10, TAPS),
    "not aligned": ConvSpec("conv", 4, 9, 10, TAPS),
    "another GPU": ConvSpec("conv", 4, 9, 10, TAPS),
    "conv_dx": ConvSpec("conv_dx", 4, 9, 10, TAPS),
    "conv_dw": ConvSpec("conv_dw", 4, 9, 10, TAPS),
    "channels_last": ConvSpec("conv", 4, 9, 10, TAPS, layout="nhwc", bias=True, activation="relu"),
    "channels_last conv_dw": ConvSpec("conv_dw", 4, 9, 10, TAPS, layout="nhwc"),
    "generic": ConvSpec("conv", 3, 7, 8, TAPS),
}
# what the generic kernel is told of its problem, by its names; another number is N
NUMBERS = {"across": 1, "down": 1, "c": 3, "g": 2, "k": 5, "height": 7, "width": 8, "p": 7, "q": 8}
_NAMES = {"source": "x", "out": "y"}
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\((\d+)\) (\w+)\(([^)]*)\) \{')
_DECLARED = re.compile(r"\.shared \.align \d+ \.b8 \w+\[(\d+)\]")  # in PTX
_SHARED = re.compile(r"__shared__ (?:alignas\(\d+\) )?(float|half) \w+\[(\d+)\];")
_ALIGNMENT = 64  # bytes that an array in shared memory may be moved by
_POINTER, _INT = 8, 4  # bytes of an argument


@pytest.fixture(scope="module")
def machine(shared: Path) -> Machine:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    return Machine(shared / "machine")


@pytest.fixture(scope="module")
def made(machine: Machine) -> Ran:
    """A wrapper named nvcc stands first on PATH, the wheels are there, and all is compiled into the cache."""
    return machine.did("make", lambda: {"PATH": machine.wrapped_nvcc()})


@pytest.fixture(scope="module")
def called(machine: Machine, made: Ran) -> Ran:
    """The cache was made ahead; TVM cannot be imported, and there is no compiler."""
    return machine.did("call", lambda: {"PATH": machine.tools(compilers=False), "PYTHONPATH": machine.runtime_only()})


@pytest.fixture(scope="module")
def refused(machine: Machine, made: Ran) -> Ran:
    """The driver is told to refuse."""
    return machine.did("refuse", dict)


@pytest.fixture(scope="module")
def examined(machine: Machine) -> Ran:
    """There are wheels and a C++ compiler, and no toolkit on PATH or in the environment."""
    return machine.did("examine", lambda: {"PATH": machine.tools(compilers=True)})


# ---- what is built ------------------------------------------------------------------------------


def test_the_gpu_is_seen(made: Ran) -> None:
    assert made.answer["gpu"] == [H200.name, H200.slug, H200.arch, H200.units, H200.shared_memory]


def test_a_wrapper_named_nvcc_is_never_run(machine: Machine, made: Ran) -> None:
    assert (machine.folder / "wrapper" / "nvcc").is_file()
    assert not machine.nvcc_was_run.exists()
    assert made.events == [], "compiling neither loads nor launches"
    entries = KernelCache(machine.cache).entries()
    specs = {spec.key for name, spec in CALLS.items() if name != "generic"}
    assert {entry.key["spec"] for entry in entries} >= specs
    assert len(entries) == len(specs) + 1
    assert {(entry.key["device"], entry.key["arch"]) for entry in entries} == {(H200.slug, H200.arch)}
    for entry in entries:
        library = (machine.cache / entry.name / "kernel.so").read_bytes()
        assert b".nv.info.main_kernel" in library, "it holds no cubin"
        assert b"__global__" not in library, "it holds source, which the driver would refuse"


def test_without_a_compiler_the_message_says_what_to_install(made: Ran) -> None:
    problem = made.answer["without a compiler"]
    assert problem["type"] == "EnvironmentProblem"
    assert problem["says"] == ("building a kernel needs a C++ compiler to link it, and there is no g++, clang++ or cc on PATH: install g++, or set CXX")


def test_wheels_are_enough(examined: Ran) -> None:
    """The toolkit that this machine may have is not what compiles: headers and NVRTC are those of the wheels."""
    (root,) = {Path(path).parent.parent for path in examined.answer["compilers"]}
    assert root.parent.name == "nvidia"
    assert nvrtc._include_folders() == tuple(map(Path, examined.answer["headers"]))
    assert all(root in Path(folder).parents for folder in examined.answer["headers"])
    assert examined.answer["checks"]["NVRTC"][0] == "ok"
    assert examined.seen("launch"), "what they compiled was launched"


# ---- what is loaded and launched ----------------------------------------------------------------


def test_a_kernel_made_ahead_needs_neither_tvm_nor_a_compiler(machine: Machine, called: Ran) -> None:
    assert called.answer["tvm"] == "TVM is not to be imported here"
    assert len(KernelCache(machine.cache).entries()) == 6, "one was compiled"


def test_each_kernel_is_loaded_once_a_gpu(called: Ran) -> None:
    loads = called.seen("load")
    assert all(load["answer"] == 0 for load in loads)
    assert sorted(load["device"] for load in loads) == [0] * 6 + [1], "six kernels, of which one runs on both"
    assert sorted(map(len, (load["kernels"] for load in loads))) == [1] * 5 + [2] * 2, "conv_dw has two"
    assert {event["answer"] for event in called.events} == {0}


@pytest.fixture(scope="module")
def sources() -> dict[str, list[tuple[str, int, list[tuple[str, str]], range]]]:
    """By call, of each kernel in its CUDA source: (name, threads, [(type, name) of a parameter], bytes of shared memory that it may have)."""
    found: dict[ConvSpec, Any] = {}
    for name, spec in CALLS.items():
        if spec not in found:
            if name == "generic":
                source = cuda_source(lower.scheduled(spec, H200, generic_choices(spec, H200)), H200)
            else:
                source = layer_source(planned(spec, H200, default_choices(spec, H200)))
            found[spec] = list(_read(source))
    return {name: found[spec] for name, spec in CALLS.items()}


def _read(source: str) -> Any:
    _, *pieces = re.split(r'(?=extern "C" __global__ void __launch_bounds__\(\d+\) \w+\([^)]*\) \{)', source)
    for piece in pieces:
        head = _KERNEL.match(piece)
        assert head is not None
        parameters = [(kind, name.removesuffix("_ptr")) for kind, *_, name in map(str.split, head[3].split(","))]
        arrays = [{"float": 4, "half": 2}[kind] * int(count) for kind, count in _SHARED.findall(piece)] + list(map(int, _DECLARED.findall(piece)))
        shared = range(sum(arrays), sum(arrays) + _ALIGNMENT * len(arrays) + 1)
        yield head[2], int(head[1]), [(kind, _NAMES.get(name, name)) for kind, name in parameters], shared


@pytest.mark.parametrize("name", CALLS)
def test_what_is_launched(name: str, called: Ran, sources: Any) -> None:
    """The kernels of the source in its order, with its blocks and shared memory; each argument has its place and size, and is what the call was given."""
    call, pointers, parts = called.answer[name], set(), set()
    for launch, (kernel, threads, parameters, shared) in zip(call["launches"], sorted(sources[name]), strict=True):
        assert launch["kernel"] == kernel
        assert math.prod(launch["block"]) == threads
        assert launch["shared"] in shared
        assert launch["dynamic"] == 0
        assert (launch["device"], launch["stream"]) == (1 if name == "another GPU" else 0, 0)
        assert [size for size, _ in launch["arguments"]] == [_INT if kind == "int" else _POINTER for kind, _ in parameters]
        for (kind, parameter), (_, value) in zip(parameters, launch["arguments"], strict=True):
            if kind == "int":
                assert value == NUMBERS.get(parameter, 5 if name == "N=5" else 2) or parameter.startswith("cse"), parameter
                continue
            assert value % 16 == 0, "vector loads need it"
            pointers.add(parameter)
            if parameter == "part":
                parts.add(value)
            elif parameter != "table" and (name, parameter) != ("not aligned", "x"):
                assert value == call["places"][parameter], parameter
    assert pointers == {*call["places"], *(("part",) if "conv_dw" in name else ()), *(("table",) if name == "generic" else ())}
    assert len(parts) == ("conv_dw" in name), "the second launch reads what the first one wrote"
    assert call["device"] == ("cuda:1" if name == "another GPU" else "cuda:0")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of a few kernels of sm_90a, unpacked."""
    out, folder = tmp_path_factory.mktemp("made"), tmp_path_factory.mktemp("kit")
    command = [sys.executable, "-m", "benchmarks.gpu.kit", "--quick", "--bare", "--out", str(out), "alone-float32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(out / "kit.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.long
def test_the_kernels_of_a_kit(machine: Machine, packed: Path, tmp_path: Path) -> None:
    """Without TVM and without a compiler they are launched by the ops under the card's own name, with what their source asks for."""
    places = {"PATH": machine.tools(compilers=False), "TVM_ORIENT_BUILD": "0", "TVM_ORIENT_CACHE_DIR": str(tmp_path)}
    places["PYTHONPATH"] = os.pathsep.join([str(packed), machine.runtime_only()])
    ran = machine.did("kit", lambda: {**places, "KIT": str(packed)})
    jobs = [json.loads(line) for line in (packed / "jobs.jsonl").read_text().splitlines()]
    assert ran.answer["device"] == H200.slug
    assert set(ran.answer["calls"]) == {job["spec"] for job in jobs}
    assert len(jobs) == 6
    for job in jobs:
        spec, call, pointers = ConvSpec.from_key(job["spec"]), ran.answer["calls"][job["spec"]], set()
        choices = tuple(map(Choice.of_plain, job["choices"]))
        kernels = sorted(_read(cuda_source(lower.scheduled(spec, H200, choices), H200)))
        for launch, (kernel, threads, parameters, shared) in zip(call["launches"], kernels, strict=True):
            assert (launch["kernel"], math.prod(launch["block"])) == (kernel, threads)
            assert launch["shared"] in shared
            for (kind, parameter), (size, value) in zip(parameters, launch["arguments"], strict=True):
                assert size == (_INT if kind == "int" else _POINTER)
                if kind == "int":
                    assert value == 2 or parameter.startswith("cse"), parameter
                elif parameter != "part":
                    assert value == call["places"][parameter], parameter
                    pointers.add(parameter)
        assert pointers == set(call["places"])


def test_conv_dw_is_two_launches(called: Ran) -> None:
    for name in ("conv_dw", "channels_last conv_dw"):
        first, second = called.answer[name]["launches"]
        assert first["kernel"] != second["kernel"]
        assert called.answer[name]["shape"] == [4, 5]


def test_the_grid_grows_with_n(called: Ran) -> None:
    (few,), (many,) = called.answer["N=2"]["launches"], called.answer["N=5"]["launches"]
    assert few["block"] == many["block"]
    assert few["grid"][1:] == many["grid"][1:] == [1, 1]
    assert 5 * few["grid"][0] == 2 * many["grid"][0] > 0


def test_no_images_are_no_launch(called: Ran) -> None:
    assert (called.answer["N=0"]["launches"], called.answer["N=0"]["shape"]) == ([], [0, 4, 9, 10])
    assert (called.answer["conv_dw N=0"]["launches"], called.answer["conv_dw N=0"]["shape"]) == ([], [4, 5])
    assert called.answer["N=0"]["device"] == "cuda:0"


def test_an_operand_that_is_not_aligned_is_copied(called: Ran) -> None:
    call = called.answer["not aligned"]
    (launch,) = call["launches"]
    assert call["places"]["x"] % 16 == 4
    assert call["places"]["x"] not in [value for _, value in launch["arguments"]]


def test_results_of_channels_last_are(called: Ran) -> None:
    assert called.answer["channels_last"]["strides"] == [360, 1, 40, 4]
    assert called.answer["N=2"]["strides"] == [360, 90, 10, 1]


def test_the_current_gpu_stays_current(called: Ran) -> None:
    assert called.answer["another GPU"]["current"] == 0


def test_a_launch_is_on_the_stream_of_the_call(called: Ran) -> None:
    """And its gradients on that of the forward pass, which is not current any more when they are computed."""
    seen = called.answer["streams"]
    assert seen["stream"] != 0
    assert [launch["stream"] for launch in seen["launches"]] == [seen["stream"]] * 4 + [0]
    assert seen["gradients"] == ["cuda:0", [4, 5]]


# ---- what is refused ----------------------------------------------------------------------------

_CACHE, _EXPLAIN = "run `tvm-orient cache clear` and call again", "`tvm-orient explain` says where its choice comes from"
_DEAD = "this kernel or one before it failed while it ran, and no other runs on this GPU in this process"
_SHAPE = ", grid 8,1,1, block 70,1,1,"
_TOO_MANY = "a block of it asks for more registers or threads than this GPU has"
# (what was not done, op, how, the driver's answer, what that means, what to do)
REFUSALS = {
    "load": ("load", "conv", "", "CUDA_ERROR_NO_BINARY_FOR_GPU", "it was made for another GPU", _CACHE),
    "image": ("load", "conv", "", "CUDA_ERROR_INVALID_IMAGE", "its file holds no machine code that the driver can read", _CACHE),
    "launch": ("launch", "conv", _SHAPE, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", _TOO_MANY, _EXPLAIN),
    "second launch": ("launch", "conv_dw", ", grid 2,1,1, block 160,1,1,", "CUDA_ERROR_OUT_OF_MEMORY", "the memory of the GPU is full", "free some"),
    "backward": ("launch", "conv_dx", _SHAPE, "CUDA_ERROR_INVALID_VALUE", "its grid, block or shared memory is more than this GPU has", _EXPLAIN),
    "no name": ("launch", "conv", "", "a code that has no name", "the CUDA driver's documentation says what that means", "`tvm-orient doctor`"),
    "fault": ("launch", "conv", _SHAPE, "CUDA_ERROR_ILLEGAL_ADDRESS", _DEAD, "start a new process"),
    "after the fault": ("launch", "conv", "", "cudaErrorIllegalAddress", _DEAD, "start a new process"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_user_sees_of_a_refusal(name: str, machine: Machine, refused: Ran) -> None:
    problem, (did, op, how, answer, meaning, remedy) = refused.answer[name], REFUSALS[name]
    assert problem["type"] == "LaunchFailed"
    assert problem["ours"], "no OrientError"
    says = re.sub(r"(?<=kernels/)(\w+)-[0-9a-f]{20}", r"\1-DIGEST", problem["says"])
    where = f"{op}-c4h9w10-s1-zeros-float32-nchw-k5a0_45{how} in {machine.cache}/{op}-DIGEST"
    assert says.startswith(f"NVIDIA H200 did not {did} the kernel of {where}: the driver answered {answer} ({meaning}): {remedy}")
    assert re.search("CUDA|cuModule", problem["cause"]), "what TVM said is kept"


def test_a_refusal_that_passes_leaves_the_kernel_usable(refused: Ran) -> None:
    assert refused.answer["after it"] is None


def test_what_is_not_the_drivers_stays_as_it_is(refused: Ran) -> None:
    problem = refused.answer["not the driver"]
    assert problem["type"] == "ValueError"
    assert "w.shape[0]" in problem["says"]


def test_a_capture_needs_loaded_kernels(refused: Ran) -> None:
    assert refused.answer["capture"]["type"] == "EnvironmentProblem"
    assert refused.answer["capture"]["says"].endswith("a CUDA graph is being captured: call tvm_orient.warmup first")


def test_the_stand_in_refuses_what_a_driver_would(refused: Ran) -> None:
    """CUresult: 1 invalid value, 200 invalid image, 209 no binary for this GPU, 400 invalid handle, 500 not found, 701 out of resources."""
    assert refused.answer["answers"] == {
        "loaded": 0, "text": 200, "another arch": 209, "no such kernel": 500, "launched": 0, "no blocks": 1, "too many rows of blocks": 1,
        "more threads than its bounds": 701, "more threads than a block has": 1, "more shared bytes": 1, "as many as there are": 0, "an unknown stream": 400,
        "more shared bytes than may be": 1, "as many as may be": [0, 0],
    }  # fmt: skip
    probe = next(event for event in refused.seen("launch") if event["kernel"] == "probe")
    assert (probe["shared"], probe["arguments"]) == (64, [[8, 7], [2, 65533]])


# ---- the doctor ---------------------------------------------------------------------------------


def test_the_doctor_builds_launches_and_compares(examined: Ran) -> None:
    """Nothing computes here, so what it compares is wrong, and it says so."""
    state, detail, hint = examined.answer["checks"]["GPU kernel"]
    assert state == "broken"
    assert re.fullmatch(r"built in [\d.]+ s and run, but its result is off by \S+, where rounding allows \S+", detail)
    assert hint
    (launch,) = examined.seen("launch")
    assert launch["answer"] == 0
    assert examined.answer["checks"]["CPU kernel"][0] == "ok"
    assert examined.answer["lacks"]["run on a GPU"] == ["GPU kernel"]
    assert examined.answer["checks"]["GPU"][:2] == ["ok", "NVIDIA H200, sm_90a, 132 SMs, 227 KiB of shared memory a block, index 1"]
    assert "nvcc" not in {name for names in examined.answer["lacks"].values() for name in names}
